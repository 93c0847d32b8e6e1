"""Does a logit depend on a later token? Measured on the model as it runs, to the last bit.

Three measurements: later tokens are changed and earlier logits compared; gradients are taken from
earlier logits to later embeddings; what attention gives to hidden keys is read off and provoked. None
of them trusts the mask that the model claims to have. Knows nothing of files or terminals.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tformer import model as room
from tformer.config import ModelConfig
from tformer.device import autocast
from tformer.errors import RequestError, TformerError
from tformer.model import KVCache, Transformer

ELEMENTS_AT_ONCE = 1 << 25  # logits and attention weights of the rows that run together
SMALL = 10**10  # multiplications of a forward pass that one thread does in under a second
COLUMNS = 64  # of the leak matrix: more than a picture shows
Progress = Callable[[int, int], None]  # done, in all
Cell = Literal["allowed", "unchanged", "leak"]
Plan = tuple[int, ...]  # sizes of the pieces that go through the cache; empty: the full forward


@dataclass(frozen=True)
class CachedResult:
    """The comparison through the KV cache, over every way of cutting the input into pieces."""

    passed: bool
    max_leak: float
    pieces: list[list[int]]


@dataclass(frozen=True)
class MaskResult:
    """What attention does to the keys after a query.

    `exact`: weight 0 at every score that the dtype holds. `finite`: hidden by adding or writing
    `value`, which hides as long as no score is beyond ±`safe_score`. `open`: not hidden at all.
    `unseen`: the forward did not go through `tformer.model.attention`. `blocks` are those that are not
    exact; `hidden_weight` and `largest_score` (of |q·k| / √d_head) are the largest of the model's own.
    """

    kind: Literal["exact", "finite", "open", "unseen"]
    value: float | None
    safe_score: float | None
    largest_score: float
    hidden_weight: float
    blocks: list[int]


@dataclass(frozen=True)
class CausalityResult:
    """The verdict and its evidence.

    `max_leak` is the largest change of a logit that had to stay, in the full forward and through the
    cache; `max_gradient` the largest gradient from earlier logits to a later embedding. All are 0 in a
    causal model. `reached` is the share of `positions` whose own logits changed with their token: at 0
    the model ignores its input, and nothing is proven. `matrix[i][j]` is the largest change of the
    logits at positions columns[j] to columns[j + 1] - 1 that come before positions[i].
    """

    passed: bool
    max_leak: float
    full_leak: float
    cached: CachedResult
    max_gradient: float
    mask: MaskResult
    n_ctx: int
    positions: list[int]
    reached: float
    matrix: list[list[float]]
    columns: list[int]

    def cells(self, size: int) -> list[tuple[int, list[Cell]]]:
        """The matrix in at most `size` rows and columns: the first changed position of a row, its cells.

        A cell is allowed where none of its logits comes before a token that changed with it.
        """
        n_columns = len(self.columns) - 1
        rows = np.array_split(np.arange(len(self.positions)), min(size, len(self.positions)))
        columns = np.array_split(np.arange(n_columns), min(size, n_columns))
        leaks = np.array(self.matrix) > 0

        def cell(row: np.ndarray, column: np.ndarray) -> Cell:
            if leaks[np.ix_(row, column)].any():
                return "leak"
            allowed = self.columns[column[0]] >= self.positions[row[-1]]
            return "allowed" if allowed else "unchanged"

        return [(self.positions[row[0]], [cell(row, column) for column in columns]) for row in rows]


def spread(n_ctx: int, n: int) -> list[int]:
    """At most `n` positions from 1 to n_ctx - 1, all of them or evenly spread with both ends."""
    return np.unique(np.linspace(1, n_ctx - 1, min(n, n_ctx - 1)).round().astype(int)).tolist()


def cache_plans(n_ctx: int) -> list[Plan]:
    """Ways through the cache: in one piece; and in pieces of several sizes, then token by token."""
    tail = min(n_ctx // 2, 32)
    body = n_ctx - tail
    sizes = sorted({-(-body // k) for k in (1, 3)}, reverse=True)
    plans = [(size,) * (body // size) + (body % size,) * (body % size > 0) + (1,) * tail for size in sizes]
    return [(n_ctx,), *plans]


def causality(
    model: Transformer,
    n_positions: int = 64,
    precision: str = "fp32",
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> CausalityResult:
    """Whether logits before position t are unchanged, to the bit, by the token at t and all after it.

    Passed means: no bit changed in the full forward and in every way through the cache, every gradient
    from logits before t to embeddings from t on is exactly 0, and no hidden key had any weight. A
    finite mask that did not leak passes and is reported. Bits are the same only for like shapes, so
    clean and changed inputs run in the same batch slots of the same pieces. Raises RequestError where
    there is nothing to change or nothing before it, TformerError where the logits are not finite.
    """
    c = model.config
    for name, found in (("n_ctx", c.n_ctx), ("vocab_size", c.vocab_size)):
        if found < 2:
            raise RequestError(f"{name} is {found}", "expected at least 2: a token before one that changes")
    model.eval()
    device = next(model.parameters()).device
    positions = spread(c.n_ctx, n_positions)
    rows = max(1, min(len(positions), ELEMENTS_AT_ONCE // (c.n_ctx * (c.vocab_size + _attention_size(c)))))
    # The last group is filled up: each group has the shape of the clean one.
    padded = positions + positions[-1:] * (-len(positions) % rows)
    groups = torch.tensor(padded, device=device).split(rows)
    # Each slot has its own tokens: some leaks show at some scores alone.
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(c.vocab_size, (rows, c.n_ctx), generator=generator)
    # Every token from t on becomes another one.
    other = (clean + torch.randint(1, c.vocab_size, clean.shape, generator=generator)) % c.vocab_size
    clean, other = clean.to(device), other.to(device)

    plans: list[Plan] = [(), *cache_plans(c.n_ctx)]
    done = itertools.count(1)

    def tick() -> None:
        progress(next(done), (len(plans) + 1) * len(groups))

    with _one_thread(clean.numel() * model.n_parameters < SMALL):
        mask = measure_mask(model, clean, precision)
        changes = [
            _changes(model, clean, other, groups, plan, precision, tick)[: len(positions)] for plan in plans
        ]
        gradient = 0.0
        for group in groups:
            gradient = max(gradient, gradient_leak(model, clean, group, precision, generator))
            tick()

    before = np.arange(c.n_ctx) < np.array(positions)[:, None]  # (changed, looked at)
    leaks = [np.where(before, some, 0.0) for some in changes]
    full_leak, cached_leak = (float(np.max(some)) for some in (leaks[0], leaks[1:]))
    edges = np.linspace(0, c.n_ctx, min(COLUMNS, c.n_ctx) + 1).round().astype(int)
    return CausalityResult(
        passed=max(full_leak, cached_leak, gradient, mask.hidden_weight) == 0,
        max_leak=max(full_leak, cached_leak),
        full_leak=full_leak,
        cached=CachedResult(cached_leak == 0, cached_leak, [list(plan) for plan in plans[1:]]),
        max_gradient=gradient,
        mask=mask,
        n_ctx=c.n_ctx,
        positions=positions,
        reached=float((changes[0][range(len(positions)), positions] > 0).mean()),
        matrix=np.maximum.reduceat(np.max(leaks, axis=0), edges[:-1], axis=1).tolist(),
        columns=edges.tolist(),
    )


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """While it lasts, one thread if wanted: on a busy machine, threads that wait for each other between
    small operations take ten times as long as one that never waits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _attention_size(config: ModelConfig) -> int:
    """Attention weights of one query, over all blocks and heads: a backward pass keeps them all."""
    return config.n_layers * config.n_heads * config.n_ctx


# ---------------------------------------------------------------------------- differences


def _changes(
    model: Transformer, clean: Tensor, other: Tensor, groups: Sequence[Tensor], plan: Plan, precision: str,
    tick: Callable[[], None],
) -> np.ndarray:  # fmt: skip
    """How much the logits of each position (column) change with the tokens from each one on (row)."""
    before = run(model, clean, plan, precision)
    if not before.isfinite().all():
        raise TformerError("the logits are not finite", "nothing can be compared", "look at its training")
    found = []
    for group in groups:
        found.append(difference(before, run(model, changed_from(clean, other, group), plan, precision)))
        tick()
    return torch.cat(found).cpu().numpy()


def changed_from(
    clean: Int[Tensor, "row position"], other: Int[Tensor, "row position"], first: Int[Tensor, "row"]
) -> Int[Tensor, "row position"]:
    """Row i is `clean` before position first[i] and `other` from there on."""
    positions = torch.arange(clean.shape[1], device=clean.device)
    return torch.where(positions < first[:, None], clean, other)


@torch.inference_mode()
def run(
    model: Transformer, ids: Int[Tensor, "row position"], plan: Plan, precision: str = "fp32"
) -> Float[Tensor, "row position vocab"]:
    """Logits of every position, by one full forward or piece by piece through a fresh cache."""
    with autocast(precision, ids.device):
        if not plan:
            return model(ids)
        cache = KVCache(model.config, len(ids), model.embed.weight)
        return torch.cat([model(piece, cache) for piece in ids.split(plan, dim=1)], dim=1)


def difference(
    a: Float[Tensor, "row position vocab"], b: Float[Tensor, "row position vocab"]
) -> Float[Tensor, "row position"]:
    """The largest difference at each position: 0 only where every bit is the same."""
    as_bits = torch.int32 if a.element_size() == 4 else torch.int16
    limits = torch.finfo(torch.float32)
    size = (a.float() - b.float()).abs().nan_to_num(limits.max, limits.max).clamp(min=limits.tiny)
    return size.masked_fill(a.view(as_bits) == b.view(as_bits), 0.0).amax(-1)


def gradient_leak(
    model: Transformer,
    ids: Int[Tensor, "row position"],
    first: Int[Tensor, "row"],
    precision: str,
    generator: torch.Generator,
) -> float:
    """The largest gradient that random cotangents on row i's logits before first[i] send from it on.

    One backward pass for all rows; embeddings from first[i] on should receive exactly 0.
    """
    leaves: list[Tensor] = []

    def cut(module: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hook = model.embed.register_forward_hook(cut)
    try:
        with autocast(precision, ids.device):
            logits = model(ids)
    finally:
        hook.remove()
    early = torch.arange(ids.shape[1], device=ids.device) < first[:, None]
    cotangent = torch.randn(logits.shape, generator=generator).to(logits) * early[..., None]
    (gradient,) = torch.autograd.grad(logits, leaves, cotangent)
    limit = torch.finfo(torch.float32).max
    size = gradient.float().abs().nan_to_num(limit, limit).amax(-1)
    return float(size.masked_fill(early, 0.0).max())


# ---------------------------------------------------------------------------- the mask


@dataclass(frozen=True)
class _Call:
    """One call of attention: the largest score, and what a hidden key got and can get."""

    largest_score: float
    hidden_weight: float
    value: float  # -inf where a hidden key gets nothing at any score
    safe_score: float


PROBED = 256  # queries whose mask is provoked, of the first ones


def measure_mask(model: Transformer, ids: Int[Tensor, "row position"], precision: str = "fp32") -> MaskResult:
    """Watch every block's attention in a full forward and a cached one in two pieces."""
    calls: list[_Call] = []
    n_ctx, n_layers = ids.shape[1], model.config.n_layers
    with torch.inference_mode(), _watched(calls):
        run(model, ids, (), precision)
        run(model, ids, (n_ctx - n_ctx // 2, n_ctx // 2), precision)
    if not calls:
        return MaskResult("unseen", None, None, 0.0, 0.0, [])
    value, safe = max(call.value for call in calls), min(call.safe_score for call in calls)
    exact = value == -math.inf
    return MaskResult(
        kind="exact" if exact else "open" if value > -0.5 else "finite",
        value=None if exact else value,
        safe_score=None if exact else safe,
        largest_score=max(call.largest_score for call in calls),
        hidden_weight=max(call.hidden_weight for call in calls),
        blocks=sorted({i % n_layers for i, call in enumerate(calls) if call.value > -math.inf}),
    )


@contextmanager
def _watched(calls: list[_Call]) -> Iterator[None]:
    """While it lasts, every call of `tformer.model.attention` is measured."""
    original = room.attention

    def watched(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        output, weights = original(q, k, v, mask, dropout)
        hidden = _hidden(q.shape[-2], k.shape[-2], q.device)
        scores = (q.float() / math.sqrt(q.shape[-1])) @ k.float().transpose(-2, -1)
        calls.append(
            _Call(
                float(scores.abs().max()),
                float(weights.masked_fill(~hidden, 0.0).max()),
                *_provoke(original, q, k, mask),
            )
        )
        return output, weights

    room.attention = watched
    try:
        yield
    finally:
        room.attention = original


def _hidden(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "{n_query} {n_key}"]:
    """True for keys after the query: by their positions, not by the model's mask."""
    query = torch.arange(n_key - n_query, n_key, device=device)
    return torch.arange(n_key, device=device) > query[:, None]


def _provoke(attention: Callable[..., Any], q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[float, float]:
    """The value that hides a key, and the largest score at which it does: (-inf, inf) for an exact mask.

    Attention is called with the model's mask, but with queries and keys made to give wanted scores:
    softmax shows a finite value as soon as what may be seen scores as low as that value.
    """
    past = k.shape[-2] - q.shape[-2]
    n = min(q.shape[-2], PROBED)
    width = 4 ** math.ceil(math.log(n, 4)) if n > 1 else 1  # its root is exact, so scores are too
    hidden = _hidden(n, past + n, q.device)
    unit = torch.eye(n, width, device=q.device, dtype=q.dtype)[None, None] * math.sqrt(width)
    if mask is not None:
        mask = mask[:1, :1, :n, : past + n]
    largest = min(torch.finfo(t.dtype).max for t in (q, k))

    def weigh(size: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Largest weights of hidden and of other keys where they score factor · size and -size."""
        scores = torch.where(hidden, factor * size[:, None], -size[:, None])  # (query, key)
        keys = torch.nn.functional.pad(scores.T, (0, width - n)).to(k.dtype)[None, None]
        weights = attention(unit, keys, torch.zeros_like(keys), mask)[1][0, 0].double()
        return weights.masked_fill(~hidden, 0.0).amax(-1), weights.masked_fill(hidden, 0.0).amax(-1)

    def first_leak(factor: float) -> tuple[Tensor, Tensor]:
        """For each query the largest size that hides its later keys, and the smallest that does not."""
        low = torch.zeros(n, dtype=torch.float64, device=q.device)
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
