"""What attention does to the keys after a query: read off as it runs, and provoked by extreme scores.

It watches every call of attention's formula and does not trust the mask that the model claims to have.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from tformer.model import Formula, Transformer
from tformer.watch import AttentionCall, watching_attention

PROBED = 256  # queries whose mask is provoked, of the first ones


@dataclass(frozen=True)
class Measured:
    """One call of attention: the largest score, and what a hidden key got and can get."""

    layer: int  # counted from 0
    largest_score: float
    hidden_weight: float
    value: float  # -inf where a hidden key gets nothing at any score
    safe_score: float


@dataclass(frozen=True)
class MaskResult:
    """What attention does to the keys after a query.

    `exact`: weight 0 at every score that the dtype holds. `finite`: hidden by adding or writing
    `value`, which hides as long as no score is beyond ±`safe_score`. `open`: not hidden at all.
    `unseen`: some block's forward did not go through `tformer.model.attention`. `blocks` are those that
    are not exact, counted from 1; `hidden_weight` and `largest_score` (of |q·k| / √d_head) are the largest
    of the model's own.
    """

    kind: Literal["exact", "finite", "open", "unseen"]
    value: float | None
    safe_score: float | None
    largest_score: float
    hidden_weight: float
    blocks: list[int]


@contextmanager
def measuring(model: Transformer) -> Iterator[list[Measured]]:
    """Every call of the model's attention inside the block, measured as it happens."""
    calls: list[Measured] = []

    def see(call: AttentionCall) -> None:
        q, k = call.q, call.k
        hidden = _hidden(q.shape[-2], k.shape[-2], q.device)
        scores = (q.float() / math.sqrt(q.shape[-1])) @ k.float().transpose(-2, -1)
        got = float(call.weights.masked_fill(~hidden, 0.0).max())
        value, safe_score = _provoke(call.formula, q, k, call.mask)
        if got > 0 and value == -math.inf:  # open in other rows, heads or queries than the provoked ones
            value = safe_score = 0.0
        calls.append(Measured(call.layer, float(scores.abs().max()), got, value, safe_score))

    with watching_attention(model, see):
        yield calls


def mask_result(calls: Sequence[Measured], layers: Collection[int]) -> MaskResult:
    """What whole forwards say together; `layers` are those whose attention should have been called."""
    if not calls:
        return MaskResult("unseen", None, None, 0.0, 0.0, [])
    value, safe = max(call.value for call in calls), min(call.safe_score for call in calls)
    exact = value == -math.inf
    seen = {call.layer for call in calls}.issuperset(layers)
    return MaskResult(
        kind=("exact" if seen else "unseen") if exact else "open" if value > -0.5 else "finite",
        value=None if exact else value,
        safe_score=None if exact else safe,
        largest_score=max(call.largest_score for call in calls),
        hidden_weight=max(call.hidden_weight for call in calls),
        blocks=sorted({call.layer + 1 for call in calls if call.value > -math.inf}),
    )


def _hidden(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "{n_query} {n_key}"]:
    """True for keys after the query: by their positions, not by the model's mask."""
    query = torch.arange(n_key - n_query, n_key, device=device)
    return torch.arange(n_key, device=device) > query[:, None]


def _provoke(attention: Formula, q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[float, float]:
    """The value that hides a key, and the largest score at which it does: (-inf, inf) for an exact mask.

    Attention is called with the model's mask, but with queries and keys made to give wanted scores:
    softmax shows a finite value as soon as what may be seen scores as low as that value. Sizes are searched
    in float64 and so on the CPU: MPS has none.
    """
    past = k.shape[-2] - q.shape[-2]
    n = min(q.shape[-2], PROBED)
    width = 4 ** math.ceil(math.log(n, 4)) if n > 1 else 1  # its root is exact, so scores are too
    hidden = _hidden(n, past + n, torch.device("cpu"))
    unit = torch.eye(n, width, device=q.device, dtype=q.dtype)[None, None] * math.sqrt(width)
    if mask is not None:
        mask = mask[:1, :1, :n, : past + n]
    largest = min(torch.finfo(t.dtype).max for t in (q, k))

    def weigh(size: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Largest weights of hidden and of other keys where they score factor · size and -size."""
        scores = torch.where(hidden, factor * size[:, None], -size[:, None])  # (query, key)
        keys = torch.nn.functional.pad(scores.T, (0, width - n)).to(k.dtype)[None, None].to(k.device)
        weights = attention(unit, keys, torch.zeros_like(keys), mask)[1][0, 0].cpu().double()
        return weights.masked_fill(~hidden, 0.0).amax(-1), weights.masked_fill(hidden, 0.0).amax(-1)

    def first_leak(factor: float) -> tuple[Tensor, Tensor]:
        """For each query the largest size that hides its later keys, and the smallest that does not."""
        low = torch.zeros(n, dtype=torch.float64)
        high = torch.full_like(low, largest)
        never = weigh(high, factor)[0] == 0
        at_once = weigh(low, factor)[0] != 0
        low += 1e-6  # halved as logarithms
        for _ in range(50 if not never.all() else 0):
            middle = low.sqrt() * high.sqrt()
            leaks = weigh(middle, factor)[0] != 0
            low, high = torch.where(leaks, low, middle), torch.where(leaks, middle, high)
        low, high = (size.to(q.dtype).double().masked_fill(at_once, 0.0) for size in (low, high))
        return low.masked_fill(never, math.inf), high.masked_fill(never, math.inf)

    _, start = first_leak(0.0)
    if start.isinf().all():
        return -math.inf, math.inf
    # Past the first trace both weights are well above underflow, and their ratio tells the value.
    size = (start + 60).clamp(max=largest).to(q.dtype).double()
    at_hidden, elsewhere = weigh(size, 0.0)
    value = torch.where(elsewhere > 0, (at_hidden / elsewhere).log() - size, -size)
    return float(value.masked_fill(start.isinf(), -math.inf).max()), float(first_leak(1.0)[0].min())
