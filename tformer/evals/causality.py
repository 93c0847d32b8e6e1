"""Does a logit depend on a later token? Measured on the model as it runs, to the last bit.

Three measurements: later tokens are changed and earlier logits compared; gradients are taken from
earlier logits to later embeddings; what attention gives to hidden keys is read off and provoked
(`masks.py`). None of them trusts the mask that the model claims to have. Knows nothing of files or
terminals.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tformer.config import ModelConfig
from tformer.device import autocast, one_thread
from tformer.errors import RequestError
from tformer.evals.masks import MaskResult, mask_result, measuring
from tformer.kv_cache import KVCache
from tformer.loss import check_finite
from tformer.model import Transformer
from tformer.progress import Progress, silent
from tformer.watch import cut_at_embedding, distinct_attentions

ELEMENTS_AT_ONCE = 1 << 25  # logits and attention weights of the rows that run together
SMALL = 10**10  # multiplications of a forward pass that one thread does in under a second
MATRIX_COLUMNS = 64  # more than a picture shows
LeakCell = Literal["allowed", "unchanged", "leak"]
Pieces = tuple[int, ...]  # sizes of what goes through the cache in turn; empty: the full forward


@dataclass(frozen=True)
class CachedResult:
    """The comparison through the KV cache, over every way of cutting the input into pieces.

    The last way is taken once more with rows padded at their start, as prompts of different lengths are.
    `difference` is the largest between these logits and the full forward's, as a share of the largest
    logit: rounding, unless the cache is wrong or logits depend on how many tokens follow.
    """

    passed: bool
    max_leak: float
    pieces: list[list[int]]
    difference: float


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
    precision: str
    n_ctx: int
    positions: list[int]
    reached: float
    matrix: list[list[float]]
    columns: list[int]

    def cells(self, size: int) -> list[tuple[int, list[LeakCell]]]:
        """The matrix in at most `size` rows and columns: the first changed position of a row, its cells.

        A cell is allowed where none of its logits comes before a token that changed with it.
        """
        n_columns = len(self.columns) - 1
        rows = np.array_split(np.arange(len(self.positions)), min(size, len(self.positions)))
        columns = np.array_split(np.arange(n_columns), min(size, n_columns))
        leaks = np.array(self.matrix) > 0

        def cell(row: np.ndarray, column: np.ndarray) -> LeakCell:
            if leaks[np.ix_(row, column)].any():
                return "leak"
            allowed = self.columns[column[0]] >= self.positions[row[-1]]
            return "allowed" if allowed else "unchanged"

        return [(self.positions[row[0]], [cell(row, column) for column in columns]) for row in rows]


def positions_to_change(n_ctx: int, n: int) -> list[int]:
    """At most `n` positions from 1 to n_ctx - 1, all of them or evenly spread with both ends."""
    return np.unique(np.linspace(1, n_ctx - 1, min(n, n_ctx - 1)).round().astype(int)).tolist()


def ways_to_cut(n_ctx: int) -> list[Pieces]:
    """Ways through the cache: in one piece; and in pieces of several sizes, then token by token."""
    tail = min(n_ctx // 2, 32)
    body = n_ctx - tail
    sizes = sorted({-(-body // k) for k in (1, 3)}, reverse=True)
    cuts = [(size,) * (body // size) + (body % size,) * (body % size > 0) + (1,) * tail for size in sizes]
    return [(n_ctx,), *cuts]


@dataclass(frozen=True)
class Route:
    """A way through the model: the full forward, or in pieces through a fresh cache.

    `padding[i]` ids at the start of row i are not part of its prompt; through the cache alone.
    """

    pieces: Pieces = ()
    padding: Int[Tensor, " row"] | None = None


FULL_FORWARD = Route()


@dataclass(frozen=True)
class Inputs:
    """Rows of ids, the ids that replace them, and from which position on, for each time that they all run.

    Every tensor of `first` has a position for each row.
    """

    clean: Int[Tensor, "row position"]
    other: Int[Tensor, "row position"]
    first: Sequence[Int[Tensor, " row"]]


def causality(
    model: Transformer,
    n_positions: int = 64,
    precision: str = "fp32",
    seed: int = 0,
    progress: Progress = silent,
) -> CausalityResult:
    """Whether logits before position t are unchanged, to the bit, by the token at t and all after it.

    Passed means: no bit changed in the full forward and in every way through the cache, every gradient
    from logits before t to embeddings from t on is exactly 0, and no hidden key had any weight. The
    gradients are those of training mode, all else runs in evaluation mode, in which the model is left.
    A finite mask that did not leak passes and is reported. Bits are the same only for like shapes, so
    clean and changed inputs run in the same batch slots of the same pieces. Raises RequestError where
    there is nothing to change or nothing before it, TformerError where the logits are not finite.
    """
    c = model.config
    for name, found in (("n_ctx", c.n_ctx), ("vocab_size", c.vocab_size)):
        if found < 2:
            raise RequestError(f"{name} is {found}", "expected at least 2: a token before one that changes")
    model.eval()
    device = next(model.parameters()).device
    positions = positions_to_change(c.n_ctx, n_positions)
    rows = max(1, min(len(positions), ELEMENTS_AT_ONCE // (c.n_ctx * (c.vocab_size + _attention_size(c)))))
    # The last group is filled up: each group has the shape of the clean one.
    padded = positions + positions[-1:] * (-len(positions) % rows)
    groups = torch.tensor(padded, device=device).split(rows)
    # Each slot has its own tokens: some leaks show at some scores alone.
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(c.vocab_size, (rows, c.n_ctx), generator=generator)
    # Every token from t on becomes another one.
    other = (clean + torch.randint(1, c.vocab_size, clean.shape, generator=generator)) % c.vocab_size
    inputs = Inputs(clean := clean.to(device), other.to(device), groups)

    cuts = ways_to_cut(c.n_ctx)
    # Prompts of different lengths, padded to end together: none of half the context and more.
    padding = (torch.arange(rows, device=device) + 1) % (c.n_ctx // 2 + 1)
    routes = [FULL_FORWARD, *map(Route, cuts), Route(cuts[-1], padding)]
    done = itertools.count(1)

    def tick() -> None:
        progress(next(done), (len(routes) + 1) * len(groups))

    with one_thread(clean.numel() * model.n_parameters < SMALL):
        mask = measure_mask(model, clean, precision)
        changes, apart = [], 0.0
        full = logits_of(model, clean, FULL_FORWARD, precision)
        for route in routes:
            before = logits_of(model, clean, route, precision) if route.pieces else full
            changes.append(_changes(model, before, inputs, route, precision, tick))
            if route.padding is None:
                apart = max(apart, float((before - full).abs().max() / full.abs().max().clamp(min=1e-30)))
        gradient = 0.0
        for group in groups:
            gradient = max(gradient, gradient_leak(model, clean, group, precision, generator))
            tick()

    early = np.arange(c.n_ctx) < np.array(positions)[:, None]  # (changed, looked at)
    leaks = [np.where(early, some[: len(positions)], 0.0) for some in changes]
    full_leak, cached_leak = (float(np.max(some)) for some in (leaks[0], leaks[1:]))
    edges = np.linspace(0, c.n_ctx, min(MATRIX_COLUMNS, c.n_ctx) + 1).round().astype(int)
    return CausalityResult(
        passed=max(full_leak, cached_leak, gradient, mask.hidden_weight) == 0,
        max_leak=max(full_leak, cached_leak),
        full_leak=full_leak,
        cached=CachedResult(cached_leak == 0, cached_leak, [list(pieces) for pieces in cuts], apart),
        max_gradient=gradient,
        mask=mask,
        precision=precision,
        n_ctx=c.n_ctx,
        positions=positions,
        reached=float((changes[0][range(len(positions)), positions] > 0).mean()),
        matrix=np.maximum.reduceat(np.max(leaks, axis=0), edges[:-1], axis=1).tolist(),
        columns=edges.tolist(),
    )


def _attention_size(config: ModelConfig) -> int:
    """Attention weights of one query, over all blocks and heads: a backward pass keeps them all."""
    return config.n_layers * config.n_heads * config.n_ctx


# ---------------------------------------------------------------------------- differences


def _changes(
    model: Transformer,
    before: Tensor,
    inputs: Inputs,
    route: Route,
    precision: str,
    tick: Callable[[], None],
) -> np.ndarray:
    """How much the logits of each position (column) change with the tokens from each one on (row).

    `before` are those of the clean inputs.
    """
    check_finite(before, "logits", "compared")
    found = []
    for group in inputs.first:
        changed = changed_from(inputs.clean, inputs.other, group)
        found.append(largest_change(before, logits_of(model, changed, route, precision)))
        tick()
    return torch.cat(found).cpu().numpy()


def changed_from(
    clean: Int[Tensor, "row position"], other: Int[Tensor, "row position"], first: Int[Tensor, " row"]
) -> Int[Tensor, "row position"]:
    """Row i is `clean` before position first[i] and `other` from there on."""
    positions = torch.arange(clean.shape[1], device=clean.device)
    return torch.where(positions < first[:, None], clean, other)


@torch.inference_mode()
def logits_of(
    model: Transformer, ids: Int[Tensor, "row position"], route: Route, precision: str = "fp32"
) -> Float[Tensor, "row position vocab"]:
    """Logits of every position, by one full forward or piece by piece through a fresh cache."""
    with autocast(precision, ids.device):
        if not route.pieces:
            return model(ids)
        cache = KVCache(model.config, len(ids), model.embed.weight, route.padding)
        return torch.cat([model(piece, cache) for piece in ids.split(route.pieces, dim=1)], dim=1)


def largest_change(
    a: Float[Tensor, "row position vocab"], b: Float[Tensor, "row position vocab"]
) -> Float[Tensor, "row position"]:
    """The largest difference at each position: 0 only where every bit is the same."""
    as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    limits = torch.finfo(torch.float32)
    size = (a.float() - b.float()).abs().nan_to_num(limits.max, limits.max).clamp(min=limits.tiny)
    return size.masked_fill(a.view(as_bits) == b.view(as_bits), 0.0).amax(-1)


def gradient_leak(
    model: Transformer,
    ids: Int[Tensor, "row position"],
    first: Int[Tensor, " row"],
    precision: str,
    generator: torch.Generator,
) -> float:
    """The largest gradient that random cotangents on row i's logits before first[i] send from it on.

    One backward pass for all rows; embeddings from first[i] on should receive exactly 0. In training mode:
    dropout hides no path for long, and a leak in that mode alone would be learned from.
    """
    model.train()
    try:
        devices = [ids.device] if ids.device.type == "cuda" else []
        with (
            cut_at_embedding(model) as leaves,
            torch.random.fork_rng(devices),
            autocast(precision, ids.device),
        ):
            torch.manual_seed(generator.initial_seed())  # of dropout
            logits = model(ids)
    finally:
        model.eval()
    early = torch.arange(ids.shape[1], device=ids.device) < first[:, None]
    cotangent = torch.randn(logits.shape, generator=generator).to(logits) * early[..., None]
    limit, largest = torch.finfo(torch.float32).max, 0.0
    for gradient in torch.autograd.grad(logits, leaves, cotangent, allow_unused=True):
        if gradient is not None:
            size = gradient.float().abs().nan_to_num(limit, limit).amax(-1)
            largest = max(largest, float(size.masked_fill(early, 0.0).max()))
    return largest


def measure_mask(model: Transformer, ids: Int[Tensor, "row position"], precision: str = "fp32") -> MaskResult:
    """Watch every block's attention in a full forward and a cached one in two pieces."""
    n_ctx = ids.shape[1]
    with torch.inference_mode(), measuring(model) as calls:
        logits_of(model, ids, FULL_FORWARD, precision)
        logits_of(model, ids, Route((n_ctx - n_ctx // 2, n_ctx // 2)), precision)
    return mask_result(calls, [layer for layer, _ in distinct_attentions(model)])
