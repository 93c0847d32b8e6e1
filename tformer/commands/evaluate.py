"""`tformer eval`: judge a run. Each task is a function that says its result and whether it passed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.eval_attention import attention, check_out
from tformer.commands.eval_lambada import lambada
from tformer.commands.eval_loss import loss
from tformer.commands.evaluation import Outcome, Request
from tformer.commands.options import Device, Json, Run, at_least, print_json
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.data import Reversal


def command(
    task: Annotated[
        str | None,
        typer.Argument(
            help="loss, reversal, lambada, causality or attention; if left out, reversal for a run on it, "
            "else loss.",
            show_default=False,
        ),
    ] = None,
    run: Run = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="For loss: score all of this text instead of the run's validation part. For attention: "
            "show its beginning. For lambada: passages, as JSON lines, instead of the test set."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="For lambada: only the first passages.")] = None,
    n: Annotated[int, typer.Option("-n", help="For reversal: how many fresh sequences.")] = 2000,
    prompt: Annotated[str | None, typer.Option(help="For attention: the text to show.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="For attention: a picture of every head, .svg or .png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    positions: Annotated[
        int, typer.Option(help="For causality: how many positions to change, evenly spread.")
    ] = 64,
    seed: Annotated[
        int, typer.Option(help="For reversal and causality: which fresh sequences or tokens.")
    ] = 1,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Judge a run: cross-entropy, perplexity and bits per byte; accuracy on the reversal task; the last
    words of LAMBADA; whether any logit depends on a later token; where each head looks, and which heads
    carry the reversal.

    Examples: tformer eval; tformer eval loss --run shakespeare --data my.txt; tformer eval causality --json;
    tformer eval attention --prompt "To be, or not to be" --out heads.svg.
    """
    if task is not None and task not in TASKS:
        raise RequestError(f"no evaluation {task!r}", f"expected {', '.join(TASKS)}")
    if precision not in ("fp32", "bf16"):
        raise RequestError(f"--precision {precision}", "expected fp32 or bf16")
    if task != "attention" and (prompt is not None or out is not None):
        raise RequestError("--prompt and --out are for attention", "", "tformer eval attention")
    if task != "lambada" and limit is not None:
        raise RequestError("--limit is for lambada", "", "tformer eval lambada")
    check_out(out, overwrite)
    at_least("-n", n, 1)
    at_least("--limit", limit, 1)
    at_least("--positions", positions, 1)
    at_least("--seed", seed, 0)
    from tformer import render
    from tformer.device import resolve_device
    from tformer.huggingface import load_model
    from tformer.runs import find_run, newest_run, read_record, task_of

    resolved = resolve_device(device)
    wanted = {"loss": "text", "lambada": "text", "reversal": "reversal"}.get(task or ("loss" if data else ""))
    if run is None:
        folder = newest_run(lambda r: wanted in (None, task_of(r)), f"a run on {wanted or 'anything'}")
        render.say(f"using {folder}")
    else:
        folder = find_run(run)
    record = read_record(folder)
    task = task or ("loss" if data else "reversal" if task_of(record) == "reversal" else "loss")
    model = load_model(folder, resolved)
    request = Request(folder, record, model, data or [], prompt, out, n, positions, seed, precision, limit)
    outcome = TASKS[task](request)
    if json:
        print_json({"run": str(folder)} | outcome.result)
    else:
        outcome.show(render.out())
    if outcome.kept and record:  # a foreign directory is left as it is
        from tformer.report import keep_eval, write_page

        try:
            keep_eval(folder, task, outcome.result, outcome.on)
            write_page(folder, model)
        except OSError as error:
            render.warn(f"the result is not kept in {folder}: {error.strerror or error}")
    if not outcome.passed:
        raise typer.Exit(1)


def _task(folder: Path, record: dict[str, Any]) -> "Reversal":
    from tformer.runner import recorded_reversal

    task = recorded_reversal(record, str(folder / "tformer.yaml"))
    if task is None:
        raise RequestError(f"{folder} is not a run on reversal", "", "train one with: tformer train reversal")
    return task


def _reversal(request: Request) -> Outcome:
    from tformer import evaluate, render

    task = _task(request.folder, request.record)
    result = evaluate.reversal(request.model, task, request.n, request.precision, index=request.seed)
    return Outcome(
        asdict(result), lambda console: render.reversal_table(result, console), result.passed,
        on=f"{result.positions[0].n:,} fresh sequences",
    )  # fmt: skip


def _causality(request: Request) -> Outcome:
    from tformer import render
    from tformer.causality import causality
    from tformer.progress import steps_progress

    with steps_progress("changing tokens") as shown:
        result = causality(request.model, request.positions, request.precision, request.seed, shown)
    return Outcome(asdict(result), lambda console: render.causality_picture(result, console), result.passed)


def _attention(request: Request) -> Outcome:
    from tformer.runs import task_of

    is_reversal = task_of(request.record) == "reversal"
    return attention(request, _task(request.folder, request.record) if is_reversal else None)


TASKS: dict[str, Callable[[Request], Outcome]] = {
    "loss": loss,
    "reversal": _reversal,
    "lambada": lambada,
    "causality": _causality,
    "attention": _attention,
}
