"""Question 2, alternatives: other functions of Q and K that give weights, how they are kin, head to head."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_least, at_most, largest
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import (
    Subject,
    accuracies,
    build,
    calls_of,
    fresh_tensors,
    halves,
    n_parameters,
    relative_difference,
    tiny,
    train,
)
from tformer.answer.q2_qkv import scores
from tformer.answer.q2_qkv.cost import kept_bytes
from tformer.answer.q2_qkv.scores import SCORES, Bilinear, with_scores
from tformer.evals.attention import mirrored
from tformer.figures import Heat, Lines, Numbers, Series, Table
from tformer.loss import cross_entropy
from tformer.model import CausalSelfAttention, Transformer, rms_norm
from tformer.text.data import Reversal
from tformer.watch import attention_calls, attentions_of, module_calls

# ---------------------------------------------------------------------------- how they are kin


@dataclass(frozen=True)
class KinEvidence:
    """Largest differences between two ways to the same thing; what all weights have in common."""

    identities: dict[str, float]
    row_sum: dict[str, float]  # of each function: largest |sum of a row - 1|
    hidden: dict[str, float]  # and the largest weight on a key that the mask hides
    moved: float  # share of the queries whose hard maximum moves when q moves a millionth
    straight_through: float  # norm of the gradient that training is told instead


def measure_kin(effort: Effort, seed: int, subject: Subject | None) -> KinEvidence:
    """On Q, K and V of a layer of the run, or of a fresh module, in float64."""
    n = effort.pick(quick=32, full=64)
    if subject:
        model, ids = subject.model, subject.ids(2, n, seed)
    else:
        model, ids = build(tiny(vocab_size=32, n_ctx=n), seed), torch.randint(32, (2, n))
    layer = seed % len(model.blocks)
    attn = attentions_of(model)[layer]
    with torch.no_grad(), attention_calls(model) as calls, module_calls([attn.qkv]) as projections:
        model.eval()(ids)
    call, mask = calls[layer], calls[layer].mask
    assert mask is not None
    q, k, v, x = (t.double() for t in (call.q, call.k, call.v, projections[0].x))
    with torch.no_grad():
        identities = kin(q, k, v, mask) | absorbed(attn, x, k, mask, seed)
        weights = {name: drawn(name, attn, seed)(q, k, mask) for name in SCORES}
    hidden = ~mask.expand_as(weights["scaled dot"])
    random = torch.Generator().manual_seed(seed)
    nudged = q * (1 + 1e-6 * torch.randn(q.shape, generator=random, dtype=q.dtype))
    moved = scores.hard_maximum(nudged, k, mask) != weights["hard maximum"]
    through, soft = (gradient(f, q, k, mask, seed) for f in (scores.hard_maximum, scores.scaled_dot))
    identities["hard maximum: its straight-through gradient is the softmax's"] = gap(through, soft)
    return KinEvidence(
        identities,
        {name: float((w.sum(-1) - 1).abs().max()) for name, w in weights.items()},
        {name: float(w[hidden].abs().max()) if hidden.any() else 0.0 for name, w in weights.items()},
        float(moved.any(-1).double().mean()),
        float(through.norm()),
    )


def gap(one: Tensor, other: Tensor) -> float:
    """Of two ways to the same thing: relative to the second, absolute where its numbers are below 1."""
    return relative_difference(one, other, least=1.0)


def drawn(name: str, attn: CausalSelfAttention, seed: int) -> scores.Weigh:
    """One of the functions, what it learns drawn at random, in float64."""
    torch.manual_seed(seed)
    weigh = SCORES[name](attn.config)
    return weigh.double() if isinstance(weigh, nn.Module) else weigh


def gradient(weigh: scores.Weigh, q: Tensor, k: Tensor, mask: Tensor, seed: int) -> Tensor:
    """At q, of a random linear function of the weights: of q's shape."""
    q = q.clone().requires_grad_()
    weights = weigh(q, k, mask)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(weights.shape, generator=generator, dtype=q.dtype)
    (found,) = torch.autograd.grad((weights * cotangent).sum(), q)
    return found


def kin(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, float]:
    """What holds of any q, k and v: how far its two sides are apart."""
    variance = math.sqrt(q.shape[-1])  # σ² of the kernel
    squares = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    distance = scores.masked_softmax(-squares / (2 * variance), mask)
    equal = variance * F.normalize(k, dim=-1)  # keys of one length
    causal_output = scores.linear_attention(q, k, v)
    return {
        "squared distance: q · k / σ² minus ‖k‖² / 2σ²": gap(scores.squared_distance(q, k, mask), distance),
        "squared distance: the scaled dot, where keys are equally long": gap(
            scores.squared_distance(q, equal, mask), scores.scaled_dot(q, equal, mask)
        ),
        "cosine: a query 100 times as long changes nothing": gap(
            scores.cosine(100 * q, k, mask), scores.cosine(q, k, mask)
        ),
        "cosine: the scaled dot after nanochat's QK-norm": gap(
            scores.cosine(q, k, mask), scores.scaled_dot(rms_norm(q, 0.0), rms_norm(k, 0.0), mask)
        ),
        "linear kernel: an RNN that adds up keys and values": gap(
            causal_output, scores.linear_kernel(q, k, mask) @ v
        ),
    }


def absorbed(attn: CausalSelfAttention, x: Tensor, k: Tensor, mask: Tensor, seed: int) -> dict[str, float]:
    """What W_Q can take over, where nothing stands between it and the scores; x is what it projects."""
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
        "unscaled dot: the scaled dot, W_Q times √d_k": gap(
            scores.unscaled_dot(q, k, mask), scores.scaled_dot(queries(root * w_q, root * b_q), k, mask)
        ),
        "bilinear: the scaled dot, W absorbed by W_Q": gap(
            bilinear(q, k, mask), scores.scaled_dot(folded, k, mask)
        ),
    }


def show_kin(seeds: Seeds[KinEvidence]) -> Finding:
    """The identities, and what makes a function one of weights."""
    identities = seeds.first.identities
    through = seeds.of(lambda e: e.straight_through, ".2g")
    said = (
        f"The straight-through gradient that trains the hard maximum, of norm {through}, is not its own: "
        "that is 0."
    )
    if not any(name.startswith("bilinear") for name in identities):
        said += (
            " Here a norm and a rotation stand between W_Q and the scores: neither a factor √d_k nor a W "
            "of the bilinear form can be absorbed, and these two rows are left out."
        )
    return Finding.of(
        said,
        Table(
            "Two ways to the same thing",
            ("what it is", "difference"),
            tuple((n, Numbers((largest(e.identities[n] for e in seeds),), ".0e")) for n in identities),
        ),
        at_most(
            "These functions are kin: two ways to the same weights, outputs or gradients",
            seeds.of(lambda e: largest(e.identities.values()), ".1e"),
            1e-8,
            "Rounding of float64, 1e-16, times the size of scores; different functions differ by about 1.",
        ),
        at_most(
            f"All {len(SCORES)} give weights: rows sum to 1, a hidden key weighs 0",
            seeds.of(lambda e: largest((*e.row_sum.values(), *e.hidden.values())), ".1e"),
            1e-8,
            "Rounding of float64; a mask left out would weigh some keys.",
        ),
        at_most(
            "The hard maximum has no gradient: it stays put when q moves a millionth",
            seeds.of(lambda e: e.moved, ".2g"),
            0.01,
            "Share of the queries. Only one whose two best scores are that near can change.",
        ),
    )


# ---------------------------------------------------------------------------- head to head

SOFT = tuple(name for name in SCORES if name not in ("unscaled dot", "hard maximum"))


@dataclass(frozen=True)
class TrainedScore:
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
class TrainedScoresEvidence:
    """What became of each function, by its name, with one seed."""

    length: int
    symbols: int
    d_head: int
    budget: int  # steps
    by_score: dict[str, TrainedScore]


def measure_trained_scores(effort: Effort, seed: int, subject: Subject | None) -> TrainedScoresEvidence:
    """One block with one head on reversal: where to look has to come from its scores."""
    task = Reversal(effort.pick(quick=6, full=8), effort.pick(quick=8, full=12), seed)
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=1, n_heads=1)
    steps = effort.pick(quick=100, full=400)
    by_score = {
        name: train_score(build(config, seed, with_scores(name)), task, steps, seed) for name in SCORES
    }
    return TrainedScoresEvidence(task.length, task.symbols, config.d_head, steps, by_score)


def train_score(model: Transformer, task: Reversal, steps: int, seed: int) -> TrainedScore:
    """Train a model of one block and one head; then see what it can, where it looks and what it took."""
    clock = [time.process_time()]
    losses = train(model, task, steps, seed, lambda report: clock.append(time.process_time()), batch_size=32)
    milliseconds = 1000 * statistics.median(b - a for a, b in itertools.pairwise(clock))
    first, second = halves(accuracies(model, task), task)
    inputs, targets = fresh_tensors(task, 32)
    kept = kept_bytes(lambda: cross_entropy(model(inputs), targets).mean(), model.parameters())
    (call,) = calls_of(model, inputs)
    weights = call.weights.mean((0, 1))
    return TrainedScore(
        first,
        second,
        first_below(losses, nine_tenths(task)),
        statistics.fmean(float(weights[query, key]) for query, key in mirrored(task.length)),
        milliseconds,
        kept,
        n_parameters(call.formula) if isinstance(call.formula, nn.Module) else 0,
        tuple(losses),
        tuple(tuple(round(weight, 4) for weight in row) for row in weights.tolist()),
    )


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


def show_trained_scores(seeds: Seeds[TrainedScoresEvidence]) -> Finding:
    """Accuracy, time, memory; where each looks; how fast it learns."""
    first = seeds.first
    chance = 1 / first.symbols
    return Finding.of(
        f"One block, one head, d_k = {first.d_head}; the same draw, batches and learning rate for all. Steps "
        f"are counted until nine tenths of what can be learned is learned ({first.budget}: not in time); ms "
        "of CPU time; MB of activations for the backward pass; parameters of the function itself. The "
        "unscaled dot and the hard maximum, whose gradient is another function's, are not judged: what "
        "these cost depends on the width and the draw.",
        *_tables(seeds),
        _losses(seeds),
        Heat(
            "Where the head looks after training",
            "query",
            "key",
            tuple((name, first.by_score[name].map) for name in SCORES),
        ),
        at_least(
            "The dot product is not the only way: all six scaled soft functions learn to reverse",
            seeds.of(lambda e: min(e.by_score[name].second for name in SOFT), ".2f"),
            (1 + chance) / 2,
            f"The worst of six; halfway between chance, {chance:.2f}, and 1.",
        ),
        at_most(
            "None of the eight sees the future: on the random half all are at chance",
            seeds.of(lambda e: max(trained.first for trained in e.by_score.values()), ".3f"),
            chance + 0.05,
            f"The best of eight. Chance is {chance:.3f}; a leak would come near 1.",
        ),
    )


def _tables(seeds: Seeds[TrainedScoresEvidence]) -> tuple[Table, Table]:
    """What each function learned, and what that took."""
    first = seeds.first

    def learned(name: str) -> tuple[str | Numbers, ...]:
        return (
            name,
            seeds.of(lambda e: e.by_score[name].second, ".2f"),
            seeds.of(lambda e: e.by_score[name].steps, ".0f"),
            seeds.of(lambda e: e.by_score[name].mirror, ".2f"),
        )

    def took(name: str) -> tuple[str | Numbers, ...]:
        return (
            name,
            seeds.of(lambda e: e.by_score[name].milliseconds, ".1f"),
            Numbers((first.by_score[name].kept / 1e6,), ".2f"),
            Numbers((first.by_score[name].learned,), ".0f"),
        )

    title = f"Reversal, {first.length} of {first.symbols} symbols: the second half after {first.budget} steps"
    return (
        Table(
            title,
            ("score", "accuracy", "steps to 90 %", "weight on the answer"),
            tuple(map(learned, SCORES)),
        ),
        Table("What it took", ("score", "ms a step", "MB kept", "parameters"), tuple(map(took, SCORES))),
    )


def _losses(seeds: Seeds[TrainedScoresEvidence]) -> Lines:
    """The training loss of each function."""
    steps = range(1, seeds.first.budget + 1)

    def curve(name: str) -> Series:
        return seeds.curve(name, steps, lambda e: e.by_score[name].losses, most=60)

    return Lines("Training loss", "step", "nats per token", tuple(map(curve, SCORES)))
