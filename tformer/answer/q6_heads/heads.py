"""Evidence for question 6: what heads learn, shown by removing them, and one head against several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding, over_seeds
from tformer.answer.lab import Subject, accuracies, build, halves, n_parameters, tiny, train
from tformer.answer.parts import blocks_of
from tformer.answer.q3_mlps.mlps import arguments
from tformer.answer.q6_heads.lookups import without_heads
from tformer.answer.tasks import Places
from tformer.evals.attention import CARRIES, attention_weights, mirror
from tformer.figures import Cell, Heat, Lines, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.text.data import Reversal

SHOWN, MAPS = 8, 4  # heads in the table of ablations, and in the picture
SOLVED = 0.9  # accuracy of the second half from which on a run is said to reverse

# ---------------------------------------------------------------------------- a sum over heads


@dataclass(frozen=True)
class SumEvidence:
    """The largest difference of all blocks, relative to the largest output."""

    difference: float
    heads: int


@torch.inference_mode()
def measure_sum(budget: Budget, seed: int, subject: Subject | None) -> SumEvidence:
    """Attention's output, against the sum of what each head alone adds to the residual stream."""
    if subject:
        model, ids = subject.model, subject.ids(2, budget.pick(quick=32, full=128), seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=32), seed)
        ids = torch.randint(32, (2, 32))
        for block in blocks_of(model):  # it starts at zero
            block.attn.out.weight.normal_(std=model.config.d_model**-0.5)
    worst, c = 0.0, model.config
    for layer, (gathered,) in enumerate(arguments([b.attn.out for b in blocks_of(model)], model, ids)):
        out = blocks_of(model)[layer].attn.out
        whole, nothing = out(gathered), out(torch.zeros_like(gathered))
        summed = nothing.clone()
        for head in range(c.n_heads):
            others = [(layer, other) for other in range(c.n_heads) if other != head]
            with without_heads(model, others):
                summed += out(gathered) - nothing
        worst = max(worst, float((whole - summed).abs().max() / whole.abs().max().clamp(min=1e-30)))
    return SumEvidence(worst, c.n_heads)


def show_sum(measured: Sequence[SumEvidence]) -> Finding:
    """Heads add up."""
    claim = Claim(
        f"The output of attention is the sum of what its {measured[0].heads} heads add, each alone",
        Numbers(tuple(e.difference for e in measured), ".1e"),
        "at most",
        1e-4,
        "Relative to the largest output; rounding of float32 is about 1e-6.",
    )
    said = "All heads but one were silenced in front of the output projection, one after the other."
    return Finding(said, (), (), (claim,))


# ---------------------------------------------------------------------------- the mirror


@dataclass(frozen=True)
class MirrorEvidence:
    """Heads of a model that reverses, those first that look most at the mirrored place."""

    names: list[str]
    shares: list[float]
    uniform: float
    accuracy: float  # of the second half
    chance: float
    zeroed: list[float]  # accuracy without this head, of the first few
    averaged: list[float]  # the same, its output replaced by its mean over sequences
    without_lookers: float  # without all heads that give half of their weight to the mirrored place
    without_others: float  # their output averaged
    lookers: int
    weights: list[list[list[float]]]  # of the first heads, mean over sequences
    own: bool


def measure_mirror(budget: Budget, seed: int, subject: Subject | None) -> MirrorEvidence:
    """Where heads look, and the accuracy without each, on the run or on a model trained here."""
    if subject and subject.task:
        return _mirrored(subject.model, subject.task, seed, own=False)
    task = Reversal(budget.pick(quick=5, full=8), budget.pick(quick=10, full=16), seed)
    width = budget.pick(quick=32, full=64)
    model = build(tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, d_model=width), seed)
    train(
        model,
        task,
        budget.pick(quick=120, full=500),
        seed,
        batch_size=32,
        lr=budget.pick(quick=6e-3, full=3e-3),
    )
    return _mirrored(model, task, seed, own=True)


def _mirrored(model: Transformer, task: Reversal, seed: int, own: bool) -> MirrorEvidence:
    found = mirror(model, task, index=1 + seed)
    heads = [(h.layer - 1, h.head - 1) for h in found.heads]
    lookers = [at for at, h in zip(heads, found.heads, strict=True) if h.share >= CARRIES]
    others = [at for at in heads if at not in lookers]

    def accuracy(without: list[tuple[int, int]], mean: bool = False) -> float:
        with without_heads(model, without, mean):
            return halves(accuracies(model, task, n=300, index=1 + seed), task)[1]

    inputs = torch.from_numpy(np.ascontiguousarray(task.fresh(100, 1 + seed)[0]))
    weights = attention_weights(model, inputs)
    return MirrorEvidence(
        names=[f"layer {h.layer}, head {h.head}" for h in found.heads],
        shares=[h.share for h in found.heads],
        uniform=found.uniform,
        accuracy=accuracy([]),
        chance=1 / task.symbols,
        zeroed=[accuracy([at]) for at in heads[:SHOWN]],
        averaged=[accuracy([at], mean=True) for at in heads[:SHOWN]],
        without_lookers=accuracy(lookers),
        without_others=accuracy(others, mean=True),
        lookers=len(lookers),
        weights=[weights[layer, :, head].mean(0).tolist() for layer, head in heads[:MAPS]],
        own=own,
    )


def show_mirror(measured: Sequence[MirrorEvidence]) -> Finding:
    """Some heads look at the mirrored place, and they carry the reversal."""
    first = measured[0]

    def row(name: str, values: Sequence[Sequence[float]]) -> tuple[Cell, ...]:
        return (name, *(Numbers(tuple(v), ".2f") for v in values))

    accuracy = Numbers(tuple(e.accuracy for e in measured), ".2f")
    ranks = range(len(first.zeroed))
    table = Table(
        f"Accuracy of the second half without heads (with all: {accuracy})",
        ("left out", "weight on the mirrored place", "set to 0", "set to its mean"),
        tuple(
            row(
                f"head {i + 1}" if first.own else first.names[i],
                [
                    [e.shares[i] for e in measured],
                    [e.zeroed[i] for e in measured],
                    [e.averaged[i] for e in measured],
                ],
            )
            for i in ranks
        ),
    )
    heat = Heat(
        "Where the first heads look, mean over sequences",
        "position that asks",
        "position looked at",
        tuple((n, tuple(map(tuple, w))) for n, w in zip(first.names, first.weights, strict=False)),
    )
    alone = Numbers(tuple(e.accuracy - e.zeroed[0] for e in measured), ".2f")
    said = (
        "Heads are ordered by the weight that queries of the second half give to the place where the answer "
        f"stands; a head that looks everywhere alike gives it {first.uniform:.2f}. Without the first head "
        f"alone accuracy falls by {alone}: where others look at the same place, they stand in. So all heads "
        f"with half of their weight there ({', '.join(str(e.lookers) for e in measured)} of "
        f"{len(first.shares)}) were removed together, and then all the others."
    )
    if min(e.accuracy for e in measured) < SOLVED:
        return Finding(f"{said} No claim is made: the model does not reverse.", (table,), (heat,))
    halfway = (1 + first.chance) / 2
    because = f"Halfway between chance ({first.chance:.2g}) and 1."
    claims = (
        Claim(
            "A head looks at the mirrored place: the anti-diagonal",
            Numbers(tuple(e.shares[0] for e in measured), ".2f"),
            "at least",
            CARRIES,
            f"More there than everywhere else together; a uniform head has {first.uniform:.2f}.",
        ),
        Claim(
            "Without the heads that look there the reversal is lost",
            Numbers(tuple(e.without_lookers for e in measured), ".2f"),
            "at most",
            halfway,
            because,
        ),
        Claim(
            "Without all the other heads, set to their mean, it is kept",
            Numbers(tuple(e.without_others for e in measured), ".2f"),
            "at least",
            halfway,
            because,
        ),
    )
    return Finding(said, (table,), (heat,), claims)


# ---------------------------------------------------------------------------- one head or several


@dataclass(frozen=True)
class SeveralEvidence:
    """By number of heads, at equal width."""

    n_heads: list[int]
    parameters: list[int]
    loss: list[float]  # nats, where three places are needed
    accuracy: list[float]
    looks: list[float]  # weight on a place by the head that looks there most, summed over three places
    reversal: float  # accuracy of the second half with one head, where one place is needed


DISTANCES = (1, 2, 4)
N_HEADS = (1, 2, 4, 8, 32)


def measure_several(budget: Budget, seed: int, subject: Subject | None) -> SeveralEvidence:
    """Train one block of width 32 with 1 to 32 heads on a task of three places, and on the reversal."""
    places, task = Places(4, 8, DISTANCES, seed), Reversal(4, 8, seed)
    parameters, losses, accuracy, looks = [], [], [], []
    for n_heads in N_HEADS:
        config = tiny(
            vocab_size=places.outcomes,
            n_ctx=places.n_ctx,
            n_layers=1,
            n_heads=n_heads,
            d_model=32,
            tied=False,
        )
        model = build(config, seed)
        train(model, places, budget.pick(quick=150, full=400), seed, batch_size=32, lr=1e-2)
        inputs, targets = (torch.from_numpy(a) for a in places.fresh(500))
        asked = slice(max(DISTANCES), None)  # queries that have all three places behind them
        with torch.inference_mode():
            logits = model(inputs)
            loss = cross_entropy(logits, targets)[:, asked].mean()
        parameters.append(n_parameters(model))
        losses.append(float(loss))
        accuracy.append(float((logits.argmax(-1) == targets)[:, asked].double().mean()))
        looks.append(_looks(attention_weights(model, inputs)[0]))
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_model=32)
    model = build(config, seed)
    train(model, task, budget.pick(quick=120, full=400), seed, batch_size=32, lr=6e-3)
    reversal = halves(accuracies(model, task), task)[1]
    return SeveralEvidence(list(N_HEADS), parameters, losses, accuracy, looks, reversal)


def _looks(weights: Tensor) -> float:
    """Of (batch, head, query, key): the weight of the head that looks there most, summed over the places."""
    queries = torch.arange(max(DISTANCES), weights.shape[-1])
    by_place = [weights[:, :, queries, queries - d].mean((0, 2)).max() for d in DISTANCES]
    return float(torch.stack(by_place).sum())


def show_several(measured: Sequence[SeveralEvidence]) -> Finding:
    """Three places at once are easier for several heads; one place is not."""
    first = measured[0]
    one, four = first.n_heads.index(1), first.n_heads.index(4)

    def over(field: str, i: int, style: str = ".2f") -> Numbers:
        return Numbers(tuple(getattr(e, field)[i] for e in measured), style)

    table = Table(
        f"One block of width 32 and {first.parameters[one]:,} parameters, three places at once",
        ("heads × d_head", "loss", "right", "weight on the three"),
        tuple(
            (f"{n} × {32 // n}", over("loss", i), over("accuracy", i), over("looks", i))
            for i, n in enumerate(first.n_heads)
        ),
    )
    figure = Lines(
        "Equal width, equal parameters, equal steps",
        "heads",
        "loss (nats) where three places are needed",
        (over_seeds("loss", first.n_heads, [e.loss for e in measured]),),
        log_x=True,
    )
    said = (
        f"The target is the triple of the symbols 1, 2 and 4 places before, one of {4 ** len(DISTANCES)}. "
        "One softmax can tell places apart only by giving them unequal weights; it may still get most of "
        "them right. Weight on the three: for each place that of the head that looks there most, summed. The "
        "last row has heads of one feature each. The reversal needs one place at a time; it was learned by a "
        "block with one head."
    )
    claims = (
        Claim(
            "Where three places are needed at once, one head has a higher loss than four (ratio)",
            Numbers(tuple(e.loss[one] / e.loss[four] for e in measured), ".1f"),
            "at least",
            2,
            "1 if the number of heads did not matter.",
        ),
        Claim(
            "Four heads give the three places more weight than one head has to give",
            over("looks", four),
            "at least",
            1.5,
            "One head's weights sum to 1, three heads could give 3: half more than one head can.",
        ),
        Claim(
            "Where one place is needed, one head is enough: it reverses",
            Numbers(tuple(e.reversal for e in measured), ".2f"),
            "at least",
            SOLVED,
            "Chance is 0.12; the second half is fully determined.",
        ),
    )
    return Finding(said, (table,), (figure,), claims)
