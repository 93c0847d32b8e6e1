"""Question 2, cost: memory and time of score functions as the number of positions grows."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, tiny
from tformer.answer.q2_qkv import scores
from tformer.answer.q2_qkv.scores import Additive
from tformer.figures import Lines, Numbers, Series, Table
from tformer.model import causal_mask


def kept_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once; no parameters."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad  # and it keeps the storages alive, so that none is counted under another
    known = {p.untyped_storage().data_ptr() for p in parameters}
    return sum(size for pointer, size in storages.items() if pointer not in known)


@dataclass(frozen=True)
class CostEvidence:
    """Attention alone, one head, forward and backward, against the number of positions."""

    lengths: tuple[int, ...]
    d_head: int
    kept: dict[str, tuple[int, ...]]  # bytes for the backward pass
    milliseconds: dict[str, tuple[float, ...]]  # of CPU time, median

    def growth(self, name: str) -> float:
        """The exponent with which kept bytes grow, from the last doubling of the positions."""
        return math.log2(self.kept[name][-1] / self.kept[name][-2])


DOT, ADDITIVE, LINEAR = "scaled dot", "additive", "linear kernel"
FUSED, SUMS = "scaled dot, fused", "linear kernel, as sums"
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of q, k, v and the mask: the output


def _weighing(weigh: scores.Weigh) -> Way:
    return lambda q, k, v, mask: weigh(q, k, mask) @ v


def _sums(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return scores.linear_attention(q, k, v)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def measure_cost(effort: Effort, seed: int, subject: Subject | None) -> CostEvidence:
    """Random q, k and v: neither count depends on their values."""
    config = tiny(n_heads=1, d_model=32)
    lengths = effort.pick(quick=(64, 128, 256, 512), full=(64, 128, 256, 512, 1024))
    repeats = effort.pick(quick=3, full=9)
    torch.manual_seed(seed)
    additive = Additive(config)
    weighed: dict[str, scores.Weigh] = {
        DOT: scores.scaled_dot,
        ADDITIVE: additive,
        LINEAR: scores.linear_kernel,
    }
    ways = {name: _weighing(weigh) for name, weigh in weighed.items()} | {SUMS: _sums, FUSED: _fused}
    kept: dict[str, list[int]] = {name: [] for name in ways}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for n in lengths:
        mask = causal_mask(n, n)[None, None]
        inputs = (*(torch.randn(1, 1, n, config.d_head, requires_grad=True) for _ in range(3)), mask)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():
            kept[name].append(kept_bytes(partial(way, *inputs), (*additive.parameters(), mask)))
        for _ in range(repeats):  # in turn, so that a busy moment does not meet one alone
            for name, way in ways.items():
                began = time.process_time()
                way(*inputs).sum().backward()
                seconds[name].append(time.process_time() - began)
        for name in ways:
            taken[name].append(1000 * statistics.median(seconds[name]))
    return CostEvidence(
        lengths,
        config.d_head,
        {n: tuple(b) for n, b in kept.items()},
        {n: tuple(t) for n, t in taken.items()},
    )


def show_cost(seeds: Seeds[CostEvidence]) -> Finding:
    """Growth of memory, and additive against dot."""
    first = seeds.first
    n = first.lengths[-1]
    halfway = "Halfway between linear, 1, and quadratic, 2."
    return Finding.of(
        "The n² is that of the formula written out. A fused kernel (here torch's) computes the same softmax "
        "in pieces, and again in the backward pass, and keeps no weights: its memory is linear too (Dao et "
        "al. 2022). The sums keep d_head² numbers a position, and pay only beyond about that many positions.",
        _table(seeds),
        _memory(seeds),
        at_least(
            "A matrix of weights costs memory that grows as n² (the scaled dot's exponent)",
            seeds.of(lambda e: e.growth(DOT), ".2f"),
            1.5,
            halfway,
        ),
        at_most(
            "The linear kernel needs none: its sums formed first, memory grows as n (exponent)",
            seeds.of(lambda e: e.growth(SUMS), ".2f"),
            1.5,
            halfway,
        ),
        at_least(
            f"Additive keeps many times what the scaled dot keeps, {n} positions (ratio)",
            seeds.of(lambda e: e.kept[ADDITIVE][-1] / e.kept[DOT][-1]),
            first.d_head / 4,
            f"{first.d_head} numbers of tanh for each pair, where a weight is one; a quarter of that, as q, "
            "k, v and the mask are kept as well.",
        ),
        at_least(
            f"Additive takes longer than the scaled dot, {n} positions (ratio)",
            seeds.of(lambda e: e.milliseconds[ADDITIVE][-1] / e.milliseconds[DOT][-1]),
            2,
            "1 would be the same; clocks waver, so 2.",
        ),
    )


def _table(seeds: Seeds[CostEvidence]) -> Table:
    """What each way keeps and takes at the largest number of positions."""
    first = seeds.first

    def row(name: str) -> tuple[str | Numbers, ...]:
        return (
            name,
            Numbers((first.kept[name][-1] / 1e6,), ".3f"),
            Numbers((seeds.of(lambda e: e.growth(name)).mean,), ".2f"),
            seeds.of(lambda e: e.milliseconds[name][-1]),
        )

    return Table(
        f"One head, d_head = {first.d_head}, {first.lengths[-1]} positions",
        ("", "MB kept", "grows as n to the", "ms, forward and backward"),
        tuple(map(row, first.kept)),
    )


def _memory(seeds: Seeds[CostEvidence]) -> Lines:
    """What each way keeps, against the number of positions."""
    lengths = tuple(map(float, seeds.first.lengths))

    def curve(name: str) -> Series:
        return seeds.curve(name, lengths, lambda e: [n_bytes / 1e6 for n_bytes in e.kept[name]])

    return Lines(
        "Memory kept for the backward pass",
        "positions",
        "MB",
        tuple(map(curve, seeds.first.kept)),
        log_x=True,
        log_y=True,
    )
