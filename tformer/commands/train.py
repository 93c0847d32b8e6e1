"""`tformer train`: a model from a text, or from the reversal task."""

import signal
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from tformer.commands.options import Device, Json, complete_preset, print_json, unasked
from tformer.commands.several import Noted, follow_first, signals_noted
from tformer.commands.train_finish import finish
from tformer.errors import RequestError, Stopped
from tformer.files import refuse_address

if TYPE_CHECKING:
    from tformer.layers import Layer
    from tformer.show.training import Pictures
    from tformer.training.plan import TrainRequest
    from tformer.training.session import Session

DAILY, DATA, COSTS = "Common options", "Configuration", "Cost estimate"

EXAMPLES = (
    "tformer train reversal",
    "tformer train shakespeare --device cuda",
    "tformer train my.txt --tokenizer bpe --steps 500",
    "tformer train my.txt --minutes 5",
    "tformer train my.txt --estimate --gpus 8 --accelerator h100",
    "tformer train my.txt --init-from openai-community/gpt2",
)


class TrainCommand(TyperCommand):
    """The command: an unknown option is looked up among the settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does. Raises RequestError naming the setting where a setting is given as an option."""
        given = list(args)  # which the parser uses up
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None) or ""
            key = _setting_of(option)
            if key is None:
                raise
            value = next(
                (
                    word.partition("=")[2] if "=" in word else after
                    for word, after in pairwise([*given, ""])
                    if word.partition("=")[0] == option
                ),
                "",
            )
            value = value if value and not value.startswith("-") else "VALUE"
            advice = f"give it as: --set {key}={value}"
            raise RequestError(f"no such option: {option}", f"{key} is a setting", advice) from None


def _setting_of(option: str) -> str | None:
    """The key of the setting that an option names; of two by that name, that of the data."""
    from tformer.layers import all_keys

    name = option.removeprefix("--").replace("-", "_")
    found = [key for key in all_keys() if key.partition(".")[2] == name]
    return min(found, key=lambda key: not key.startswith("data."), default=None)


def command(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="reversal, shakespeare or tinyshakespeare; text files, a folder, or - for stdin; or token "
            "files (.npy, or a folder written by tokenize).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Run directory. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run in --out.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            help="Fine-tune: start from model and tokenizer of a run, a Hugging Face directory or org/name.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="word, char or bpe; or a tokenizer.json or run.", rich_help_panel=DAILY)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", rich_help_panel=DAILY)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Train for this long in total; steps (and, on a CPU, the model size unless you set it) come "
            "from a short benchmark and are recorded.",
            rich_help_panel=DAILY,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows per step.", rich_help_panel=DAILY)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=DAILY)] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after this many evaluations without improvement.", rich_help_panel=DAILY),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", rich_help_panel=DAILY)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.", rich_help_panel=DAILY)] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Use torch.compile. Default: only on a GPU.", rich_help_panel=DAILY
        ),
    ] = None,
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard",
            help="Shard parameters, gradients and optimizer state across processes (FSDP2).",
            rich_help_panel=DAILY,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Named settings; an unknown name lists them.",
            rich_help_panel=DATA,
            autocompletion=complete_preset,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, such as a run's tformer.yaml.", rich_help_panel=DATA),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, e.g. model.n_layers=6.", rich_help_panel=DATA
        ),
    ] = None,
    val_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Validate on this file or folder (repeatable), and train on all of DATA.",
            rich_help_panel=DATA,
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column or field that holds the text (.jsonl, .csv, .tsv, .parquet). Default: text.",
            rich_help_panel=DATA,
        ),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What counts as a document, each followed by an end-of-text token: none, line, paragraph, "
            "file (in a table: row), or the separator line. Default: detected from the text.",
            rich_help_panel=DATA,
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='LAMBADA passages, one {"text": …} per line: at every evaluation, log the loss of their '
            "last words to metrics.jsonl and loss.svg.",
            rich_help_panel=DATA,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Print parameters, FLOPs, memory, disk and time instead of training.",
            rich_help_panel=COSTS,
        ),
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(help="With --estimate: number of GPUs.", rich_help_panel=COSTS, show_default=False),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            help="With --estimate: GPU model; an unknown name lists the choices.", rich_help_panel=COSTS
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a model on DATA and write a run directory that transformers can load as is.

    Shows loss, throughput and time left. Ctrl-C finishes the step and saves; --resume continues.
    """
    began = time.perf_counter()
    sources = data or unasked("a text")
    if not sources:
        advice = "try: tformer train reversal"
        if resume or init_from:
            advice = "name that of the run again" if resume else "name a text to train it on"
        raise RequestError("no DATA", "expected a corpus, files, a folder or -", advice)
    if "reversal" in sources and len(sources) > 1:
        raise RequestError("reversal is a task of its own", f"found {' '.join(sources)}", "give it alone")
    if len(sources) == 1:
        refuse_address(sources[0], "tformer train -")
    if overwrite and out is None:
        raise RequestError("--overwrite without --out", "", "say which run to replace: --out DIR")
    if resume and overwrite:
        raise RequestError("--resume and --overwrite contradict each other", "", "leave one out")
    from tformer.layers import file_layer, flag_layer

    flags = {
        "data.tokenizer": tokenizer,
        "data.field": field,
        "data.documents": documents,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.patience": patience,
        "train.seed": seed,
        "train.precision": precision,
        "train.compile": None if compile is None else ("on" if compile else "off"),
        "train.shard": shard,
    }
    if not estimate and (gpus is not None or accelerator):
        raise RequestError("--gpus and --accelerator are for --estimate", "", "add --estimate")
    if estimate and minutes is not None:
        raise RequestError("--minutes with --estimate", "", "leave --minutes out: say how many --steps")
    layers = [file_layer(config)] if config else []
    layers.append(flag_layer(set_ or [], flags))
    check_minutes(minutes, layers[-1])
    from tformer.ranks import own_device, ranks_of_torchrun
    from tformer.training.plan import TrainRequest

    ranks = ranks_of_torchrun()
    request = TrainRequest(
        sources,
        layers,
        preset,
        device=own_device(device, ranks),
        out=out,
        resume=resume,
        overwrite=overwrite,
        init_from=init_from,
        val_data=val_data or (),
        eval_data=eval_data,
        minutes=minutes,
        ranks=ranks,
        elsewhere=gpus is not None or bool(accelerator),
        began=began,
    )
    if estimate and ranks.are_several:
        raise RequestError(f"--estimate with {ranks.world} processes", "", "--gpus N plans for them")
    if not ranks.is_first:
        follow_first(request)
        return
    if estimate:
        _estimate(request, gpus, accelerator, json)
        return
    with ExitStack() as stack:
        passed = _train(_open(request, stack), json)
    if not passed:
        raise typer.Exit(1)


def check_minutes(minutes: float | None, command_line: "Layer") -> None:
    """--minutes is a time, and the only thing on the command line that says how many steps."""
    if minutes is None:
        return
    if not 0 < minutes < float("inf"):
        raise RequestError(f"--minutes {minutes:g}", "expected a number above 0")
    if "steps" in command_line.values.get("train", {}):
        raise RequestError("--minutes and train.steps both fix the steps", "", "leave one out")


def _estimate(request: "TrainRequest", gpus: int | None, accelerator: str | None, json: bool) -> None:
    """What the run would cost, on stdout."""
    from tformer.fast.memory import keep_freed_memory
    from tformer.show import terminal
    from tformer.show.estimate import estimate_table
    from tformer.show.progress import ReadingProgress
    from tformer.show.training import drawing_seconds
    from tformer.training.estimate import estimate
    from tformer.training.opening import prepare
    from tformer.training.plan import plan_training

    keep_freed_memory()
    plan = plan_training(request)
    for note in plan.notes:
        terminal.say(note)
    with ReadingProgress(plan.name) as reading:
        prepared = prepare(plan, reading.downloaded, reading.encoded)
    if gpus is None and accelerator is None:
        drawing_seconds()  # what draws is held in memory, too
    found = estimate(prepared, plan.folder, gpus, accelerator, plan.config.train.precision, plan.resuming)
    if json:
        print_json(found.as_dict())
    else:
        estimate_table(found, terminal.out())


def _open(request: "TrainRequest", stack: ExitStack) -> "Session":
    """The session of a request, introduced; its run is locked until the stack ends.

    What it was built from is let go: with --init-from, that is a second copy of the weights.
    """
    import torch

    from tformer.fast.memory import keep_freed_memory
    from tformer.ranks import together
    from tformer.show import terminal
    from tformer.show.progress import ReadingProgress
    from tformer.show.training import drawing_seconds, introduce
    from tformer.training.following import lead
    from tformer.training.opening import open_session, prepare
    from tformer.training.plan import locked, plan_training

    torch.set_flush_denormal(True)
    keep_freed_memory()
    plan = plan_training(request)
    for note in plan.notes:
        terminal.say(note)
    with ReadingProgress(plan.name) as reading:
        prepared = prepare(plan, reading.downloaded, reading.encoded)
    stack.enter_context(together(plan.request.ranks, plan.device))
    run = stack.enter_context(locked(plan))
    before = plan.recorded.result.steps if plan.recorded.result else None  # None: it is not at its end
    if prepared.config.train.compile == "on" and (before is None or before < prepared.config.train.steps):
        terminal.say("compiling the model, once, before it trains")
    session = open_session(run, prepared, drawing_seconds() if prepared.limit else 0.0)
    session = lead(session, plan.device)
    introduce(session, plan)
    return session


def _train(session: "Session", json: bool) -> bool:
    """Train, judge, show how it went. Whether the verdict, where there is one, is favourable.

    Raises Stopped for a signal, after the step that it comes in; in the last one or later, when all is done.
    """
    from tformer.show import terminal
    from tformer.show.training import Pictures, draw

    folder, pictures = session.run.folder, Pictures(session)
    with signals_noted(session.ranks) as seen:
        if not _take_steps(session, pictures, seen):
            pictures.attempt(draw)
            step, again = session.state.step, "continue with the same command and --resume"
            terminal.say(f"stopped after step {step}; {folder} is saved: {again}")
            session.ranks.meet()
            raise Stopped(seen[0] if seen else signal.SIGTERM)  # another process was told
        seen.answer = "finishing the run"
        passed = finish(session, pictures, json)
        if seen:
            terminal.say(f"{folder} is finished: there is nothing to resume")
            raise Stopped(seen[0])
    return passed


def _take_steps(session: "Session", pictures: "Pictures", seen: Noted) -> bool:
    """Whether all were taken that there are."""
    from tformer.show.progress import TrainingProgress
    from tformer.training.fit import has_steps_left

    with TrainingProgress(session.config.train.steps, session.state.step) as shown, session.rescued():
        for done in session.train(stop=lambda: bool(seen)):
            shown.update(done, session.config.train.steps)
            pictures.refresh()
    return not has_steps_left(session.state, session.config.train)
