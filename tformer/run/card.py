"""The model card of a run: README.md with the front matter of the Hugging Face Hub.

Written when a run comes to its end, and never over one that a person has edited: `tformer.yaml` keeps the
sha256 of what was written. Names of files are in it, and no paths: it is there to be published. Of a licence
it says nothing, which is for whoever publishes.
"""

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Any

from tformer.config import Config
from tformer.counted import counted
from tformer.errors import harmless
from tformer.files import finite, write_file
from tformer.run.huggingface import READ_SINCE
from tformer.run.record import Origin, Record
from tformer.yaml_text import dump_yaml

CARD = "README.md"
MOST_SOURCES = 5  # sources, at most
UNIT_OF = {"val_loss": "nats per token", "bits_per_byte": "bits per byte"}


def keep_card(folder: Path, config: Config, record: Record) -> Record:
    """Write the card, unless a person has: the record with the sha256 of what was written.

    Raises TformerError if the system refuses.
    """
    path = folder / CARD
    text = model_card(folder.resolve().name, config, record).encode(errors="backslashreplace")
    if os.path.lexists(path):
        there = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        if there is None or (there != text and hashlib.sha256(there).hexdigest() != record.card):
            return record
    write_file(path, text)
    return record.updated(card=hashlib.sha256(text).hexdigest())


def model_card(name: str, config: Config, record: Record) -> str:
    """The card of a run that is at its end."""
    title = _plain(name) or "model"
    parts = [
        f"---\n{dump_yaml(_front_matter(title, config, record)).strip()}\n---",
        f"# {title}",
        _what_it_is(config, record),
        _use(config),
        _training(config, record),
        _loss(config, record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------------------- for the Hub


def _front_matter(title: str, config: Config, record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tformer", config.model.family],
    }
    if record.init_from and record.init_from.commit:
        values["base_model"] = record.init_from.source
    if metrics := _metrics(record):
        dataset = {"name": ", ".join(_sources(record)), "type": "text", "split": "validation"}
        task = {"type": "text-generation", "name": "Text generation"}
        results = [{"task": task, "dataset": dataset, "metrics": metrics}]
        values["model-index"] = [{"name": title, "results": results}]
    return values


def _metrics(record: Record) -> list[dict[str, Any]]:
    """The validation figures that are known."""
    result = record.result
    if result is None or result.val_loss is None or finite(result.val_loss) is None:
        return []
    metrics: list[dict[str, Any]] = [
        {"type": "loss", "name": "Validation loss (nats per token)", "value": round(result.val_loss, 4)}
    ]
    if result.val_loss < 30:  # beyond that it is no number that says anything
        perplexity = round(math.exp(result.val_loss), 4)
        metrics.append({"type": "perplexity", "name": "Validation perplexity", "value": perplexity})
    if result.bits_per_byte is not None and finite(result.bits_per_byte) is not None:
        bits = round(result.bits_per_byte, 4)
        metrics.append({"type": "bits_per_byte", "name": "Validation bits per byte", "value": bits})
    return metrics


# ---------------------------------------------------------------------------- for people


def _what_it_is(config: Config, record: Record) -> str:
    version = record.versions.get("tformer")
    by = f"tformer {version}" if version else "tformer"
    sources = ", ".join(_code(name) for name in _sources(record))
    began = f"from the weights of {_origin(record.init_from)}" if record.init_from else "from random weights"
    size = (
        f" of {record.result.parameters:,} parameters" if record.result and record.result.parameters else ""
    )
    return (
        f"A decoder-only transformer{size} in the layout `{config.model.family}`, "
        f"trained {began} on {sources} with {by}."
    )


def _use(config: Config) -> str:
    since = READ_SINCE[config.model.family].removesuffix(".0")
    return f"""## Use

With transformers {since} or newer:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this directory, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
inputs = tokenizer("PROMPT", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```

With tformer: `tformer sample "PROMPT" --run .`"""


def _training(config: Config, record: Record) -> str:
    model, train, data = config.model, config.train, record.data
    layers, windows = counted(model.n_layers, "layer"), counted(train.batch_size, "window")
    heads = counted(model.n_heads, "head") + (f" ({model.n_kv_heads} of keys)" if _is_grouped(config) else "")
    rows = {
        "text": ", ".join(_code(name) for name in _sources(record)),
        "tokens of the text": f"{data.train_tokens:,}" if data.train_tokens is not None else "",
        "tokens for validation": f"{data.val_tokens:,}" if data.val_tokens is not None else "",
        "tokenizer": f"{record.tokenizer.kind}, {record.tokenizer.size:,} ids"
        if record.tokenizer and record.tokenizer.size
        else "",
        "model": f"{layers} of {model.d_model}, {heads}, {model.positions} positions",
        "context": f"{model.n_ctx:,} tokens",
        "optimizer": f"{train.optimizer}, learning rate {train.lr:g}, {windows} a step",
        "steps": f"{record.result.steps:,}, {record.result.tokens:,} tokens"
        if record.result and record.result.steps is not None and record.result.tokens is not None
        else "",
        "precision": f"{train.precision} on {record.device or 'cpu'}",
        "seed": str(train.seed),
        "preset": record.preset or "",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _loss(config: Config, record: Record) -> str:
    metrics = _metrics(record)
    if not metrics or record.result is None:
        return ""
    on = "fresh sequences" if record.task == "reversal" else "the part of the text that was kept for it"
    lines = [f"- {metric['name']}: {metric['value']:g}" for metric in metrics]
    kept = record.result.kept_step
    told = f"Measured on {on}" + (f", with the weights of step {kept:,}." if kept is not None else ".")
    more = record.result.model_extra or {}
    band, of = more.get("expected"), more.get("expected_of")
    if not isinstance(band, list) or not {type(end) for end in band} <= {int, float}:
        band = []
    if len(band) == 2 and isinstance(of, str) and of in UNIT_OF:
        told += f" The preset ends at {band[0]:g} to {band[1]:g} {UNIT_OF[of]}."
    return "\n".join(["## Loss", "", *lines, "", told])


def _is_grouped(config: Config) -> bool:
    return config.model.n_kv_heads not in (0, config.model.n_heads)


def _origin(origin: Origin) -> str:
    """A name on the Hub with its commit; of a directory its name alone."""
    if origin.commit:
        return f"{_code(origin.source)} at `{origin.commit[:12]}`"
    return _code(_last(origin.source))


def _sources(record: Record) -> list[str]:
    """What it was trained on, without the folders that lead there."""
    names = ["standard input" if source == "-" else _plain(_last(source)) for source in record.data.source]
    names = [name for name in names if name]
    if not names:
        return ["reversal" if record.task == "reversal" else "a text"]
    return names[:MOST_SOURCES] + (
        [f"{len(names) - MOST_SOURCES:,} more"] if len(names) > MOST_SOURCES else []
    )


def _last(path: str) -> str:
    return next((part for part in reversed(re.split(r"[/\\]", path)) if part), path)


def _plain(text: str) -> str:
    """Text of others, on one line of a page."""
    return re.sub(r"[<>|`\[\]]", "'", " ".join(harmless(text).split()))


def _code(text: str) -> str:
    return f"`{_plain(text)}`"
