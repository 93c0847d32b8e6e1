"""`tformer eval`: judge a run. Each task is a function that says its result and whether it passed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.eval_attention import attention, check_out
from tformer.commands.options import Device, Json, Run, at_least, print_json
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.data import Reversal
    from tformer.model import Transformer


@dataclass(frozen=True)
class Request:
    """What every task gets: the run that is judged, and the options."""

    folder: Path
    record: dict[str, Any]
    model: "Transformer"
    data: list[str]
    prompt: str | None
    out: Path | None
    n: int
    positions: int
    seed: int
    precision: str
    json: bool


def command(
    task: Annotated[
        str | None,
        typer.Argument(
            help="loss, reversal, causality or attention; if left out, reversal for a run on it, else loss.",
            show_default=False,
        ),
    ] = None,
    run: Run = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="For loss: score all of this text instead of the run's validation part. For attention: "
            "show its beginning."
        ),
    ] = None,
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
    """Judge a run: cross-entropy, perplexity and bits per byte; accuracy on the reversal task; whether
    any logit depends on a later token; where each head looks, and which heads carry the reversal.

    Examples: tformer eval; tformer eval loss --run shakespeare --data my.txt; tformer eval causality --json;
    tformer eval attention --prompt "To be, or not to be" --out heads.svg.
    """
    if task is not None and task not in TASKS:
        raise RequestError(f"no evaluation {task!r}", f"expected {', '.join(TASKS)}")
    if precision not in ("fp32", "bf16"):
        raise RequestError(f"--precision {precision}", "expected fp32 or bf16")
    if task != "attention" and (prompt is not None or out is not None):
        raise RequestError("--prompt and --out are for attention", "", "tformer eval attention")
    check_out(out, overwrite)
    at_least("-n", n, 1)
    at_least("--positions", positions, 1)
    at_least("--seed", seed, 0)
    from tformer import render
    from tformer.device import resolve_device
    from tformer.huggingface import load_model
    from tformer.runs import find_run, newest_run, read_record, task_of

    resolved = resolve_device(device)
    wanted = {"loss": "text", "reversal": "reversal"}.get(task or ("loss" if data else ""))
    if run is None:
        folder = newest_run(lambda r: wanted in (None, task_of(r)), f"a run on {wanted or 'anything'}")
        render.say(f"using {folder}")
    else:
        folder = find_run(run)
    record = read_record(folder)
    task = task or ("loss" if data else "reversal" if task_of(record) == "reversal" else "loss")
    model = load_model(folder, resolved)
    request = Request(folder, record, model, data or [], prompt, out, n, positions, seed, precision, json)
    if not TASKS[task](request):
        raise typer.Exit(1)


def _loss(request: Request) -> bool:
    from tformer import evaluate, render
    from tformer.corpus import load_corpus
    from tformer.data import load_token_file, split_text, token_hash
    from tformer.progress import steps_progress
    from tformer.runs import check_hash, recorded_hash
    from tformer.tokenizer import Tokenizer

    folder, record, model = request.folder, request.record, request.model
    tokenizer = Tokenizer.load(folder)
    validation = not request.data
    sources = request.data or _recorded_sources(folder, record)
    fraction = float((record.get("data") or {}).get("val_fraction", 0.1)) if validation else 1.0
    if validation and fraction == 0:
        raise RequestError(
            f"{folder} keeps no text for validation", "data.val_fraction is 0", "give --data FILE"
        )
    expected = recorded_hash(record) if validation else None
    if len(sources) == 1 and sources[0].endswith(".npy"):
        ids = load_token_file(Path(sources[0]), tokenizer.vocab_size)
        check_hash(token_hash(ids), expected, "give --data FILE")
        ids = ids[int((1 - fraction) * len(ids)) :]
    else:
        corpus = load_corpus(sources)
        check_hash(corpus.sha256, expected, "give --data FILE")
        ids = tokenizer.encode_array([split_text(corpus.text, fraction).val])
    with steps_progress("scoring") as shown:
        result = evaluate.loss(model, ids, tokenizer.n_bytes, request.precision, shown)
    if request.json:
        print_json(asdict(result) | {"run": str(folder), "perplexity": result.perplexity})
        return True
    facts = {
        "run": str(folder),
        "text": "its validation part" if validation else " ".join(sources),
        "tokens": f"{result.tokens:,} scored, {result.bytes:,} bytes",
        "cross-entropy": f"{result.loss:.4f} nats per token",
        "perplexity": f"{result.perplexity:.3f}",
        "bits per byte": f"{result.bits_per_byte:.4f}",
    }
    render.loss_table(facts, result, render.out())
    return True


def _recorded_sources(folder: Path, record: dict[str, Any]) -> list[str]:
    sources = (record.get("record") or {}).get("data", {}).get("source")
    if not sources or not isinstance(sources, list):
        raise RequestError(f"{folder} does not say what it was trained on", "", "give --data FILE")
    if "-" in sources:
        raise RequestError(f"{folder} was trained on standard input", "", "give --data FILE")
    return list(sources)


def _task(folder: Path, record: dict[str, Any]) -> "Reversal":
    from tformer.runner import recorded_reversal

    task = recorded_reversal(record, str(folder / "tformer.yaml"))
    if task is None:
        raise RequestError(f"{folder} is not a run on reversal", "", "train one with: tformer train reversal")
    return task


def _reversal(request: Request) -> bool:
    from tformer import evaluate, render

    task = _task(request.folder, request.record)
    result = evaluate.reversal(request.model, task, request.n, request.precision, index=request.seed)
    if request.json:
        print_json({"run": str(request.folder)} | asdict(result))
    else:
        render.reversal_table(result, render.out())
    return result.passed


def _causality(request: Request) -> bool:
    from tformer import render
    from tformer.causality import causality
    from tformer.progress import steps_progress

    with steps_progress("changing tokens") as shown:
        result = causality(request.model, request.positions, request.precision, request.seed, shown)
    if request.json:
        print_json({"run": str(request.folder)} | asdict(result))
    else:
        render.causality_picture(result, render.out())
    return result.passed


def _attention(request: Request) -> bool:
    from tformer.runs import task_of

    is_reversal = task_of(request.record) == "reversal"
    task = _task(request.folder, request.record) if is_reversal else None
    attention(request, task)
    return True


TASKS: dict[str, Callable[[Request], bool]] = {
    "loss": _loss,
    "reversal": _reversal,
    "causality": _causality,
    "attention": _attention,
}
