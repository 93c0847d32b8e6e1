"""`tformer eval loss`: cross-entropy, perplexity and bits per byte of a text."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tformer.commands.evaluation import Outcome, Request
from tformer.errors import RequestError


def loss(request: Request) -> Outcome:
    """Score the run's validation part, or all of `--data`."""
    from tformer import evaluate, render
    from tformer.corpus import load_corpus
    from tformer.data import load_token_file, split_text, token_hash
    from tformer.huggingface import load_tokenizer
    from tformer.progress import steps_progress
    from tformer.runs import check_hash, recorded_hash

    folder, record, model = request.folder, request.record, request.model
    tokenizer = load_tokenizer(folder, model)
    validation = not request.data
    sources = request.data or recorded_sources(folder, record)
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
    facts = {
        "run": str(folder),
        "text": "its validation part" if validation else " ".join(sources),
        "tokens": f"{result.tokens:,} scored, {result.bytes:,} bytes",
        "cross-entropy": f"{result.loss:.4f} nats per token",
        "perplexity": f"{result.perplexity:.3f}",
        "bits per byte": f"{result.bits_per_byte:.4f}",
    }
    return Outcome(
        asdict(result) | {"perplexity": result.perplexity},
        lambda console: render.loss_table(facts, result, console), on=facts["text"],
    )  # fmt: skip


def recorded_sources(folder: Path, record: dict[str, Any]) -> list[str]:
    """What a run was trained on. Raises RequestError where that cannot be read again."""
    sources = (record.get("record") or {}).get("data", {}).get("source")
    if not sources or not isinstance(sources, list):
        raise RequestError(f"{folder} does not say what it was trained on", "", "give --data FILE")
    if "-" in sources:
        raise RequestError(f"{folder} was trained on standard input", "", "give --data FILE")
    return list(sources)
