"""`tformer train`: a model from a text, or from the reversal task."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.options import Device, Json, print_json, stdin_is_piped
from tformer.commands.train_choices import check_minutes, default_preset, settle_steps
from tformer.errors import SIGNALLED, RequestError, Stopped

if TYPE_CHECKING:
    from tformer.config import Config, Layer
    from tformer.run.pretrained import Pretrained
    from tformer.run.record import Record
    from tformer.training.session import Session

DAILY, DATA = "What people change daily", "Configuration"

EXAMPLES = (
    "tformer train reversal",
    "tformer train shakespeare --device cuda",
    "tformer train my.txt --tokenizer bpe --steps 500",
    "tformer train my.txt --minutes 5",
    "tformer train my.txt --init-from gpt2/ --lr 1e-4",
)


def command(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="reversal, shakespeare, tinyshakespeare, text files, a folder, - or a token file (.npy).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/NAME if left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from", help="Train this run or Hugging Face directory further: its model, its tokenizer."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="word, char, bpe, or a tokenizer.json or run.", rich_help_panel=DAILY)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=DAILY)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="As many steps as this time has room for, from start to end; measured once, recorded.",
            rich_help_panel=DAILY,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step.", rich_help_panel=DAILY)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=DAILY)] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Evaluations without improvement before it stops.", rich_help_panel=DAILY),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", rich_help_panel=DAILY)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.", rich_help_panel=DAILY)] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile.", rich_help_panel=DAILY)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings that suit a purpose; see the README.", rich_help_panel=DATA)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file of settings; a run's tformer.yaml is one.", rich_help_panel=DATA),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, e.g. model.n_layers=6.", rich_help_panel=DATA
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='LAMBADA passages, {"text": …} a line: the loss of their last words goes into '
            "metrics.jsonl and loss.svg at every evaluation.",
            rich_help_panel=DATA,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a model on DATA and leave a run directory that transformers loads as it is.

    Loss, rate and time left show as it trains; Ctrl-C ends after the step and saves, --resume goes on.
    """
    began = time.perf_counter()
    sources = data or (["-"] if stdin_is_piped() else [])
    if not sources:
        raise RequestError(
            "no DATA", "expected a corpus, files, a folder or -", "try: tformer train reversal"
        )
    if "reversal" in sources and len(sources) > 1:
        raise RequestError("reversal is a task of its own", f"found {' '.join(sources)}", "give it alone")
    if overwrite and out is None:
        raise RequestError("--overwrite without --out", "", "say which run to replace: --out DIR")
    if resume and overwrite:
        raise RequestError("--resume and --overwrite contradict each other", "", "leave one out")
    from tformer.config import file_layer, flag_layer, preset_layer

    explicit = [preset_layer(preset)] if preset else []
    if config:
        explicit.append(file_layer(config))
    flags = {
        "data.tokenizer": tokenizer,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.patience": patience,
        "train.seed": seed,
        "train.precision": precision,
        "train.compile": None if compile is None else ("on" if compile else "off"),
    }
    explicit.append(flag_layer(set_ or [], flags))
    check_minutes(minutes, explicit[-1])
    with ExitStack() as stack:
        session = _open(
            stack,
            sources,
            explicit,
            preset,
            device,
            out,
            resume,
            overwrite,
            init_from,
            eval_data,
            (minutes, began) if minutes is not None else None,
        )
        passed = _train(session, json)
    if not passed:
        raise typer.Exit(1)


def _open(
    stack: ExitStack,
    sources: list[str],
    explicit: "Sequence[Layer]",
    preset: str | None,
    device_name: str,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    init_from: str | None,
    eval_data: str | None,
    budget: tuple[float, float] | None,
) -> "Session":
    """Everything that can be refused is refused before anything is written."""
    import torch

    from tformer.device import resolve_device
    from tformer.run.checkpoint import open_run
    from tformer.run.data import prepare_data
    from tformer.run.find import new_run_folder, unfinished_run
    from tformer.run.record import Record, read_record
    from tformer.show import terminal
    from tformer.show.progress import download_progress
    from tformer.text.corpus import corpus_name
    from tformer.text.tokenizer import Tokenizer
    from tformer.training import noted as journal
    from tformer.training import session as runner
    from tformer.training.next_word import read_next_words, watch_next_words

    torch.set_flush_denormal(True)
    device = resolve_device(device_name)
    name = "reversal" if sources == ["reversal"] else corpus_name(sources)
    folder = out
    if resume and out is None:
        folder = unfinished_run(name)
        if folder is None:
            raise RequestError(
                f"no unfinished run of {name}", "", "leave --resume out to start one, or say which: --out DIR"
            )
    folder = folder or new_run_folder(name)
    recorded = read_record(folder) if resume else Record()
    resuming = not recorded.is_empty
    _check_folder(folder, resuming, overwrite)
    pretrained = None if init_from is None else _pretrained(init_from, folder, recorded)
    default = default_preset(sources, device, on_gpu=not (preset or resuming or pretrained))
    config = _configure(default, explicit, bool(preset), recorded, pretrained)
    if (config.data.task == "reversal") != (sources == ["reversal"]):
        raise RequestError(
            f"data.task is {config.data.task}", f"DATA is {' '.join(sources)}", "they must agree"
        )
    with download_progress(f"downloading {name}") as shown:
        own = Tokenizer.load(folder) if resuming else pretrained.tokenizer if pretrained else None
        data = prepare_data(config, sources, own, recorded.data.sha256, shown)
    config = runner.decide(config, device, data.tokenizer.vocab_size)
    words = read_next_words(eval_data, recorded, config, data)
    if out is None and not resume:
        folder = new_run_folder(name)  # another process may have taken the name meanwhile
    run = stack.enter_context(open_run(folder))
    _check_folder(folder, resuming, overwrite)  # again, now that nobody else can write

    def settle(session: "Session") -> None:
        session.at_evaluation += [journal.sampled_line, journal.loss_by_position]
        if not resuming:
            session.record = session.record.updated(preset=preset or default)
        if words:
            watch_next_words(session, words)
        settle_steps(session, budget, resuming)

    if config.train.compile == "on" and not recorded.is_finished:
        terminal.say("compiling the model, once, before it trains")
    session = runner.open_session(run, config, data, device, pretrained, settle, anew=overwrite)
    for why, count in (words.passages.skipped if words else {}).items():
        terminal.warn(f"passed over {count:,} passages of --eval-data: {why}")
    for problem in session.problems:
        terminal.warn(f"passed over a checkpoint: {problem}")
    for warning in session.warnings:
        terminal.warn(warning)
    _introduce(session, device, recorded.is_finished)
    return session


def _pretrained(init_from: str, folder: Path, recorded: "Record") -> "Pretrained | None":
    """What the run begins with; None for one that is resumed, which has weights of its own."""
    from tformer.run.pretrained import is_origin, read_pretrained

    if recorded.is_empty:
        pretrained = read_pretrained(init_from)
        if pretrained.folder.resolve() == folder.resolve():
            raise RequestError(f"{folder} is what --init-from reads", "", "give another --out")
        return pretrained
    if not is_origin(init_from, recorded):
        origin = recorded.init_from.source if recorded.init_from else "random weights"
        raise RequestError(
            f"{folder} did not begin from {init_from}", f"it began from {origin}", "leave --init-from out"
        )
    return None


def _configure(
    default: str,
    explicit: "Sequence[Layer]",
    has_preset: bool,
    recorded: "Record",
    pretrained: "Pretrained | None",
) -> "Config":
    """The configuration that the layers make; of a run that is resumed or trained further, around its own."""
    from tformer.config import merge, preset_layer
    from tformer.run.pretrained import configure, recipe
    from tformer.training import session as runner

    preset = explicit[0] if has_preset else None
    given = explicit[1:] if preset else explicit
    if pretrained:
        return configure(pretrained, [recipe(preset or preset_layer(default)), *given])
    if not recorded.is_empty:
        if preset and recorded.init_from:
            preset = recipe(preset)
        return runner.resume_config(recorded, [*([preset] if preset else []), *given])
    return merge([preset or preset_layer(default), *given])


def _check_folder(folder: Path, resuming: bool, overwrite: bool) -> None:
    if not folder.exists() or resuming:
        return
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file", "expected a folder to write a run in")
    is_run = (folder / "tformer.yaml").exists()
    if any(folder.iterdir()) and not (overwrite and is_run):
        found = "a run stands there" if is_run else "it is not empty, and not a run"
        advice = "--overwrite, --resume, or another --out" if is_run else "give another --out"
        raise RequestError(f"{folder} exists", found, advice)


def _introduce(session: "Session", device: Any, finished: bool) -> None:
    from tformer.show import terminal

    config, facts = session.config, session.data.facts
    size = f"{session.model.n_parameters:,} parameters"
    text = "" if facts.train_tokens is None else f", {facts.train_tokens:,} training tokens"
    terminal.say(
        f"{session.run.folder}: {config.model.family}, {size}, {session.data.tokenizer.kind} vocabulary of "
        f"{session.data.tokenizer.vocab_size:,}{text}; {device}, {config.train.precision}"
    )
    if (origin := session.record.init_from) and not session.state.step:
        terminal.say(f"beginning from {origin.source}")
    if finished and session.state.step >= config.train.steps:
        terminal.say(f"it is finished: {session.state.step} steps")
    elif session.state.step:
        terminal.say(f"continuing after step {session.state.step}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT, SIGTERM or SIGHUP is noted, to be obeyed after the step; a second leaves at once."""
    import os

    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        if seen:
            os._exit(SIGNALLED + number)
        seen.append(number)

    watched = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    before = {n: signal.signal(n, note) for n in watched if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(session: "Session", json: bool) -> bool:
    """Train, then judge. Whether the verdict, where there is one, is favourable."""
    from tformer.evals.reversal import reversal
    from tformer.show import terminal
    from tformer.show.progress import TrainingProgress
    from tformer.show.reversal import reversal_table
    from tformer.training import noted as journal
    from tformer.training import session as runner
    from tformer.training.fit import is_exhausted

    run, steps = session.run, session.config.train.steps
    pictures = journal.Pictures(session)
    with _signals() as seen, TrainingProgress(steps, session.state.step) as shown:
        for report in runner.train_session(session, stop=lambda: bool(seen)):
            shown.update(report)
            pictures.refresh()
    state = session.state
    stopped_early = is_exhausted(state, session.config.train)
    if seen and state.step < steps and not stopped_early:
        journal.draw(session)
        terminal.say(f"stopped after step {state.step}; {run.folder} is saved: continue with --resume")
        raise Stopped(seen[0])
    result = runner.finish(session)
    passed = True
    if session.data.reversal:
        precision = session.config.train.precision
        verdict = reversal(session.model, session.data.reversal, precision=precision)
        reversal_table(verdict, terminal.err())
        passed = result["passed"] = verdict.passed
        journal.keep_verdict(session, verdict)
    journal.draw_last(session)
    if json:
        print_json(result)
    else:
        _summarise(result, stopped_early)
    return passed


def _summarise(result: dict[str, Any], stopped_early: bool) -> None:
    from tformer.show import terminal
    from tformer.show.words import duration

    facts = {"run": result["run"]}
    facts["trained"] = (
        f"{result['steps']:,} steps, {result['tokens']:,} tokens in {duration(result['seconds'])}"
        + (" (stopped early: validation no longer improves)" if stopped_early else "")
    )
    facts["loss"] = f"{result['loss']:.4f} (the last step's)" if result["loss"] is not None else "-"
    if result["val_loss"] is not None:
        facts["validation"] = (
            f"{result['val_loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte "
            f"(weights of step {result['kept_step']:,})"
        )
    facts["normal?"] = result["expectation"]
    facts["pictures"] = f"{result['run']}/report.html"
    if "passed" not in result:
        facts["next"] = f"tformer sample --run {result['run']}"
    terminal.fact_table(terminal.err(), facts)
