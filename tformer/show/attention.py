"""What `tformer eval attention` shows: maps of the heads, and which of them carry the reversal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from tformer.counted import counted
from tformer.show import terminal
from tformer.show.charts import heat_maps
from tformer.show.words import percent, printable

if TYPE_CHECKING:  # it imports torch
    from tformer.evals.attention import Mirror

HEADS_ON_SCREEN = 16


def attention_view(
    run: str, tokens: Sequence[str], weights: np.ndarray, mirror: "Mirror | None", console: Console
) -> None:
    """What was looked at, a map of each head, and on the reversal task which heads carry it.

    `weights` has shape (layer, head, query, key). The heads that carry most come first.
    """
    terminal.fact_table(console, {"run": run, "text": printable("".join(tokens), terminal=True)})
    attention_maps(_captioned(weights, mirror), console)
    if mirror:
        mirror_verdict(mirror, console)


def _captioned(weights: np.ndarray, mirror: "Mirror | None") -> list[tuple[str, np.ndarray]]:
    """A caption and the weights of each head: the best first where there is a best."""
    if mirror:
        return [
            (f"{h.layer}.{h.head} {100 * h.share:.0f} %", weights[h.layer - 1, h.head - 1])
            for h in mirror.heads
        ]
    return [
        (f"{layer + 1}.{head + 1}", weights[layer, head])
        for layer in range(weights.shape[0])
        for head in range(weights.shape[1])
    ]


def attention_maps(maps: Sequence[tuple[str, np.ndarray]], console: Console) -> None:
    """Captions and weights (query, key) of heads, and what the rows and columns are."""
    rest = (
        f"; {counted(len(maps) - HEADS_ON_SCREEN, 'more head')} in --out and --json"
        if len(maps) > HEADS_ON_SCREEN
        else ""
    )
    heat_maps(maps[:HEADS_ON_SCREEN], console)
    console.print(Text(f"\nlayer.head; rows are queries, columns the keys that they look at{rest}"))


def mirror_verdict(mirror: "Mirror", console: Console) -> None:
    """Which heads carry the reversal."""
    alike = f"a head that looks everywhere alike: {percent(mirror.uniform)}; {mirror.n} fresh sequences"
    if mirror.carriers:
        names = ", ".join(f"{head.layer}.{head.head} ({percent(head.share)})" for head in mirror.carriers)
        verdict = (
            f"the reversal is carried by {names}: the share of attention on the mirrored position ({alike})"
        )
    else:
        best = mirror.heads[0]
        verdict = (
            "no head has half of its attention on the mirrored position; the most is "
            f"{best.layer}.{best.head} with {percent(best.share)} ({alike})"
        )
    console.print(Text(verdict))
