"""Evidence for question 2: why √d_k. Variance of q · k, entropy of the softmax, size of its gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tformer.answer.claims import Budget, Claim, Finding, largest, over_seeds
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.trace import Call, calls_of
from tformer.figures import Lines, Numbers, Table
from tformer.model import attention


@dataclass(frozen=True)
class Sharpness:
    """Of one layer's scores, with 1/√d_k and without. Rows are the queries of the second half."""

    variance: float  # of q · k over the keys that a query sees; mean of the rows
    entropy: tuple[float, float]  # of the weights, over that of equal weights; mean of the rows
    jacobian: tuple[float, float]  # Frobenius norm of diag(p) - p pᵀ; median of the rows
    at_q: tuple[float, float]  # norm of the gradient at a query, for a random one at its output; mean
    richest: tuple[float, float]  # share of that which goes to the tenth of the queries that gets most
    starved: tuple[float, float]  # share of the rows whose Jacobian is below a tenth of the scaled median


@dataclass(frozen=True)
class ScaleEvidence:
    """Fresh modules of several widths, and the layers of a run."""

    widths: tuple[int, ...]
    fresh: tuple[Sharpness, ...]
    run: dict[str, Sharpness]
    run_d_head: int


def sharpness(call: Call, seed: int) -> Sharpness:
    """By `attention` itself; without the scale means √d_k · q. In float64: a Jacobian is a difference."""
    q, k, v = (t.double() for t in (call.q, call.k, call.v))
    half = q.shape[2] // 2
    seen = call.mask.expand(*q.shape[:3], k.shape[2])[:, :, half:]
    dots = (q @ k.mT)[:, :, half:].masked_fill(~seen, 0.0)
    count = seen.sum(-1, keepdim=True).double()
    spread = (dots - dots.sum(-1, keepdim=True) / count).masked_fill(~seen, 0.0)
    variance = spread.square().sum(-1, keepdim=True) / (count - 1)
    cotangent = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = count[..., 0].log()
    found = []
    for factor in (1.0, math.sqrt(q.shape[-1])):
        inputs = q.clone().requires_grad_()
        output, weights = attention(inputs * factor, k, v, call.mask)
        (at_q,) = torch.autograd.grad((output * cotangent).sum(), inputs)
        p = weights.detach()[:, :, half:]
        entropy = -torch.special.xlogy(p, p).sum(-1) / uniform
        squares = p.square().sum(-1)
        jacobian = (squares - 2 * p.pow(3).sum(-1) + squares.square()).clamp_min(0).sqrt()
        found.append((entropy, jacobian, at_q[:, :, half:].norm(dim=-1)))
    (entropy, jacobian, at_q), (entropy_2, jacobian_2, at_q_2) = found
    few = 0.1 * jacobian.median()
    return Sharpness(
        float(variance.mean()),
        (float(entropy.mean()), float(entropy_2.mean())),
        (float(jacobian.median()), float(jacobian_2.median())),
        (float(at_q.mean()), float(at_q_2.mean())),
        (richest(at_q), richest(at_q_2)),
        (float((jacobian < few).double().mean()), float((jacobian_2 < few).double().mean())),
    )


def richest(norms: torch.Tensor) -> float:
    """The share of the largest tenth."""
    ordered = norms.flatten().sort(descending=True).values
    return float(ordered[: max(1, len(ordered) // 10)].sum() / ordered.sum().clamp_min(1e-300))


def measure_scale(budget: Budget, seed: int, subject: Subject | None) -> ScaleEvidence:
    """Q and K of fresh modules at several d_k; of a run, at most six of its layers, and a fresh one."""
    widths = budget.pick(quick=(4, 16, 64, 256), full=(4, 8, 16, 32, 64, 128, 256, 512, 1024))
    fresh = []
    for d_head in widths:
        config = tiny(vocab_size=64, n_ctx=64, n_layers=1, n_heads=2, d_model=2 * d_head, d_mlp=1)
        model = build(config, seed)
        fresh.append(sharpness(calls_of(model, torch.randint(64, (4, 64)))[0], seed))
    run: dict[str, Sharpness] = {}
    if subject:
        config = subject.model.config.model_copy(update={"n_layers": 1, "d_mlp": 1})
        ids = subject.ids(2, 64, seed)
        if ids.shape[1] > 1:
            run["fresh, as wide"] = sharpness(calls_of(build(config, seed), ids)[0], seed)
            calls = calls_of(subject.model, ids)
            for layer in sorted({round(i * (len(calls) - 1) / 5) for i in range(6)}):
                run[f"layer {layer + 1}"] = sharpness(calls[layer], seed)
    return ScaleEvidence(widths, tuple(fresh), run, subject.model.config.d_head if subject else 0)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y on log x, by least squares: the exponent."""
    logs = [(math.log(a), math.log(max(b, 1e-300))) for a, b in zip(x, y, strict=True)]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in logs) / sum((a - mean_x) ** 2 for a, _ in logs)


def show_scale(measured: Sequence[ScaleEvidence]) -> Finding:
    """Variance, entropy and gradient against d_k."""
    widths = measured[0].widths
    x, last = tuple(map(float, widths)), widths[-1]

    def of(name: str, i: int, which: int | None, style: str = ".2f") -> Numbers:
        values = (getattr(e.fresh[i], name) for e in measured)
        return Numbers(tuple(v if which is None else v[which] for v in values), style)

    def curves(name: str, which: int) -> list[list[float]]:
        return [[getattr(f, name)[which] for f in e.fresh] for e in measured]

    variances = [[f.variance for f in e.fresh] for e in measured]
    scaled = [[v / d for v, d in zip(c, x, strict=True)] for c in variances]
    spread = Table(
        "Fresh modules: variance of q · k, entropy of the weights (equal ones: 1)",
        ("d_k", "variance", "entropy", "without √d_k"),
        tuple(
            (str(d), of("variance", i, None, ".3g"), of("entropy", i, 0), of("entropy", i, 1))
            for i, d in enumerate(widths)
        ),
    )
    gradient = Table(
        "Gradient: norm of the softmax's Jacobian (median query), and what reaches Q (mean)",
        ("d_k", "Jacobian", "without √d_k", "at Q", "without √d_k"),
        tuple(
            (str(d), *(of(name, i, which, ".3g") for name in ("jacobian", "at_q") for which in (0, 1)))
            for i, d in enumerate(widths)
        ),
    )
    names = ("with 1/√d_k", "without")
    figures = (
        Lines(
            "The variance of q · k grows as d_k; that of q · k / √d_k does not",
            "d_k",
            "variance",
            (
                over_seeds("q · k / √d_k", x, scaled),
                over_seeds("q · k", x, variances),
            ),
            log_x=True,
            log_y=True,
        ),
        *(
            Lines(
                title,
                "d_k",
                label,
                tuple(over_seeds(n, x, curves(name, which)) for which, n in enumerate(names)),
                log_x=True,
                log_y=log,
            )
            for title, label, name, log in (
                ("Entropy of the weights", "of equal weights' entropy", "entropy", False),
                ("Gradient at the scores", "norm of the Jacobian", "jacobian", True),
            )
        ),
    )
    exponent = Numbers(tuple(abs(slope(x, c) - 1) for c in variances), ".2f")
    keeps = Numbers(tuple(-largest(-entropy for entropy in c) for c in curves("entropy", 0)), ".2f")
    loses = Numbers(tuple(c[-1] for c in curves("entropy", 1)), ".2f")
    ratio = Numbers(
        tuple(b[-1] / a[-1] for a, b in zip(curves("jacobian", 0), curves("jacobian", 1), strict=True)), ".2g"
    )
    claims = (
        Claim(
            "On fresh modules the variance of q · k grows as d_k (distance of the exponent from 1)",
            exponent,
            "at most",
            0.25,
            "Without growth the exponent is 0; of aligned q and k it is 2.",
        ),
        Claim(
            "With 1/√d_k the entropy of the weights stays high at every d_k",
            keeps,
            "at least",
            0.5,
            "For scores of variance 1 on 32 to 64 keys theory says 1 - 1/(2 ln n), about 0.87; one-hot is 0.",
        ),
        Claim(
            f"Without it the weights come close to one-hot: little entropy is left at d_k = {last}",
            loses,
            "at most",
            0.5,
            "Halfway between one-hot, 0, and equal weights, 1.",
        ),
        Claim(
            f"Without it the median query has less gradient at its scores (ratio, d_k = {last})",
            ratio,
            "at most",
            0.5,
            "The ratio is 1 if the scale does nothing; half of that.",
        ),
    )
    tables = (spread, gradient, *_run_table(measured))
    at_q = Numbers(tuple(e.fresh[-1].at_q[1] / e.fresh[-1].at_q[0] for e in measured), ".2g")
    starved = Numbers(tuple(100 * e.fresh[-1].starved[1] for e in measured), ".0f", "%")
    most = [Numbers(tuple(100 * e.fresh[-1].richest[i] for e in measured), ".0f", "%") for i in (0, 1)]
    said = (
        "The initial weights here give components of q and k variance 1; 64 positions, causal mask. What "
        "the usual story leaves out: the factor √d_k that is missing in the scores comes back in the "
        f"gradient at Q. On average that is {at_q} times the scaled one at d_k = {last}, not smaller. But it "
        f"is uneven: a tenth of the queries gets {most[1]} of it (with the scale {most[0]}), and {starved} "
        "have a Jacobian below a tenth of the usual."
    )
    return Finding(said, tables, figures, claims)


def _run_table(measured: Sequence[ScaleEvidence]) -> tuple[Table, ...]:
    first = measured[0]
    if not first.run:
        return ()

    def row(layer: str) -> tuple[str | Numbers, ...]:
        found = [e.run[layer] for e in measured]
        return (
            layer,
            Numbers(tuple(f.variance / first.run_d_head for f in found), ".3g"),
            *(Numbers(tuple(f.entropy[which] for f in found), ".2f") for which in (0, 1)),
        )

    title = f"Layers of the run, d_k = {first.run_d_head}"
    columns = ("", "variance / d_k", "entropy", "without √d_k")
    return (Table(title, columns, tuple(row(layer) for layer in first.run)),)
