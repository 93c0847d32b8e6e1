"""Evidence for question 5: what the causal mask does, and one sequence as many examples."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import Open, TooFar, copy_of, start_random, with_attention
from tformer.answer.q5_mask.leaks import prefix_losses
from tformer.figures import Heat, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import CausalSelfAttention, Transformer

# ---------------------------------------------------------------------------- the Jacobian's triangle


@dataclass(frozen=True)
class JacobianEvidence:
    """How much the logits at t (row) depend on the token at s (column), each row's largest as 1."""

    blocks: int
    matrices: dict[str, list[list[float]]]


def dependence(model: Transformer, ids: Tensor, seed: int) -> np.ndarray:
    """|uᵀ ∂logits[t] / ∂embedding[s]| for a random direction u, shape (T, T), ids of shape (1, T).

    In float64, where no product along a path underflows: 0 means that there is no path.
    """
    n = ids.shape[1]
    leaves: list[Tensor] = []

    def cut(module: object, args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hook = model.embed.register_forward_hook(cut)
    try:
        logits = model(ids.expand(n, n))  # row t of the batch is for position t
    finally:
        hook.remove()
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(logits.shape[-1], generator=generator, dtype=logits.dtype)
    at_own = (torch.eye(n, dtype=logits.dtype)[..., None] * direction).to(logits)
    (gradient,) = torch.autograd.grad(logits, leaves, at_own)
    found: np.ndarray = gradient.norm(dim=-1).numpy()
    return found


RIGHT, NONE, FAR = "the mask", "none", "one too far"
KINDS: dict[str, type[CausalSelfAttention]] = {RIGHT: CausalSelfAttention, NONE: Open, FAR: TooFar}


def measure_jacobian(budget: Budget, seed: int, subject: Subject | None) -> JacobianEvidence:
    """Of the run, or of random weights, with three masks."""
    length = budget.pick(quick=12, full=24)
    if subject:
        model, ids = subject.model, subject.ids(1, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, start_random)
        ids = torch.randint(32, (1, length))
    found = {}
    for name, kind in KINDS.items():
        matrix = dependence(with_attention(copy_of(model), kind).double(), ids, seed)
        found[name] = (matrix / matrix.max(axis=1, keepdims=True)).tolist()
    return JacobianEvidence(model.config.n_layers, found)


def show_jacobian(measured: Sequence[JacobianEvidence]) -> Finding:
    """A triangle with the mask, a square without, a diagonal for each block with one too far."""
    one = measured[0]
    n = len(one.matrices[RIGHT])
    ahead = np.arange(n)[None] - np.arange(n)[:, None]  # s - t

    def over(name: str, measure: Callable[[np.ndarray], float], style: str) -> Numbers:
        return Numbers(tuple(measure(np.array(e.matrices[name])) for e in measured), style)

    def reach(matrix: np.ndarray) -> float:
        return float(ahead[matrix > 0].max())

    table = Table(
        "From how far ahead the logits of a position depend on tokens",
        ("", "farthest", "pairs with t < s that leak"),
        tuple(
            (name, over(name, reach, ".0f"), over(name, lambda m: float((m[ahead > 0] > 0).mean()), ".3f"))
            for name in KINDS
        ),
    )
    captions = tuple((name, tuple(tuple(row) for row in one.matrices[name])) for name in KINDS)
    figure = Heat("Which token each position depends on", "logits at", "token at", captions)
    expected = min(one.blocks, n - 1)
    claims = (
        Claim(
            "With the mask no logit depends on a later token",
            over(RIGHT, lambda m: float(m[ahead > 0].max()), ".1e"),
            "at most",
            0,
            "Exactly 0: there is no path.",
        ),
        Claim(
            "With the mask each depends on its own token",
            over(RIGHT, lambda m: float((m[ahead == 0] > 0).mean()), ".2f"),
            "at least",
            1,
            "So that the measurement can see a dependence where there is one.",
        ),
        Claim(
            "Without it every logit depends on every later token",
            over(NONE, lambda m: float((m[ahead > 0] > 0).mean()), ".3f"),
            "at least",
            0.99,
            "All pairs.",
        ),
        Claim(
            f"One diagonal too far reaches {expected} ahead: one more with each block",
            over(FAR, lambda m: abs(reach(m) - expected), ".0f"),
            "at most",
            0,
            "The distance from the number of blocks: each passes on what the one before has taken.",
        ),
    )
    said = (
        "The gradient of the logits at t, in a random direction, with respect to the embedding at s, in "
        "float64; brightest is the largest of a row."
    )
    return Finding(said, (table,), (figure,), claims)


# ---------------------------------------------------------------------------- one forward, many examples


@dataclass(frozen=True)
class PrefixEvidence:
    """The losses of one forward of T positions against those of T forwards of the T prefixes."""

    positions: int
    largest_difference: float  # nats
    gradient_difference: float  # of all weights, relative
    positions_computed_once: int
    positions_computed_by_prefixes: int
    milliseconds_once: float
    milliseconds_by_prefixes: float


def seconds_of(work: Callable[[], object], times: int) -> float:
    """The median CPU time of one thread: others on the machine do not count."""
    work()
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def gradient_of(model: Transformer, loss: Callable[[], Tensor]) -> Tensor:
    """All of it, in one row."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def measure_prefixes(budget: Budget, seed: int, subject: Subject | None) -> PrefixEvidence:
    """Score the same tokens both ways, with the weights of the run or with random ones."""
    length = budget.pick(quick=32, full=128) + 1
    if subject:
        model, ids = copy_of(subject.model), subject.ids(1, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, start_random).eval()
        ids = torch.randint(32, (1, length))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    n = inputs.shape[1]

    def prefix_sum() -> Tensor:
        each = [cross_entropy(model(inputs[:, : t + 1]), targets[:, : t + 1])[0, -1:] for t in range(n)]
        return torch.cat(each).sum()

    with torch.inference_mode():
        once = cross_entropy(model(inputs), targets)
        difference = float((once - prefix_losses(model, inputs, targets)).abs().max())
        seconds = (
            seconds_of(lambda: cross_entropy(model(inputs), targets), 9),
            seconds_of(lambda: prefix_losses(model, inputs, targets), 3),
        )
    whole = gradient_of(model, lambda: cross_entropy(model(inputs), targets).sum())
    summed = gradient_of(model, prefix_sum)
    off = float((whole - summed).norm() / whole.norm())
    once_ms, each_ms = (1000 * s for s in seconds)
    return PrefixEvidence(n, difference, off, n, n * (n + 1) // 2, once_ms, each_ms)


def show_prefixes(measured: Sequence[PrefixEvidence]) -> Finding:
    """The same losses to rounding, for a fraction of the work."""
    first = measured[0]
    n = first.positions
    table = Table(
        "The same losses, computed twice",
        ("", "forwards", "positions computed", "CPU time"),
        (
            (
                "one forward of the sequence",
                "1",
                str(first.positions_computed_once),
                str(Numbers(tuple(e.milliseconds_once for e in measured), ".3g", "ms")),
            ),
            (
                "a forward for each prefix",
                str(n),
                str(first.positions_computed_by_prefixes),
                str(Numbers(tuple(e.milliseconds_by_prefixes for e in measured), ".3g", "ms")),
            ),
        ),
    )
    cost = tuple(e.milliseconds_by_prefixes / max(e.milliseconds_once, 1e-6) for e in measured)
    claims = (
        Claim(
            f"One forward of {n} positions gives the losses of all {n} prefixes",
            Numbers(tuple(e.largest_difference for e in measured), ".1e", "nats"),
            "at most",
            1e-4,
            "Rounding of float32 in matrix products of other shapes is about 1e-6.",
        ),
        Claim(
            "The gradient of the one is the sum of the others'",
            Numbers(tuple(e.gradient_difference for e in measured), ".1e"),
            "at most",
            1e-3,
            "Relative to its size; rounding, as above, added up over all of them.",
        ),
        Claim(
            f"{n} forwards of the prefixes take many times as long",
            Numbers(cost, ".3g"),
            "at least",
            n / 4,
            f"(T + 1)/2 = {(n + 1) / 2:g} if time goes by positions, T = {n} if by calls; half of the less.",
        ),
    )
    return Finding("Every position of one forward is an example of its own.", (table,), (), claims)
