"""`report.html` of a run: one page that shows how it was made, how it went, and how it was judged.

`evals.jsonl` keeps what `tformer eval` found, a line for each; the page shows those of the weights that
lie there now.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tformer.errors import RequestError, TformerError
from tformer.evals.attention import head_maps
from tformer.evals.generations import Drawn, Generations
from tformer.figures import Bars, Figure, Heat, Lines, Numbers, Series
from tformer.files import write_file
from tformer.model import Transformer
from tformer.run.data import recorded_reversal
from tformer.run.record import Evaluation, Record, read_evaluations, read_metrics, read_record, weights_hash
from tformer.show import page
from tformer.show.generations_words import columns_of, table_rows
from tformer.show.loss_words import position_figure
from tformer.show.svg import figure_svg
from tformer.text.tokenizer import Tokenizer

MOST_POINTS = 400  # of a curve
HEADS_ON_PAGE = 16
TOKENS_ON_PAGE = 32  # of the text that attention is drawn on
FACTS = {  # of a result, with what they are called
    "parameters": "parameters",
    "steps": "steps",
    "tokens": "tokens seen",
    "seconds": "seconds of training",
    "val_loss": "validation loss (nats per token)",
    "bits_per_byte": "bits per byte",
    "loss": "loss of the last step (nats per token)",
    "kept_step": "weights are of step",
}
LAMBADA_NAMES = {  # the whole word is not the last token: the page names both
    key: f"{key} of the whole last word".replace("_", " ")
    for key in ("accuracy", "accuracy_stderr", "perplexity", "perplexity_stderr")
}


def write_page(folder: Path, model: Transformer, step: int | None = None) -> None:
    """Write `report.html` of a run from what lies in it.

    `model` are its weights, to see where heads look, or those of a `step` as it trains.
    """
    page_of_run = run_html(folder, model, step)
    write_file(folder / "report.html", page_of_run.encode(errors="backslashreplace"))


def run_html(folder: Path, model: Transformer, step: int | None = None) -> str:
    """The page of a run from what lies in it; `model` are its weights, or those of a step as it trains."""
    record = read_record(folder)
    metrics = read_metrics(folder / "metrics.jsonl")
    here = weights_hash(folder) if (folder / "model.safetensors").exists() else None
    evals = [line for line in read_evaluations(folder) if here and line.weights == here]
    maps = _attention_on(folder, record, metrics, model)
    return run_page(folder.resolve().name, record, metrics, evals, maps, step)


def _attention_on(
    folder: Path, record: Record, metrics: Sequence[dict[str, Any]], model: Transformer
) -> tuple[str, np.ndarray] | None:
    """A reversal sequence, or what the model wrote last, and the weights of every head on it."""
    tokenizer = Tokenizer.load(folder)
    task = recorded_reversal(record, str(folder / "tformer.yaml"))
    samples = [m["sample"] for m in metrics if isinstance(m.get("sample"), str)]
    if task:
        ids = [int(i) for i in task.fresh(1, index=1)[0][0]]
    elif samples:
        try:
            ids = _ids_of(tokenizer, samples[-1])[: min(TOKENS_ON_PAGE, model.config.n_ctx)]
        except TformerError:  # a replacement character that its alphabet lacks
            return None
    else:
        return None
    if len(ids) < 2:
        return None
    return "".join(tokenizer.text_of(i) for i in ids), head_maps(model, ids)


def _ids_of(tokenizer: Tokenizer, sample: str) -> list[int]:
    """The ids of a line that a model wrote, in which the token at the end of a document is written out."""
    if tokenizer.end_id is None:
        return tokenizer.encode(sample)
    first, *others = map(tokenizer.encode, sample.split(tokenizer.text_of(tokenizer.end_id)))
    return first + [i for ids in others for i in (tokenizer.end_id, *ids)]


def run_page(
    name: str,
    record: Record,
    metrics: Sequence[dict[str, Any]],
    evals: Sequence[Evaluation],
    attention: tuple[str, np.ndarray] | None = None,
    step: int | None = None,
) -> str:
    """The page of a run.

    `record` is its `tformer.yaml`, `metrics` and `evals` the lines of its files, `attention` a text with
    the weights of every head on it, shape (layer, head, query, key), of `step` if not of the weights kept.
    """
    parts = [f"<h1>{escape(name)}</h1>", f'<p class="dim">{escape(_origin(record))}</p>', _facts(record)]
    parts += _training(metrics)
    parts += _by_position(metrics, record)
    parts += _samples(metrics)
    parts += _evals(evals)
    if attention is not None:
        parts += _attention(*attention, step)
    settings = escape(record.as_yaml())
    parts += [
        "<h2>Configuration</h2>",
        "<p>The whole of it, as <code>tformer train --config</code> takes it.</p>",
        f"<details><summary>tformer.yaml</summary><pre>{settings}</pre></details>",
    ]
    return page.page(name, "\n".join(parts))


def _origin(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    sources = ", ".join(record.data.source)
    trained = f"Trained on {sources}" if sources else "Trained"
    return f"{trained}, on {record.device or 'an unknown device'}, with {versions or 'unknown versions'}."


def _facts(record: Record) -> str:
    result, tokenizer = record.result.as_dict() if record.result else {}, record.tokenizer
    rows = [[label, _number(result[key])] for key, label in FACTS.items() if result.get(key) is not None]
    if tokenizer and tokenizer.size is not None:
        rows.append(["tokenizer", f"{tokenizer.kind}, {tokenizer.size:,} tokens"])
    if not result:
        rows.append(["state", "not at its end yet"])
    normal = (
        f"<p>Is this loss normal? {escape(str(result['expectation']))}.</p>"
        if "expectation" in result
        else ""
    )
    return page.table("", ("", ""), rows, (False, True)) + normal


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shown(figure: Figure, name: str) -> str:
    return page.figure(figure_svg(figure, name), figure.title)


# ---------------------------------------------------------------------------- training


def _training(metrics: Sequence[dict[str, Any]]) -> list[str]:
    keys = {"training": "loss", "validation": "val_loss"}
    losses = [s for label, key in keys.items() if (s := _series(label, metrics, key))]
    if not losses:
        return []
    title = "Cross-entropy as it trained"
    figures: list[Figure] = [Lines(title, "step", "nats per token", tuple(losses))]
    if words := _series("last word of a passage", metrics, "next_word_loss"):
        figures.append(Lines("Last words (--eval-data) as it trained", "step", "nats per word", (words,)))
    if rate := _series("learning rate", metrics, "lr"):
        figures.append(Lines("The learning rate", "step", "learning rate", (rate,)))
    return ["<h2>Training</h2>", *(_shown(f, f"curve-{i}") for i, f in enumerate(figures))]


def _by_position(metrics: Sequence[dict[str, Any]], record: Record) -> list[str]:
    """The loss by position of the evaluation of the weights that are kept, or the newest one."""
    judged = [m for m in metrics if isinstance(m.get("by_position"), list) and len(m["by_position"]) > 1]
    if not judged:
        return []
    kept = record.result.kept_step if record.result else None
    line = next((m for m in judged if m["step"] == kept), judged[-1])
    x, y = zip(*line["by_position"], strict=True)
    figure = position_figure([Series("loss", tuple(x), tuple(y))], f"validation at step {line['step']:,}")
    return [_shown(figure, "by-position")]


def _series(name: str, metrics: Sequence[dict[str, Any]], key: str) -> Series | None:
    seen = [(m["step"], m[key]) for m in metrics if isinstance(m.get(key), (int, float)) and "step" in m]
    if not seen:
        return None
    thinned = seen[:: -(-len(seen) // MOST_POINTS)]
    if thinned[-1] != seen[-1]:
        thinned.append(seen[-1])
    return Series(name, tuple(x for x, _ in thinned), tuple(y for _, y in thinned))


def _samples(metrics: Sequence[dict[str, Any]]) -> list[str]:
    samples = [(m["step"], m["sample"]) for m in metrics if isinstance(m.get("sample"), str)]
    if not samples:
        return []
    shown = (f'<p class="dim">step {step:,}</p><pre>{escape(text)}</pre>' for step, text in samples[-12:])
    return ["<h2>What it wrote as it trained</h2>", *shown]


# ---------------------------------------------------------------------------- evaluations


def _evals(evals: Sequence[Evaluation]) -> list[str]:
    latest = {line.task: line for line in evals}
    parts = ["<h2>Evaluations</h2>"] if latest else []
    for i, (task, line) in enumerate(latest.items()):
        parts.append(f"<h3>{escape(task)}</h3>")
        if line.on:
            parts.append(f'<p class="dim">on {escape(line.on)}</p>')
        parts += _evidence(line, f"eval-{i}")
        named = LAMBADA_NAMES if task == "lambada" else {}
        rows = [
            [named.get(key, key.replace("_", " ")), _number(value)] for key, value in _scalars(line.result)
        ]
        parts.append(page.table("", ("", ""), rows, (False, True)))
    return parts


def _scalars(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """Numbers and words of a result, not its lists."""
    return [(k, v) for k, v in result.items() if k != "run" and isinstance(v, (bool, int, float, str))]


def _evidence(line: Evaluation, name: str) -> list[str]:
    """What a task found beside its numbers; nothing where somebody else wrote the line."""
    try:
        return _shown_of_task(line.task, line.result, name)
    except (RequestError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return []


def _shown_of_task(task: str, result: dict[str, Any], name: str) -> list[str]:
    """A figure, or the samples and what is measured of them."""
    if task == "reversal" and (positions := result.get("positions")):
        chance = _within(1.0, result.get("chance", 0.0))
        return [_shown(_accuracies(positions, chance), name)]
    if task == "loss":
        parts = _parts(result.get("parts", ()))
        if len(means := result.get("by_position", ())) > 1:
            losses = tuple(_within(1e6, mean) for mean in means)
            curve = Series("loss", tuple(range(1, len(losses) + 1)), losses)
            parts.append(_shown(position_figure([curve]), name))
        return parts
    if task == "generations":
        return _generations(Generations.from_dict(result))
    return []


def _parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    """What each of several texts was worth by itself."""
    names = ("data", "tokens", "bytes", "loss", "perplexity", "bits_per_byte")
    rows = [[_number(part.get(name, "")) for name in names] for part in parts]
    columns = [name.replace("_", " ") for name in names]
    return [page.table("", columns, rows, [False] + [True] * (len(names) - 1))] if rows else []


def _within(most: float, value: Any) -> float:
    """A number from 0 on that can be drawn. Raises ValueError for another."""
    if not 0 <= float(value) <= most:
        raise ValueError(value)
    return float(value)


def _accuracies(positions: Sequence[dict[str, Any]], chance: float) -> Bars:
    bars = tuple(
        (f"{p['position']} ({p['half']} half)", Numbers((_within(1.0, p["accuracy"]),), ".3f"))
        for p in positions
    )
    return Bars("Accuracy of each target position", "accuracy", bars, ("chance", chance))


def _generations(result: Generations) -> list[str]:
    """The measures side by side, and of every prompt the first sample at each temperature."""
    names = ["", *columns_of(result), "training"]
    rows = [
        [label.replace("  ", "\u2003"), *cells] for label, *cells in table_rows(result)
    ]  # HTML drops spaces
    parts = [page.table("", names, rows, [False] + [True] * (len(names) - 1))]
    first: dict[tuple[str, float], Drawn] = {}
    for sample in result.samples:
        first.setdefault((sample.prompt, sample.temperature), sample)
    for sample in first.values():
        parts.append(f'<p class="dim">T {sample.temperature:g}, seed {sample.seed}</p>')
        parts.append(f"<pre><b>{escape(sample.prompt)}</b>{escape(sample.text)}</pre>")
    return parts


def _attention(text: str, weights: np.ndarray, step: int | None = None) -> list[str]:
    heads = [
        (f"{layer + 1}.{head + 1}", tuple(map(tuple, weights[layer, head].tolist())))
        for layer in range(weights.shape[0])
        for head in range(weights.shape[1])
    ]
    more = f" (the first {HEADS_ON_PAGE} of {len(heads)} heads)" if len(heads) > HEADS_ON_PAGE else ""
    title = f"Attention by layer.head: a row for each query, a column for each key{more}"
    figure = Heat(title, "query", "key", tuple(heads[:HEADS_ON_PAGE]))
    return [
        "<h2>Where its heads look</h2>",
        f"<p>On: <code>{escape(text)}</code>{f', after step {step:,}' if step else ''}</p>",
        _shown(figure, "maps"),
    ]
