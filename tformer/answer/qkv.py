"""Evidence for question 2: the shapes of Q, K and V in a real forward pass, and why √d_k."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tformer.answer.alternatives import ALTERNATIVES
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.trace import Call, cached_calls_of, calls_of, grown_vocabulary
from tformer.evidence import Budget, Claim, Experiment, Finding, Lines, Numbers, Table, over_seeds
from tformer.model import Transformer, attention

# ---------------------------------------------------------------------------- shapes

MORE_TOKENS = 7
AXES = {  # of each traced tensor
    "Q": ("batch", "head", "query", "d_head"),
    "K": ("batch", "head", "key", "d_head"),
    "V": ("batch", "head", "key", "d_head"),
    "weights": ("batch", "head", "query", "key"),
    "output": ("batch", "head", "query", "d_head"),
}
COLUMNS = ("batch", "head", "query", "key", "d_head")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Trace:
    """The shapes of one model's attention, and what they follow."""

    model: str
    layers: int
    n_query_heads: int
    different_key_heads: int  # of the traced keys; fewer than heads: each serves several
    whole: Shapes  # of layer 1, all positions at once
    step: Shapes  # of layer 1, the last position with a KV cache
    cached: Shapes  # keys and values as the cache holds them
    calls: int
    irregular: int  # of these calls: widths of Q and K, or lengths of K and V, that differ
    follow_vocabulary: int  # axes, of all layers, that change with the vocabulary
    against_length: int  # axes that should change with the number of positions and do not, or the reverse
    moved: float  # largest change in Q, K and V as the vocabulary grows
    step_difference: float  # of the step's output from the last row of the whole, of its largest number


@dataclass(frozen=True)
class ShapeEvidence:
    """Traces, and which shapes `attention` takes."""

    traces: tuple[Trace, ...]
    combinations: int  # of widths and lengths tried
    possible: int
    wrong: int  # possible against the rule, or the reverse
    d_value: int  # a width of V other than d_head
    wide_difference: float  # attention of V · P from (attention of V) · P, of its largest number


def measure_shapes(budget: Budget, seed: int, subject: Subject | None) -> ShapeEvidence:
    """Trace the run, or two fresh models: one like GPT-2, one with fewer key heads than query heads."""
    if subject:
        inputs = subject.ids(2, budget.pick(12, 64), seed)
        model, traces = subject.model, (trace(subject.model, inputs, subject.folder.name),)
    else:
        n = budget.pick(12, 64)
        grouped = {"family": "nanochat", "n_kv_heads": 2}
        inputs = torch.randint(29, (2, n), generator=torch.Generator().manual_seed(seed))
        models = [build(tiny(vocab_size=29, n_ctx=n, **extra), seed) for extra in ({}, grouped)]
        model, names = models[0], ("as many key heads", "half as many key heads")
        traces = tuple(trace(m, inputs, name) for m, name in zip(models, names, strict=True))
    call = calls_of(model, inputs)[0]
    tried, possible, wrong = combinations()
    d_value = call.v.shape[-1] + 3
    p = torch.randn(call.v.shape[-1], d_value, generator=torch.Generator().manual_seed(seed))
    wide, narrow = (attention(call.q, call.k, v, call.mask)[0] for v in (call.v @ p, call.v))
    assert wide.shape[-1] == d_value
    return ShapeEvidence(traces, tried, possible, wrong, d_value, relative(wide, narrow @ p))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def shapes_of(call: Call) -> Shapes:
    """Sizes along the axes that `AXES` names; the weights are those of `attention`."""
    weights = attention(call.q, call.k, call.v, call.mask)[1]
    tensors = (call.q, call.k, call.v, weights, call.output)
    return {name: tuple(t.shape) for name, t in zip(AXES, tensors, strict=True)}


def is_regular(shapes: Shapes) -> bool:
    """Q and K share their width, K and V their positions; weights and output are what follows."""
    (batch, heads, query, width), (_, _, key, _) = shapes["Q"], shapes["K"]
    return (
        shapes["K"] == (batch, heads, key, width)
        and shapes["V"][:3] == (batch, heads, key)
        and shapes["weights"] == (batch, heads, query, key)
        and shapes["output"] == (batch, heads, query, shapes["V"][3])
    )


def changed(some: list[Shapes], others: list[Shapes]) -> list[tuple[str, str, bool]]:
    """Each axis of each tensor of each layer, and whether its size differs."""
    return [
        (name, axis, a != b)
        for one, other in zip(some, others, strict=True)
        for name, axes in AXES.items()
        for axis, a, b in zip(axes, one[name], other[name], strict=True)
    ]


def trace(model: Transformer, ids: Tensor, name: str) -> Trace:
    """Forward `ids` whole, with more tokens in the vocabulary, with fewer positions, and step by step."""
    n = ids.shape[1]
    whole = calls_of(model, ids)
    with grown_vocabulary(model, MORE_TOKENS):
        grown = calls_of(model, ids)
    fewer = calls_of(model, ids[:, : n - max(1, n // 3)])
    step, stored = cached_calls_of(model, ids)
    shapes = [shapes_of(call) for call in whole]
    every = [shapes_of(call) for call in (*whole, *grown, *fewer, *step)]
    by_vocabulary = changed(shapes, [shapes_of(call) for call in grown])
    by_length = changed(shapes, [shapes_of(call) for call in fewer])
    keys = whole[0].k
    return Trace(
        model=name, layers=len(whole), n_query_heads=keys.shape[1],
        different_key_heads=len(torch.unique(keys.transpose(0, 1).flatten(1), dim=0)),
        whole=shapes[0], step=shapes_of(step[0]),
        cached={"K": tuple(stored[0][0].shape), "V": tuple(stored[0][1].shape)},
        calls=len(every), irregular=sum(not is_regular(s) for s in every),
        follow_vocabulary=sum(differs for _, _, differs in by_vocabulary),
        against_length=sum(differs != (axis in ("query", "key")) for _, axis, differs in by_length),
        moved=max(
            float((getattr(a, t) - getattr(b, t)).abs().max())
            for a, b in zip(whole, grown, strict=True) for t in "qkv"
        ),
        step_difference=max(
            relative(s.output, w.output[:, :, -1:]) for s, w in zip(step, whole, strict=True)
        ),
    )  # fmt: skip


def combinations() -> tuple[int, int, int]:
    """How many shapes were tried on `attention`, were possible, and were so against the rule."""
    tried = list(itertools.product((4, 5), repeat=5))
    possible = wrong = 0
    for d_q, d_k, d_v, n_k, n_v in tried:
        try:
            output, weights = attention(torch.ones(3, d_q), torch.ones(n_k, d_k), torch.ones(n_v, d_v))
            works = output.shape == (3, d_v) and weights.shape == (3, n_k)
        except RuntimeError:
            works = False
        possible += works
        wrong += works != (d_q == d_k and n_k == n_v)
    return len(tried), possible, wrong


def show_shapes(measured: Sequence[ShapeEvidence]) -> Finding:
    """Tables of the first seed's shapes; counts over all seeds."""
    first = measured[0]
    tables = tuple(table for found in first.traces for table in _tables(found))
    calls = sum(found.calls for found in first.traces)

    def worst(name: str, style: str = ".0f") -> Numbers:
        return Numbers(tuple(float(max(getattr(t, name) for t in e.traces)) for e in measured), style)

    irregular, step = worst("irregular"), worst("step_difference", ".1e")
    misplaced = tuple(float(sum(t.follow_vocabulary + t.against_length for t in e.traces)) for e in measured)
    wrong = Numbers(tuple(float(e.wrong) for e in measured), ".0f")
    moved, wide = worst("moved", ".1e").mean, max(e.wide_difference for e in measured)
    claims = (
        Claim(
            "In every traced call Q and K have one width, K and V one length",
            irregular, "at most", 0, f"A single call that differs, of {calls}, would refute it.",
        ),
        Claim(
            "n is positions, not vocabulary: with fewer positions just the query and key axes change, "
            f"with {MORE_TOKENS} more tokens no axis does",
            Numbers(misplaced, ".0f"), "at most", 0,
            "Counted over all axes of all layers; were n the vocabulary, each query and key axis would count.",
        ),
        Claim(
            "Attention exists just where Q and K share d_k and K and V their length; V's width is free",
            wrong, "at most", 0,
            f"All {first.combinations} combinations of two sizes of each were tried: {first.possible} worked.",
        ),
        Claim(
            "One query on cached keys gives what the last of all queries gives",
            step, "at most", 1e-3, "Relative; rounding of float32 is about 1e-6, another key is about 1.",
        ),
    )  # fmt: skip
    said = (
        f"Q, K and V were caught on their way into `attend`. {MORE_TOKENS} more tokens in the vocabulary moved "
        f"their numbers by at most {moved:.1g}. V may be projected to width {first.d_value} before or "
        f"after attention: the same to {wide:.1g}."
    )
    return Finding(said, tables, (), claims)


def _tables(found: Trace) -> tuple[Table, ...]:
    heads = found.different_key_heads
    grouped = heads < found.n_query_heads
    note = f", {heads} different key heads" if grouped else ""

    def row(name: str, tensor: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        sizes = dict(zip(AXES[tensor], map(str, shape), strict=True))
        return (name, *(sizes.get(column, "–") for column in COLUMNS))

    whole = tuple(row(name, name, shape) for name, shape in found.whole.items())
    step = tuple(row(name, name, shape) for name, shape in found.step.items())
    cached = tuple(row(f"{name} in the cache", name, shape) for name, shape in found.cached.items())
    title = f"{found.model}, layer 1 of {found.layers}"
    return (
        Table(f"{title}: all positions at once{note}", ("", *COLUMNS), whole),
        Table(f"{title}: the last position, with a KV cache", ("", *COLUMNS), (*cached, *step)),
    )


# ---------------------------------------------------------------------------- √d_k


@dataclass(frozen=True)
class Sharpness:
    """Of one layer's scores, with 1/√d_k and without. Rows are the queries of the second half."""

    variance: float  # of q · k
    entropy: tuple[float, float]  # of the weights, over that of equal weights; mean of the rows
    jacobian: tuple[float, float]  # Frobenius norm of diag(p) - p pᵀ; median of the rows
    at_q: tuple[float, float]  # norm of the gradient at a query, for a random one at its output; mean
    starved: tuple[float, float]  # share of the rows whose Jacobian is below a tenth of the scaled median


@dataclass(frozen=True)
class ScaleEvidence:
    """Fresh modules of several widths, and the layers of a run."""

    widths: tuple[int, ...]
    fresh: tuple[Sharpness, ...]
    run: dict[str, Sharpness]
    run_d_head: int


def sharpness(call: Call, seed: int) -> Sharpness:
    """By `attention` itself; without the scale is with √d_k times q. In float64: a Jacobian is a difference."""
    q, k, v = (t.double() for t in (call.q, call.k, call.v))
    dots, seen = q @ k.mT, call.mask.expand(*q.shape[:3], k.shape[2])
    half = q.shape[2] // 2
    cotangent = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = seen.sum(-1).double().log()[:, :, half:]
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
        float(dots[seen].var()),
        (float(entropy.mean()), float(entropy_2.mean())),
        (float(jacobian.median()), float(jacobian_2.median())),
        (float(at_q.mean()), float(at_q_2.mean())),
        (float((jacobian < few).double().mean()), float((jacobian_2 < few).double().mean())),
    )


def measure_scale(budget: Budget, seed: int, subject: Subject | None) -> ScaleEvidence:
    """Q and K of fresh modules at several d_k; of a run, at most six of its layers, and a fresh one."""
    widths = budget.pick((4, 16, 64, 256), (4, 8, 16, 32, 64, 128, 256, 512, 1024))
    fresh = []
    for d_head in widths:
        config = tiny(vocab_size=64, n_ctx=64, n_layers=1, n_heads=2, d_model=2 * d_head, d_mlp=1)
        model = build(config, seed)
        fresh.append(sharpness(calls_of(model, torch.randint(64, (4, 64)))[0], seed))
    run: dict[str, Sharpness] = {}
    if subject:
        config = subject.model.config.model_copy(update={"n_layers": 1, "d_mlp": 1})
        ids = subject.ids(4, 64, seed)
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
    spread = Table(
        "Fresh modules: variance of q · k, and entropy of the weights (equal weights: 1)",
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
    )  # fmt: skip
    names = ("with 1/√d_k", "without")
    figures = (
        Lines(
            "The variance of q · k grows as d_k; that of q · k / √d_k does not", "d_k", "variance",
            (
                over_seeds("q · k / √d_k", x, [[v / d for v, d in zip(c, x, strict=True)] for c in variances]),
                over_seeds("q · k", x, variances),
            ),
            log_x=True, log_y=True,
        ),
        *(
            Lines(title, "d_k", label, tuple(
                over_seeds(n, x, curves(name, which)) for which, n in enumerate(names)
            ), log_x=True, log_y=log)
            for title, label, name, log in (
                ("Entropy of the weights", "of equal weights' entropy", "entropy", False),
                ("Gradient at the scores", "norm of the Jacobian", "jacobian", True),
            )
        ),
    )  # fmt: skip
    exponent = Numbers(tuple(abs(slope(x, c) - 1) for c in variances), ".2f")
    keeps = Numbers(tuple(min(c) for c in curves("entropy", 0)), ".2f")
    loses = Numbers(tuple(c[-1] for c in curves("entropy", 1)), ".2f")
    ratio = Numbers(
        tuple(b[-1] / a[-1] for a, b in zip(curves("jacobian", 0), curves("jacobian", 1), strict=True)), ".2g"
    )
    claims = (
        Claim(
            "On fresh modules the variance of q · k grows as d_k: its exponent is 1 within",
            exponent, "at most", 0.25, "Without growth the exponent is 0; were q and k aligned, it would be 2.",
        ),
        Claim(
            "With 1/√d_k the entropy of the weights stays high at every d_k",
            keeps, "at least", 0.5,
            "For scores of variance 1 on 32 to 64 keys theory says 1 - 1/(2 ln n), about 0.87; one-hot is 0.",
        ),
        Claim(
            f"Without it the weights at d_k = {last} are close to one-hot: little entropy is left",
            loses, "at most", 0.5, "Halfway between one-hot, 0, and equal weights, 1.",
        ),
        Claim(
            f"Without it the gradient at the scores of the median query is smaller at d_k = {last}, by",
            ratio, "at most", 0.5, "The ratio is 1 if the scale does nothing; half of that.",
        ),
    )  # fmt: skip
    tables = (spread, gradient, *_run_table(measured))
    at_q = Numbers(tuple(e.fresh[-1].at_q[1] / e.fresh[-1].at_q[0] for e in measured), ".2g")
    starved = Numbers(tuple(100 * e.fresh[-1].starved[1] for e in measured), ".0f", "%")
    said = (
        "Initial weights make q and k of variance 1 a component; 64 positions, causal mask. What the usual "
        "story leaves out: the factor √d_k that is missing in the scores comes back in the gradient at Q. On "
        f"average that is {at_q} times the scaled one at d_k = {last}, not smaller: a few queries "
        f"get nearly all of it, and {starved} have a Jacobian below a tenth of the usual."
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

    title = f"The run, d_k = {first.run_d_head}: training chooses its own sharpness"
    columns = ("", "variance / d_k", "entropy", "without √d_k")
    return (Table(title, columns, tuple(row(layer) for layer in first.run)),)


def one_position(subject: Subject | None) -> str | None:
    """Nothing to compare in a context of one."""
    return "its context is a single position" if subject and subject.model.config.n_ctx < 2 else None


EXPERIMENTS = (
    Experiment(
        "shapes", "Shapes, traced through a forward pass", measure_shapes, show_shapes, (2, 3), one_position
    ),
    Experiment("scale", "Why √d_k", measure_scale, show_scale, seeds=(3, 10)),
    *ALTERNATIVES,
)
