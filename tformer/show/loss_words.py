"""What is said of a loss, in words: the facts, rows and notes that terminal and page both show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tformer.evals.judged import Judged
from tformer.evals.statistics import same_cuts
from tformer.evals.tokens import BEFORE, Token
from tformer.figures import Lines, Series
from tformer.show.words import large, share, spread, visible
from tformer.text.tokenizer import quoted

RUN_COLUMNS = (
    "run",
    "parameters",
    "tokens seen",
    "cross-entropy",
    "perplexity",
    "bits per byte",
    "difference to best",
    "tokens/s",
)
EXTREMES = {  # the columns of `cells_of`, and which stand to the right
    "at": True,
    "before": True,
    "token": False,
    "nats": True,
    "probability": True,
    "expected": False,
    "with": True,
}


def loss_facts(judged: Judged, on: str) -> dict[str, str]:
    """What a run was worth on a text, each number by its name."""
    result = judged.result
    return {
        "run": judged.shown,
        "text": on,
        **sliding([judged]),
        "tokens": f"{result.tokens:,} scored, {result.bytes:,} bytes",
        "cross-entropy": f"{spread(result.loss, result.loss_stderr)} nats per token",
        "perplexity": f"{result.perplexity:.3f}",
        "bits per byte": spread(result.bits_per_byte, result.bits_per_byte_stderr),
        "speed": f"{judged.tokens_per_second:,.0f} tokens/s",
        **parts_of([judged]),
    }


def parts_of(judged: Sequence[Judged]) -> dict[str, str]:
    """Of a text that is several what each was worth by itself, to each run, by its name."""
    said: dict[str, list[str]] = {}
    for one in judged:
        for name, result in one.parts:
            figures = f"{spread(result.bits_per_byte, result.bits_per_byte_stderr)} bits per byte"
            if len(judged) == 1:
                loss = spread(result.loss, result.loss_stderr)
                figures = f"{loss} nats per token, {figures}, {result.tokens:,} tokens"
            said.setdefault(f"in {name}", []).append(
                one.name + ": " + figures if len(judged) > 1 else figures
            )
    return {name: "; ".join(figures) for name, figures in said.items()}


def sliding(judged: Sequence[Judged]) -> dict[str, str]:
    """How the windows lay, where they were not disjoint, by its name."""
    strides = [j.stride for j in judged if j.stride < j.scored.n_ctx]
    if not strides:
        return {}
    least = min(max(1, j.scored.n_ctx - j.stride) for j in judged)
    context = f"after the first of them a token has at least {least:,} before it"
    return {"windows": f"{strides[0]:,} tokens apart: {context}"}


@dataclass(frozen=True)
class Comparison:
    """Several runs on one text in words: the text, a row for each run, what to mind, and their curves."""

    facts: dict[str, str]
    rows: list[list[str]]  # under RUN_COLUMNS
    notes: list[str]
    figure: Lines


def comparison_of(ranked: Sequence[Judged], on: str) -> Comparison:
    """Runs, the best first, on the text that `on` names."""
    facts = {"text": f"{on}, {int(ranked[0].scored.ends[-1]):,} bytes", **sliding(ranked), **parts_of(ranked)}
    return Comparison(facts, rows_of(ranked), notes_on(ranked), along_the_window(ranked))


def rows_of(ranked: Sequence[Judged]) -> list[list[str]]:
    """Runs under `RUN_COLUMNS`, a row each; two of one name by their paths."""
    names = [j.name for j in ranked]
    return [
        [
            j.name if names.count(j.name) == 1 else j.shown,
            large(j.parameters),
            "–" if j.tokens_seen is None else large(j.tokens_seen),
            spread(j.result.loss, j.result.loss_stderr),
            f"{j.result.perplexity:.3f}",
            spread(j.result.bits_per_byte, j.result.bits_per_byte_stderr),
            spread(j.difference.bits_per_byte, j.difference.stderr, "+") if j.difference else "best",
            f"{j.tokens_per_second:,.0f}",
        ]
        for j in ranked
    ]


def notes_on(ranked: Sequence[Judged]) -> list[str]:
    """What to mind when comparing these runs."""
    notes = [
        "Sorted by bits per byte. ± is one standard error, from stretches of whole windows; a difference is "
        "paired over the same bytes, and one beyond 2 standard errors is hardly chance."
    ]
    if not are_alike(ranked):
        notes.append(
            "These runs read the text as different tokens: their cross-entropy, perplexity and tokens/s are "
            "per token and do not compare; bits per byte do."
        )
    skipped = {int(j.scored.ends[0]) for j in ranked}
    if len(skipped) > 1:
        notes.append(
            "The first token of a text is never scored: the runs leave out its first "
            f"{min(skipped)} to {max(skipped)} bytes, and differences leave out what any of them does."
        )
    return notes


def are_alike(judged: Sequence[Judged]) -> bool:
    """Whether these runs read the text as the same tokens."""
    return all(same_cuts(j.scored, judged[0].scored) for j in judged)


def along_the_window(judged: Sequence[Judged]) -> Lines:
    """The loss at each position of each run: nats per token, or bits per byte where tokens differ."""
    per_byte = not are_alike(judged)
    unit = "bits per byte" if per_byte else "nats per token"
    return position_figure([_curve(j, per_byte) for j in judged], unit=unit)


def position_figure(curves: Sequence[Series], of: str = "", unit: str = "nats per token") -> Lines:
    """Losses over positions from 1; `of` says of what, where that is not plain."""
    title = f"Loss by position in the window{of and ', '}{of}: what more context is worth"
    return Lines(title, "position", unit, tuple(curves), log_x=True)


def _curve(judged: Judged, per_byte: bool) -> Series:
    y = judged.result.by_position
    if per_byte:
        nats, sizes = (
            np.bincount(judged.contexts, of)[1:] for of in (judged.scored.losses, judged.scored.sizes)
        )
        y = (nats / math.log(2) / np.maximum(1, sizes)).tolist()
    return Series(judged.name, tuple(range(1, len(y) + 1)), tuple(y))


# ---------------------------------------------------------------------------- tokens


def cells_of(token: Token, unicode: bool = True) -> tuple[str, ...]:
    """A row of a table: place, context, token, loss, its probability, the guess and its probability."""
    return (
        f"{token.place:,}",
        visible(token.before, unicode)[-BEFORE:],
        quoted(token.raw),
        f"{token.loss:.4f}",
        share(token.probability),
        guess_of(token),
        share(token.expected_probability),
    )


def guess_of(token: Token) -> str:
    """What the model held most likely in its place."""
    return "itself" if token.expected == token.raw else quoted(token.expected)
