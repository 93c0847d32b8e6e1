"""`tformer eval`: judge a run. Each task is a function that says its result and whether it passed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.eval_attention import attention, check_out
from tformer.commands.eval_generations import check_sampling, generations
from tformer.commands.eval_loss import loss
from tformer.commands.evaluation import FRESH, Outcome, Request
from tformer.commands.options import Device, Json, Run, at_least, print_json
from tformer.errors import RequestError, TformerError

if TYPE_CHECKING:
    from tformer.data import Reversal

EXAMPLES = (
    "tformer eval",
    "tformer eval loss --run shakespeare --data my.txt",
    "tformer eval causality --json",
    'tformer eval attention --prompt "To be, or not to be" --out heads.svg',
    "tformer eval generations --temperature 0.7 --temperature 1",
)


def command(
    task: Annotated[
        str | None,
        typer.Argument(
            help="loss, reversal, causality, attention or generations; if left out, reversal for a run on "
            "it, else loss.",
            show_default=False,
        ),
    ] = None,
    run: Run = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="For loss: score all of this text instead of the run's validation part. For attention: "
            "show its beginning. For generations: compare with this text instead of the run's own."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="For reversal and attention: how many fresh sequences (2000). For generations: "
            "samples of each prompt (4).",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="For attention: the text to show. For generations: a text to continue (repeatable); if "
            "left out, beginnings of lines of the validation text."
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="For generations: one to sample at (repeatable); 0.5, 0.8 and 1 if left out.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="For generations: tokens of each sample.")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="For attention: a picture of every head, .svg or .png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    positions: Annotated[
        int, typer.Option(help="For causality: how many positions to change, evenly spread.")
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(
            help="For reversal and causality: which fresh sequences or tokens. For generations: which "
            "prompts, and the seed of the first sample."
        ),
    ] = 1,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Judge a run, or any Hugging Face directory of the two families.

    loss: cross-entropy, perplexity, bits per byte. reversal: accuracy by position, and the verdict on the
    mask. causality: whether any logit depends on a later token. attention: where each head looks, and
    which heads carry the reversal. generations: what it writes at several temperatures, measured beside
    real text. A check that fails is exit code 1.
    """
    if task is not None and task not in TASKS:
        raise RequestError(f"no evaluation {task!r}", f"expected {', '.join(TASKS)}")
    if precision not in ("fp32", "bf16"):
        raise RequestError(f"--precision {precision}", "expected fp32 or bf16")
    if task != "attention" and out is not None:
        raise RequestError("--out is for attention", "", "tformer eval attention")
    if task not in ("attention", "generations") and prompt:
        raise RequestError("--prompt is for attention and generations", "", "name one of them")
    if task != "generations" and temperature:
        raise RequestError("--temperature is for generations", "", "tformer eval generations")
    check_out(out, overwrite)
    at_least("-n", n, 1)
    at_least("--positions", positions, 1)
    at_least("--seed", seed, 0)
    check_sampling(task, n, temperature or [], max_tokens)
    from tformer import render
    from tformer.device import resolve_device
    from tformer.huggingface import load_model
    from tformer.runs import find_run, newest_run, read_record, task_of

    resolved = resolve_device(device)
    wanted = {"loss": "text", "generations": "text", "reversal": "reversal"}.get(
        task or ("loss" if data else "")
    )
    if run is None:
        folder = newest_run(lambda r: wanted in (None, task_of(r)), f"a run on {wanted or 'anything'}")
        render.say(f"using {folder}")
    else:
        folder = find_run(run)
    record = read_record(folder)
    task = task or ("loss" if data else "reversal" if task_of(record) == "reversal" else "loss")
    model = load_model(folder, resolved)
    request = Request(
        folder, record, model, data or [], prompt or [], out, n, positions, seed, precision,
        temperatures=temperature or [], max_tokens=max_tokens,
    )  # fmt: skip
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
        except (OSError, TformerError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            render.warn(f"the result is not kept in {folder}: {why or error}")
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
    result = evaluate.reversal(request.model, task, request.n or FRESH, request.precision, index=request.seed)
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
    "causality": _causality,
    "attention": _attention,
    "generations": generations,
}
