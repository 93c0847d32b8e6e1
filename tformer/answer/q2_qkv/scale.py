"""Question 2, scale: why √d_k. Variance of q · k, entropy of the softmax, size of its gradient."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tformer.answer.claims import Finding, at_least, at_most, smallest
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, calls_of, tiny
from tformer.figures import Lines, Numbers, Table
from tformer.model import Formula, attention
from tformer.watch import AttentionCall

FEW = 0.1  # of the usual Jacobian: a query below it is starved

# ---------------------------------------------------------------------------- measuring


class Both(NamedTuple):
    """One quantity with the factor 1/√d_k and without it."""

    scaled: float
    unscaled: float


@dataclass(frozen=True)
class Sharpness:
    """How sharp one layer's softmax is. Rows are the queries of the second half."""

    variance: float  # of q · k over the keys that a query sees; mean of the rows
    entropy: Both  # of the weights, over that of equal weights; mean of the rows
    jacobian: Both  # Frobenius norm of diag(p) - p pᵀ; median of the rows
    at_q: Both  # norm of the gradient at a query, for a random one at its output; mean
    richest: Both  # share of that which goes to the tenth of the queries that gets most
    starved: Both  # share of the rows whose Jacobian is below a tenth of the scaled median


@dataclass(frozen=True)
class ScaleEvidence:
    """Fresh modules of several widths, and the layers of a run."""

    widths: tuple[int, ...]  # d_k
    fresh: tuple[Sharpness, ...]
    run: dict[str, Sharpness]
    run_d_head: int


class Rows(NamedTuple):
    """What is measured for each row, (batch, head, query of the second half)."""

    entropy: Tensor
    jacobian: Tensor
    at_q: Tensor


def sharpness(call: AttentionCall, seed: int, formula: Formula = attention) -> Sharpness:
    """By `attention` itself; without the scale means √d_k · q. In float64: a Jacobian is a difference."""
    q, k, v = (t.double() for t in (call.q, call.k, call.v))
    cotangent = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert call.mask is not None
    half = q.shape[2] // 2
    seen = call.mask.expand(*q.shape[:3], k.shape[2])[:, :, half:]
    count = seen.sum(-1, keepdim=True).double()
    uniform = count[..., 0].log()  # the entropy of equal weights

    def rows(factor: float) -> Rows:
        inputs = q.clone().requires_grad_()
        output, weights = formula(inputs * factor, k, v, call.mask)
        (at_q,) = torch.autograd.grad((output * cotangent).sum(), inputs)
        p = weights.detach()[:, :, half:]
        squares = p.square().sum(-1)
        return Rows(
            entropy=-torch.special.xlogy(p, p).sum(-1) / uniform,
            jacobian=(squares - 2 * p.pow(3).sum(-1) + squares.square()).clamp_min(0).sqrt(),
            at_q=at_q[:, :, half:].norm(dim=-1),
        )

    dots = (q @ k.mT)[:, :, half:].masked_fill(~seen, 0.0)
    spread = (dots - dots.sum(-1, keepdim=True) / count).masked_fill(~seen, 0.0)
    variance = spread.square().sum(-1, keepdim=True) / (count - 1)
    both = rows(1.0), rows(math.sqrt(q.shape[-1]))
    few = FEW * both[0].jacobian.median()
    return Sharpness(
        float(variance.mean()),
        Both(*(float(r.entropy.mean()) for r in both)),
        Both(*(float(r.jacobian.median()) for r in both)),
        Both(*(float(r.at_q.mean()) for r in both)),
        Both(*(share_of_the_richest(r.at_q) for r in both)),
        Both(*(float((r.jacobian < few).double().mean()) for r in both)),
    )


def share_of_the_richest(norms: Tensor) -> float:
    """The share of all that the largest tenth has."""
    ordered = norms.flatten().sort(descending=True).values
    return float(ordered[: max(1, len(ordered) // 10)].sum() / ordered.sum().clamp_min(1e-300))


def measure_scale(
    effort: Effort, seed: int, subject: Subject | None, formula: Formula = attention
) -> ScaleEvidence:
    """Q and K of fresh modules at several d_k; of a run, at most six of its layers, and a fresh one."""
    widths = effort.pick(quick=(4, 16, 64, 256), full=(4, 8, 16, 32, 64, 128, 256, 512, 1024))
    fresh = []
    for d_head in widths:
        config = tiny(vocab_size=64, n_ctx=64, n_layers=1, n_heads=2, d_model=2 * d_head, d_mlp=1)
        model = build(config, seed)
        fresh.append(sharpness(calls_of(model, torch.randint(64, (4, 64)))[0], seed, formula))
    run: dict[str, Sharpness] = {}
    if subject:
        config = subject.model.config.model_copy(update={"n_layers": 1, "d_mlp": 1})
        ids = subject.ids(2, 64, seed)
        if ids.shape[1] > 1:
            run["fresh, as wide"] = sharpness(calls_of(build(config, seed), ids)[0], seed, formula)
            calls = calls_of(subject.model, ids)
            for layer in sorted({round(i * (len(calls) - 1) / 5) for i in range(6)}):
                run[f"layer {layer + 1}"] = sharpness(calls[layer], seed, formula)
    return ScaleEvidence(widths, tuple(fresh), run, subject.model.config.d_head if subject else 0)


# ---------------------------------------------------------------------------- showing


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y on log x, by least squares: the exponent."""
    logs = [(math.log(a), math.log(max(b, 1e-300))) for a, b in zip(x, y, strict=True)]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in logs) / sum((a - mean_x) ** 2 for a, _ in logs)


def show_scale(seeds: Seeds[ScaleEvidence]) -> Finding:
    """Variance, entropy and gradient against d_k."""
    widths = tuple(map(float, seeds.first.widths))
    last = seeds.first.widths[-1]

    def at_last(quantity: Callable[[Sharpness], float], style: str, unit: str = "") -> Numbers:
        return seeds.of(lambda e: quantity(e.fresh[-1]), style, unit)

    at_q = at_last(lambda s: s.at_q.unscaled / s.at_q.scaled, ".2g")
    starved = at_last(lambda s: 100 * s.starved.unscaled, ".0f", "%")
    richest = at_last(lambda s: 100 * s.richest.unscaled, ".0f", "%")
    richest_scaled = at_last(lambda s: 100 * s.richest.scaled, ".0f", "%")
    return Finding.of(
        "The initial weights here give components of q and k variance 1; 64 positions, causal mask. What "
        "the usual story leaves out: the factor √d_k that is missing in the scores comes back in the "
        f"gradient at Q. On average that is {at_q} times the scaled one at d_k = {last}, not smaller. But it "
        f"is uneven: a tenth of the queries gets {richest} of it (with the scale {richest_scaled}), and "
        f"{starved} have a Jacobian below a tenth of the usual.",
        *_tables(seeds),
        *_figures(seeds),
        at_most(
            "On fresh modules the variance of q · k grows as d_k (distance of the exponent from 1)",
            seeds.of(lambda e: abs(slope(widths, [s.variance for s in e.fresh]) - 1), ".2f"),
            0.25,
            "Without growth the exponent is 0; of aligned q and k it is 2.",
        ),
        at_least(
            "With 1/√d_k the entropy of the weights stays high at every d_k",
            seeds.of(lambda e: smallest(s.entropy.scaled for s in e.fresh), ".2f"),
            0.5,
            "For scores of variance 1 on 32 to 64 keys theory says 1 - 1/(2 ln n), about 0.87; one-hot is 0.",
        ),
        at_most(
            f"Without it the weights come close to one-hot: little entropy is left at d_k = {last}",
            at_last(lambda s: s.entropy.unscaled, ".2f"),
            0.5,
            "Halfway between one-hot, 0, and equal weights, 1.",
        ),
        at_most(
            f"Without it the median query has less gradient at its scores (ratio, d_k = {last})",
            at_last(lambda s: s.jacobian.unscaled / s.jacobian.scaled, ".2g"),
            0.5,
            "The ratio is 1 if the scale does nothing; half of that.",
        ),
    )


def _tables(seeds: Seeds[ScaleEvidence]) -> list[Table]:
    """Spread and gradient at every width; and of a run, its layers."""

    def of(i: int, quantity: Callable[[Sharpness], float], style: str) -> Numbers:
        return seeds.of(lambda e: quantity(e.fresh[i]), style)

    def spread(i: int, d_k: int) -> tuple[str | Numbers, ...]:
        return (
            str(d_k),
            of(i, lambda s: s.variance, ".3g"),
            of(i, lambda s: s.entropy.scaled, ".2f"),
            of(i, lambda s: s.entropy.unscaled, ".2f"),
        )

    def gradient(i: int, d_k: int) -> tuple[str | Numbers, ...]:
        return (
            str(d_k),
            of(i, lambda s: s.jacobian.scaled, ".3g"),
            of(i, lambda s: s.jacobian.unscaled, ".3g"),
            of(i, lambda s: s.at_q.scaled, ".3g"),
            of(i, lambda s: s.at_q.unscaled, ".3g"),
        )

    def layer(name: str) -> tuple[str | Numbers, ...]:
        return (
            name,
            seeds.of(lambda e: e.run[name].variance / e.run_d_head, ".3g"),
            seeds.of(lambda e: e.run[name].entropy.scaled, ".2f"),
            seeds.of(lambda e: e.run[name].entropy.unscaled, ".2f"),
        )

    first = seeds.first
    tables = [
        Table(
            "Fresh modules: variance of q · k, entropy of the weights (equal ones: 1)",
            ("d_k", "variance", "entropy", "without √d_k"),
            tuple(spread(i, d_k) for i, d_k in enumerate(first.widths)),
        ),
        Table(
            "Gradient: norm of the softmax's Jacobian (median query), and what reaches Q (mean)",
            ("d_k", "Jacobian", "without √d_k", "at Q", "without √d_k"),
            tuple(gradient(i, d_k) for i, d_k in enumerate(first.widths)),
        ),
    ]
    if first.run:
        title = f"Layers of the run, d_k = {first.run_d_head}"
        columns = ("", "variance / d_k", "entropy", "without √d_k")
        tables.append(Table(title, columns, tuple(map(layer, first.run))))
    return tables


def _figures(seeds: Seeds[ScaleEvidence]) -> list[Lines]:
    """Variance, entropy and Jacobian as curves over d_k."""
    widths = tuple(map(float, seeds.first.widths))

    def scaled_variance(e: ScaleEvidence) -> list[float]:
        return [s.variance / d_k for s, d_k in zip(e.fresh, widths, strict=True)]

    return [
        Lines(
            "The variance of q · k grows as d_k; that of q · k / √d_k does not",
            "d_k",
            "variance",
            (
                seeds.curve("q · k / √d_k", widths, scaled_variance),
                seeds.curve("q · k", widths, lambda e: [s.variance for s in e.fresh]),
            ),
            log_x=True,
            log_y=True,
        ),
        Lines(
            "Entropy of the weights",
            "d_k",
            "of equal weights' entropy",
            (
                seeds.curve("with 1/√d_k", widths, lambda e: [s.entropy.scaled for s in e.fresh]),
                seeds.curve("without", widths, lambda e: [s.entropy.unscaled for s in e.fresh]),
            ),
            log_x=True,
        ),
        Lines(
            "Gradient at the scores",
            "d_k",
            "norm of the Jacobian",
            (
                seeds.curve("with 1/√d_k", widths, lambda e: [s.jacobian.scaled for s in e.fresh]),
                seeds.curve("without", widths, lambda e: [s.jacobian.unscaled for s in e.fresh]),
            ),
            log_x=True,
            log_y=True,
        ),
    ]
