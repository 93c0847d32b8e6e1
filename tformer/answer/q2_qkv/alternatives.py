"""Evidence for question 2: other functions of Q and K that give weights, kin and head to head."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding, largest, over_seeds
from tformer.answer.lab import Subject, accuracies, build, halves, n_parameters, tiny, train
from tformer.answer.q2_qkv import scores
from tformer.answer.q2_qkv.score_cost import kept_bytes
from tformer.answer.q2_qkv.scores import SCORES, Bilinear, with_scores
from tformer.answer.trace import attentions, calls_of
from tformer.evals.attention import mirrored
from tformer.figures import Heat, Lines, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import CausalSelfAttention, Transformer, rms_norm
from tformer.text.data import Reversal

# ---------------------------------------------------------------------------- how they are kin


@dataclass(frozen=True)
class KinEvidence:
    """Largest differences between two ways to the same thing; what all weights have in common."""

    identities: dict[str, float]
    row_sum: dict[str, float]  # of each function: largest |sum of a row - 1|
    hidden: dict[str, float]  # and the largest weight on a key that the mask hides
    moved: float  # share of the queries whose hard maximum moves when q moves a millionth
    straight_through: float  # norm of the gradient that training is told instead


def measure_kin(budget: Budget, seed: int, subject: Subject | None) -> KinEvidence:
    """On Q, K and V of a layer of the run, or of a fresh module, in float64."""
    n = budget.pick(quick=32, full=64)
    if subject:
        model, ids = subject.model, subject.ids(2, n, seed)
    else:
        model, ids = build(tiny(vocab_size=32, n_ctx=n), seed), torch.randint(32, (2, n))
    layer = seed % len(model.blocks)
    call, attn = calls_of(model, ids)[layer], attentions(model)[layer]
    q, k, v, x = (t.double() for t in (call.q, call.k, call.v, call.x))
    mask, random = call.mask, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        identities = kin(q, k, v, mask) | absorbed(attn, x, k, mask, seed)
        weights = {name: drawn(name, attn, seed)(q, k, mask) for name in SCORES}
    hidden = ~mask.expand_as(weights["scaled dot"])
    nudged = q * (1 + 1e-6 * torch.randn(q.shape, generator=random, dtype=q.dtype))
    moved = scores.hard_maximum(nudged, k, mask) != weights["hard maximum"]
    through, soft = (gradient(f, q, k, mask, seed) for f in (scores.hard_maximum, scores.scaled_dot))
    identities["hard maximum: its straight-through gradient is the softmax's"] = apart(through, soft)
    return KinEvidence(
        identities,
        {name: float((w.sum(-1) - 1).abs().max()) for name, w in weights.items()},
        {name: float(w[hidden].abs().max()) if hidden.any() else 0.0 for name, w in weights.items()},
        float(moved.any(-1).double().mean()),
        float(through.norm()),
    )


def drawn(name: str, attn: CausalSelfAttention, seed: int) -> scores.Weigh:
    """One of the functions, what it learns drawn at random, in float64."""
    torch.manual_seed(seed)
    weigh = SCORES[name](attn.config)
    return weigh.double() if isinstance(weigh, torch.nn.Module) else weigh


def gradient(weigh: scores.Weigh, q: Tensor, k: Tensor, mask: Tensor, seed: int) -> Tensor:
    """At q, of a random linear function of the weights."""
    q = q.clone().requires_grad_()
    weights = weigh(q, k, mask)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(weights.shape, generator=generator, dtype=q.dtype)
    (found,) = torch.autograd.grad((weights * cotangent).sum(), q)
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number expected, or of 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))


def kin(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, float]:
    """What holds of any q, k and v."""
    variance = math.sqrt(q.shape[-1])  # σ² of the kernel
    squares = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    distance = scores.masked_softmax(-squares / (2 * variance), mask)
    equal = variance * F.normalize(k, dim=-1)  # keys of one length
    causal_output = scores.linear_attention(q, k, v)
    return {
        "squared distance: q · k / σ² minus ‖k‖² / 2σ²": apart(scores.squared_distance(q, k, mask), distance),
        "squared distance: the scaled dot, where keys are equally long": apart(
            scores.squared_distance(q, equal, mask), scores.scaled_dot(q, equal, mask)
        ),
        "cosine: a query 100 times as long changes nothing": apart(
            scores.cosine(100 * q, k, mask), scores.cosine(q, k, mask)
        ),
        "cosine: the scaled dot after nanochat's QK-norm": apart(
            scores.cosine(q, k, mask), scores.scaled_dot(rms_norm(q, 0.0), rms_norm(k, 0.0), mask)
        ),
        "linear kernel: an RNN that adds up keys and values": apart(
            causal_output, scores.linear_kernel(q, k, mask) @ v
        ),
    }


def absorbed(attn: CausalSelfAttention, x: Tensor, k: Tensor, mask: Tensor, seed: int) -> dict[str, float]:
    """What W_Q can take over, where nothing stands between it and the scores."""
    c = attn.config
    if c.qk_norm or c.positions == "rotary":
        return {}
    rows = c.n_heads * c.d_head
    w_q = attn.qkv.weight[:rows].double().unflatten(0, (c.n_heads, c.d_head))  # (H, K, C)
    b_q = attn.qkv.bias[:rows].double() if c.bias else torch.zeros(rows, dtype=x.dtype)
    b_q = b_q.view(c.n_heads, c.d_head, 1)
    bilinear = drawn("bilinear", attn, seed)
    assert isinstance(bilinear, Bilinear)

    def queries(w: Tensor, b: Tensor) -> Tensor:
        return (w @ x[:, None].mT + b).mT  # (B, H, T, K)

    q, root = queries(w_q, b_q), math.sqrt(c.d_head)
    folded = queries(bilinear.w.mT @ w_q, bilinear.w.mT @ b_q)
    return {
        "unscaled dot: the scaled dot, W_Q times √d_k": apart(
            scores.unscaled_dot(q, k, mask), scores.scaled_dot(queries(root * w_q, root * b_q), k, mask)
        ),
        "bilinear: the scaled dot, W absorbed by W_Q": apart(
            bilinear(q, k, mask), scores.scaled_dot(folded, k, mask)
        ),
    }


def show_kin(measured: Sequence[KinEvidence]) -> Finding:
    """The identities, and what makes a function one of weights."""

    def worst(values: Iterable[dict[str, float]]) -> Numbers:
        return Numbers(tuple(largest(v.values()) for v in values), ".1e")

    names = list(measured[0].identities)
    table = Table(
        "Two ways to the same thing",
        ("what it is", "difference"),
        tuple((n, Numbers((largest(e.identities[n] for e in measured),), ".0e")) for n in names),
    )
    weights = [{n: largest((e.row_sum[n], e.hidden[n])) for n in e.row_sum} for e in measured]
    claims = (
        Claim(
            "These functions are kin: two ways to the same weights, outputs or gradients",
            worst(e.identities for e in measured),
            "at most",
            1e-8,
            "Rounding of float64, 1e-16, times the size of scores; different functions differ by about 1.",
        ),
        Claim(
            f"All {len(SCORES)} give weights: rows sum to 1, a hidden key weighs 0",
            worst(weights),
            "at most",
            1e-8,
            "Rounding of float64; a mask left out would weigh some keys.",
        ),
        Claim(
            "The hard maximum has no gradient: it stays put when q moves a millionth",
            Numbers(tuple(e.moved for e in measured), ".2g"),
            "at most",
            0.01,
            "Share of the queries. Only one whose two best scores are that near can change.",
        ),
    )
    through = Numbers(tuple(e.straight_through for e in measured), ".2g")
    said = (
        f"The straight-through gradient that trains the hard maximum, of norm {through}, is not its own: "
        "that is 0."
    )
    if not any(name.startswith("bilinear") for name in names):
        said += (
            " Here a norm and a rotation stand between W_Q and the scores: neither a factor √d_k nor a W "
            "of the bilinear form can be absorbed, and these two rows are left out."
        )
    return Finding(said, (table,), (), claims)


# ---------------------------------------------------------------------------- head to head

SOFT = tuple(name for name in SCORES if name not in ("unscaled dot", "hard maximum"))


@dataclass(frozen=True)
class Trained:
    """One score function in the model, after the same steps from the same draw on the same batches."""

    first: float  # accuracy on the half that is random
    second: float  # and on the half that is known
    steps: int  # until nine tenths of what can be learned is learned; all of them if never
    mirror: float  # weight on the position where the answer stands, mean over the known half
    milliseconds: float  # of CPU time, median step
    kept: int  # bytes of activations kept for the backward pass of one step
    learned: int  # parameters of the score function itself
    losses: tuple[float, ...]
    map: tuple[tuple[float, ...], ...]  # mean weights of the head, (query, key)


@dataclass(frozen=True)
class TrainedEvidence:
    """All functions, one seed."""

    length: int
    symbols: int
    d_head: int
    budget: int  # steps
    by_score: dict[str, Trained]


def measure_trained(budget: Budget, seed: int, subject: Subject | None) -> TrainedEvidence:
    """One block with one head on reversal: where to look has to come from its scores."""
    task = Reversal(budget.pick(quick=6, full=8), budget.pick(quick=8, full=12), seed)
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=1, n_heads=1)
    steps = budget.pick(quick=100, full=400)
    found = {}
    for name in SCORES:
        model = build(config, seed, with_scores(name))
        found[name] = train_one(model, task, steps, seed)
    return TrainedEvidence(task.length, task.symbols, config.d_head, steps, found)


def train_one(model: Transformer, task: Reversal, steps: int, seed: int) -> Trained:
    """Train and look."""
    clock = [time.process_time()]
    losses = train(model, task, steps, seed, lambda report: clock.append(time.process_time()), batch_size=32)
    milliseconds = 1000 * statistics.median(b - a for a, b in itertools.pairwise(clock))
    first, second = halves(accuracies(model, task), task)
    inputs, targets = (torch.from_numpy(a.copy()) for a in task.fresh(32))
    kept = kept_bytes(lambda: cross_entropy(model(inputs), targets).mean(), model.parameters())
    call = calls_of(model, inputs)[0]
    attn = attentions(model)[0]
    weigh = getattr(attn, "weigh", scores.scaled_dot)
    with torch.no_grad():
        seen = weigh(call.q, call.k, call.mask).mean((0, 1))
    extra = n_parameters(weigh) if isinstance(weigh, torch.nn.Module) else 0
    mirror = statistics.fmean(float(seen[query, key]) for query, key in mirrored(task.length))
    rounded = tuple(tuple(round(w, 4) for w in row) for row in seen.tolist())
    reached = first_below(losses, nine_tenths(task))
    return Trained(first, second, reached, mirror, milliseconds, kept, extra, tuple(losses), rounded)


def nine_tenths(task: Reversal) -> float:
    """The loss when nine tenths of the way from knowing nothing to knowing all that can be known is done."""
    start = math.log(task.symbols)
    floor = start * (task.length - 1) / task.n_ctx
    return start - 0.9 * (start - floor)


def first_below(losses: Sequence[float], target: float) -> int:
    """Steps until the mean of three losses is below `target`; all steps if never."""
    for i in range(3, len(losses) + 1):
        if sum(losses[i - 3 : i]) / 3 <= target:
            return i
    return len(losses)


def show_trained(measured: Sequence[TrainedEvidence]) -> Finding:
    """Accuracy, time, memory; where each looks; how fast it learns."""
    first = measured[0]

    def of(name: str, field: str, style: str) -> Numbers:
        return Numbers(tuple(getattr(e.by_score[name], field) for e in measured), style)

    learning = Table(
        f"Reversal, {first.length} of {first.symbols} symbols: the second half after {first.budget} steps",
        ("score", "accuracy", "steps to 90 %", "weight on the answer"),
        tuple(
            (name, of(name, "second", ".2f"), of(name, "steps", ".0f"), of(name, "mirror", ".2f"))
            for name in SCORES
        ),
    )
    costs = Table(
        "What it took",
        ("score", "ms a step", "MB kept", "parameters"),
        tuple(
            (
                name,
                of(name, "milliseconds", ".1f"),
                Numbers((first.by_score[name].kept / 1e6,), ".2f"),
                Numbers((first.by_score[name].learned,), ".0f"),
            )
            for name in SCORES
        ),
    )
    x = tuple(range(1, first.budget + 1))
    curves = Lines(
        "Training loss",
        "step",
        "nats per token",
        tuple(over_seeds(n, x, [e.by_score[n].losses for e in measured], 60) for n in SCORES),
    )
    maps = Heat(
        "Where the head looks after training",
        "query",
        "key",
        tuple((name, first.by_score[name].map) for name in SCORES),
    )
    chance = 1 / first.symbols
    soft = Numbers(tuple(min(e.by_score[n].second for n in SOFT) for e in measured), ".2f")
    peeks = Numbers(tuple(max(t.first for t in e.by_score.values()) for e in measured), ".3f")
    claims = (
        Claim(
            "The dot product is not the only way: all six scaled soft functions learn to reverse",
            soft,
            "at least",
            (1 + chance) / 2,
            f"The worst of six; halfway between chance, {chance:.2f}, and 1.",
        ),
        Claim(
            "None of the eight sees the future: on the random half all are at chance",
            peeks,
            "at most",
            chance + 0.05,
            f"The best of eight. Chance is {chance:.3f}; a leak would come near 1.",
        ),
    )
    said = (
        f"One block, one head, d_k = {first.d_head}; the same draw, batches and learning rate for all. Steps "
        f"are counted until nine tenths of what can be learned is learned ({first.budget}: not in time); ms "
        "of CPU time; MB of activations for the backward pass; parameters of the function itself. The "
        "unscaled dot and the hard maximum, whose gradient is another function's, are not judged: what "
        "these cost depends on the width and the draw."
    )
    return Finding(said, (learning, costs), (curves, maps), claims)
