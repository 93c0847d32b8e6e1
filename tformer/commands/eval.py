"""`tformer eval`: judge a run. Each task is a function that says its result and whether it passed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tformer.commands.eval_attention import attention
from tformer.commands.eval_generations import check_sampling, generations
from tformer.commands.eval_lambada import lambada
from tformer.commands.eval_loss import compare, loss
from tformer.commands.evaluation import FRESH, Outcome, Request, keep
from tformer.commands.options import Device, Json, Runs, at_least, completes, print_json, refuse_existing
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.run.loaded import LoadedRun
    from tformer.text.data import Reversal

TEXTS, SCORES = "Sequences, prompts and samples", "How much of it, for loss, lambada and causality"

EXAMPLES = (
    "tformer eval",
    "tformer eval loss --run shakespeare --data my.txt",
    "tformer eval loss --run small --run large",
    "tformer eval loss --tokens 300 --out loss.html",
    "tformer eval causality --json",
    'tformer eval attention --prompt "To be, or not to be" --out heads.svg',
    "tformer eval generations --temperature 0.7 --temperature 1",
    "tformer eval lambada --run shakespeare --limit 500",
)


OPTIONS = {  # and the tasks that take them; --run, --device and --json are for all
    "data": ("loss", "lambada", "attention", "generations"),
    "n": ("reversal", "attention", "generations"),
    "seed": ("reversal", "causality", "attention", "generations"),
    "positions": ("causality",),
    "prompt": ("attention", "generations"),
    "temperature": ("generations",),
    "max_tokens": ("generations",),
    "limit": ("lambada",),
    "tokens": ("loss",),
    "out": ("loss", "attention"),
    "overwrite": ("loss", "attention"),
    "precision": ("loss", "reversal", "lambada", "causality", "generations"),
}


def command(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Argument(
            help="loss, reversal, lambada, causality, attention or generations; if left out, reversal for a "
            "run on it, else loss.",
            show_default=False,
            autocompletion=lambda incomplete: [name for name in TASKS if name.startswith(incomplete)],
        ),
    ] = None,
    run: Runs = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="For loss: score all of this text instead of the run's validation part. For attention: "
            "show its beginning. For generations: compare with this text instead of the run's own. For "
            'lambada: passages, {"text": …} a line, instead of the test set, which is downloaded once.'
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="For lambada: only so many passages, the first.", rich_help_panel=SCORES),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="For reversal and attention: how many fresh sequences (2000). For generations: "
            "samples of each prompt (4).",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="For attention: the text to show. For generations: a text to continue (repeatable); if "
            "left out, beginnings of lines of the validation text.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="For generations: one to sample at (repeatable); 0.5, 0.8 and 1 if left out.",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="For generations: tokens of each sample.", rich_help_panel=TEXTS)
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option(
            help="For attention: a picture of every head, .svg or .png. For loss: a page with the curve and "
            "the text in colours, .html."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="For loss: show the first so many tokens, coloured by their loss, and the hardest and "
            "easiest of the text.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    positions: Annotated[
        int,
        typer.Option(
            help="For causality: how many positions to change, evenly spread.", rich_help_panel=SCORES
        ),
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(
            help="For reversal and causality: which fresh sequences or tokens. For generations: which "
            "prompts, and the seed of the first sample."
        ),
    ] = 1,
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16.", autocompletion=completes("fp32", "bf16"))
    ] = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Judge a run, or any Hugging Face directory of the two families.

    loss         cross-entropy, perplexity, bits per byte; several --run: a table
    reversal     accuracy by position, and the verdict on the mask
    lambada      whether the last word of a passage is predicted
    causality    whether any logit depends on a later token
    attention    where each head looks, and which heads carry the reversal
    generations  what it writes, measured beside real text

    A check that fails is exit code 1.
    """
    if task is not None and task not in TASKS:
        raise RequestError(f"no evaluation {task!r}", f"expected {', '.join(TASKS)}")
    if precision not in ("fp32", "bf16"):
        raise RequestError(f"--precision {precision}", "expected fp32 or bf16")
    if task is None and (data or out is not None or tokens is not None or len(run or ()) > 1):
        task = "loss"
    if task is not None:
        check_options(context, task)
    check_out(task, out, overwrite)
    if tokens is not None and len(run or ()) > 1:
        raise RequestError("--tokens is for one run", f"found {len(run or ())}", "leave it out, or name one")
    at_least("--tokens", tokens, 1)
    at_least("-n", n, 1)
    at_least("--limit", limit, 1)
    at_least("--positions", positions, 1)
    at_least("--seed", seed, 0)
    check_sampling(task, n, temperature or [], max_tokens)
    from tformer.device import resolve_device
    from tformer.run.find import newest_run
    from tformer.run.loaded import load_run
    from tformer.run.record import read_record
    from tformer.show import terminal

    resolved = resolve_device(device)
    suits = dict.fromkeys(("loss", "lambada", "generations"), "text") | {"reversal": "reversal"}
    wanted = suits.get(task or "")
    folders = find_runs(run or [], task)
    if not folders:
        folders = [
            newest_run(lambda record: wanted in (None, record.task), f"a run on {wanted or 'anything'}")
        ]
        terminal.say(f"using {folders[0]}")

    def request_of(folder: Path) -> Request:
        return Request(
            load_run(folder, resolved),
            data or [],
            prompt or [],
            out,
            n,
            positions,
            seed,
            precision,
            tokens=tokens,
            temperatures=temperature or [],
            max_tokens=max_tokens,
            limit=limit,
        )

    if len(folders) > 1:
        results, show = compare(
            folders, data or [], out, request_of, lambda request, found: keep(request, "loss", found)
        )
        for result in results if json else ():
            print_json(result)
        if not json:
            show(terminal.out())
        return
    if task is None:
        task = "reversal" if read_record(folders[0]).task == "reversal" else "loss"
        check_options(context, task)
    request = request_of(folders[0])
    outcome = TASKS[task](request)
    if json:
        print_json({"run": str(request.run.folder)} | outcome.result | outcome.also)
    else:
        outcome.show(terminal.out())
    keep(request, task, outcome)
    if not outcome.passed:
        raise typer.Exit(1)


OUT = {"attention": (".svg", ".png"), "loss": (".html",)}


def check_out(task: str | None, out: Path | None, overwrite: bool) -> None:
    """Raises RequestError for a file that cannot be written, before any work."""
    if out is None:
        return
    allowed = OUT[task or "loss"]
    if out.suffix not in allowed:
        raise RequestError(f"--out {out}", f"for {task} a name ending in {' or '.join(allowed)} is expected")
    refuse_existing(out, overwrite)


def check_options(context: typer.Context, task: str) -> None:
    """Raises RequestError for an option that was given and that the task has no use for."""
    for name, tasks in OPTIONS.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and task not in tasks:
            option = "-n" if name == "n" else f"--{name.replace('_', '-')}"
            raise RequestError(
                f"{option} with eval {task}",
                f"it is for {', '.join(tasks)}",
                "leave it out, or name one of them",
            )


def find_runs(names: list[str], task: str | None) -> list[Path]:
    """The directories of `--run`. Raises RequestError for more than a task takes, and for one named twice."""
    from tformer.run.find import find_run

    if len(names) > 1 and task != "loss":
        raise RequestError(f"--run given {len(names)} times", f"expected one for {task}; loss takes several")
    folders = [find_run(name) for name in names]
    real = [folder.resolve() for folder in folders]
    for name, folder in zip(names, real, strict=True):
        if real.count(folder) > 1:
            raise RequestError(f"--run {name} is given twice", "expected different runs")
    return folders


def _task(run: "LoadedRun") -> "Reversal":
    if run.reversal is None:
        raise RequestError(
            f"{run.folder} is not a run on reversal", "", "train one with: tformer train reversal"
        )
    return run.reversal


def _reversal(request: Request) -> Outcome:
    from tformer.evals.reversal import reversal
    from tformer.show import terminal

    task = _task(request.run)
    result = reversal(request.run.model, task, request.n or FRESH, request.precision, index=request.seed)
    return Outcome(
        asdict(result),
        lambda console: terminal.reversal_table(result, console),
        result.passed,
        on=f"{result.positions[0].n:,} fresh sequences",
    )


def _causality(request: Request) -> Outcome:
    from tformer.evals.causality import causality
    from tformer.show import terminal
    from tformer.show.progress import steps_progress

    with steps_progress("changing tokens") as shown:
        result = causality(request.run.model, request.positions, request.precision, request.seed, shown)
    return Outcome(asdict(result), lambda console: terminal.causality_picture(result, console), result.passed)


def _attention(request: Request) -> Outcome:
    return attention(request, request.run.reversal)


TASKS: dict[str, Callable[[Request], Outcome]] = {
    "loss": loss,
    "reversal": _reversal,
    "lambada": lambada,
    "causality": _causality,
    "attention": _attention,
    "generations": generations,
}
