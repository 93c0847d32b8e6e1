"""`tformer eval`: judge a run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.eval_attention import attention, check_out
from tformer.commands.options import Device, Json, Run, at_least, print_json
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.data import Reversal
    from tformer.model import Transformer
    from tformer.tokenizer import Tokenizer

TASKS = ("loss", "reversal", "attention")


def command(
    task: Annotated[
        str | None,
        typer.Argument(
            help="loss, reversal or attention; the judgement that suits the run if left out.",
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
    prompt: Annotated[str | None, typer.Option(help="For attention: the text to show.")] = None,
    n: Annotated[int, typer.Option("-n", help="On reversal: how many fresh sequences.")] = 2000,
    seed: Annotated[int, typer.Option(help="On reversal: which fresh sequences.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="For attention: a picture of every head, .svg or .png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Judge a run: cross-entropy, perplexity and bits per byte, or accuracy on the reversal task.

    attention shows where each head looks, and which heads carry the reversal.
    Examples: tformer eval; tformer eval loss --run shakespeare --data my.txt; tformer eval reversal --json;
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
    at_least("--seed", seed, 0)
    from tformer import render
    from tformer.device import resolve_device
    from tformer.huggingface import load_model
    from tformer.runs import find_run, newest_run, read_record, task_of
    from tformer.tokenizer import Tokenizer

    resolved = resolve_device(device)
    wanted = {"loss": "text", "reversal": "reversal"}.get(task or ("loss" if data else ""))
    if run is None:
        folder = newest_run(lambda r: wanted in (None, task_of(r)), f"a run on {wanted or 'anything'}")
        render.say(f"using {folder}")
    else:
        folder = find_run(run)
    record = read_record(folder)
    task = task or ("loss" if data else "reversal" if task_of(record) == "reversal" else "loss")
    model, tokenizer = load_model(folder, resolved), Tokenizer.load(folder)
    passed = True
    if task == "loss":
        _loss(folder, record, model, tokenizer, data, precision, json)
    elif task == "attention":
        reversal = _task(folder, record) if task_of(record) == "reversal" else None
        attention(folder, model, tokenizer, reversal, prompt, data, n, seed, out, json)
    else:
        passed = _reversal(folder, record, model, n, seed, precision, json)
    if not passed:
        raise typer.Exit(1)


def _loss(
    folder: Path, record: dict[str, Any], model: "Transformer", tokenizer: "Tokenizer",
    data: Sequence[str] | None, precision: str, json: bool,
) -> None:  # fmt: skip
    from tformer import evaluate, render
    from tformer.corpus import load_corpus
    from tformer.data import load_token_file, split_text

    validation = not data
    sources = list(data) if data else _recorded_sources(folder, record)
    fraction = float((record.get("data") or {}).get("val_fraction", 0.1)) if validation else 1.0
    if len(sources) == 1 and sources[0].endswith(".npy"):
        ids = load_token_file(Path(sources[0]), tokenizer.vocab_size)
        ids = ids[int((1 - fraction) * len(ids)) :]
    else:
        corpus = load_corpus(sources)
        expected = (record.get("record") or {}).get("data", {}).get("sha256")
        if validation and corpus.sha256 != expected:
            raise RequestError(
                f"the data of {folder} has changed", "its sha256 is not the one recorded", "give --data FILE"
            )
        ids = tokenizer.encode_array([split_text(corpus.text, fraction).val])
    with render.steps_progress("scoring") as progress:
        result = evaluate.loss(model, ids, tokenizer.n_bytes, precision, progress)
    if json:
        values = asdict(result) | {"run": str(folder), "perplexity": result.perplexity}
        print_json(values)
        return
    facts = {
        "run": str(folder),
        "text": "its validation part" if validation else " ".join(sources),
        "tokens": f"{result.tokens:,} scored, {result.bytes:,} bytes",
        "cross-entropy": f"{result.loss:.4f} nats per token",
        "perplexity": f"{result.perplexity:.3f}",
        "bits per byte": f"{result.bits_per_byte:.4f}",
    }
    render.loss_table(facts, result, render.out())


def _recorded_sources(folder: Path, record: dict[str, Any]) -> list[str]:
    sources = (record.get("record") or {}).get("data", {}).get("source")
    if not sources:
        raise RequestError(f"{folder} does not say what it was trained on", "", "give --data FILE")
    if "-" in sources:
        raise RequestError(f"{folder} was trained on standard input", "", "give --data FILE")
    return list(sources)


def _task(folder: Path, record: dict[str, Any]) -> "Reversal":
    from tformer.config import Config
    from tformer.runner import reversal_task
    from tformer.runs import task_of

    if task_of(record) != "reversal":
        raise RequestError(f"{folder} is not a run on reversal", "", "train one with: tformer train reversal")
    return reversal_task(Config.model_validate({s: record[s] for s in Config.model_fields}))


def _reversal(
    folder: Path, record: dict[str, Any], model: "Transformer", n: int, seed: int, precision: str, json: bool
) -> bool:
    from tformer import evaluate, render

    result = evaluate.reversal(model, _task(folder, record), n, precision, index=seed)
    if json:
        print_json({"run": str(folder)} | asdict(result))
    else:
        render.reversal_table(result, render.out())
    return result.passed
