"""Evidence for question 6: heads add up, and what a model loses when some of them are removed."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from tformer.answer.claims import Claim, Finding, at_least, at_most, largest
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import (
    Subject,
    accuracies,
    build,
    fresh_tensors,
    halves,
    relative_difference,
    tiny,
    train,
)
from tformer.answer.parts import draw_matrix
from tformer.evals.attention import CARRIES, attention_weights, mirror
from tformer.figures import Cell, Heat, Table
from tformer.model import Transformer
from tformer.text.data import Reversal
from tformer.watch import Head, blocks_of, module_calls, without_heads

N_ABLATED, N_PICTURED = 8, 4  # heads in the table of ablations, and in the picture
SOLVED = 0.9  # accuracy of the second half from which on a run is said to reverse

# ---------------------------------------------------------------------------- a sum over heads


@dataclass(frozen=True)
class SumEvidence:
    """The largest difference of all blocks, relative to the largest output."""

    difference: float
    heads: int


@torch.inference_mode()
def measure_sum(effort: Effort, seed: int, subject: Subject | None) -> SumEvidence:
    """Attention's output, against the sum of what each head alone adds to the residual stream."""
    if subject:
        model, ids = subject.model, subject.ids(2, effort.pick(quick=32, full=128), seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=32), seed)
        ids = torch.randint(32, (2, 32))
        for block in blocks_of(model):  # it starts at zero
            draw_matrix(block.attn.out.weight)
    differences, n_heads = [], model.config.n_heads
    with module_calls([block.attn.out for block in blocks_of(model)]) as calls:
        model.eval()(ids)
    for layer, call in enumerate(calls):
        out, gathered = call.module, call.x
        whole, nothing = out(gathered), out(torch.zeros_like(gathered))
        summed = nothing.clone()
        for head in range(n_heads):
            others = [(layer, other) for other in range(n_heads) if other != head]
            with without_heads(model, others):
                summed += out(gathered) - nothing
        differences.append(relative_difference(summed, whole, least=1e-30))
    return SumEvidence(largest(differences), n_heads)


def show_sum(seeds: Seeds[SumEvidence]) -> Finding:
    """Attention's output is a sum over heads."""
    claim = at_most(
        f"The output of attention is the sum of what its {seeds.first.heads} heads add, each alone",
        seeds.of(lambda e: e.difference, ".1e"),
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


def measure_mirror(effort: Effort, seed: int, subject: Subject | None) -> MirrorEvidence:
    """Where heads look, and the accuracy without each, on the run or on a model trained here."""
    if subject and subject.task:
        return _mirrored(subject.model, subject.task, seed, own=False)
    task = Reversal(effort.pick(quick=5, full=8), effort.pick(quick=10, full=16), seed)
    width = effort.pick(quick=32, full=64)
    model = build(tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, d_model=width), seed)
    steps, lr = effort.pick(quick=120, full=500), effort.pick(quick=6e-3, full=3e-3)
    train(model, task, steps, seed, batch_size=32, lr=lr)
    return _mirrored(model, task, seed, own=True)


def _mirrored(model: Transformer, task: Reversal, seed: int, own: bool) -> MirrorEvidence:
    result = mirror(model, task, index=1 + seed)
    heads = [(head.layer - 1, head.head - 1) for head in result.heads]
    lookers = [(head.layer - 1, head.head - 1) for head in result.carriers]
    others = [head for head in heads if head not in lookers]

    def accuracy(removed: Collection[Head], mean: bool = False) -> float:
        with without_heads(model, removed, mean):
            return halves(accuracies(model, task, n=300, index=1 + seed), task)[1]

    weights = attention_weights(model, fresh_tensors(task, 100, 1 + seed)[0])
    return MirrorEvidence(
        names=[f"layer {head.layer}, head {head.head}" for head in result.heads],
        shares=[head.share for head in result.heads],
        uniform=result.uniform,
        accuracy=accuracy([]),
        chance=1 / task.symbols,
        zeroed=[accuracy([head]) for head in heads[:N_ABLATED]],
        averaged=[accuracy([head], mean=True) for head in heads[:N_ABLATED]],
        without_lookers=accuracy(lookers),
        without_others=accuracy(others, mean=True),
        lookers=len(lookers),
        weights=[weights[layer, :, head].mean(0).tolist() for layer, head in heads[:N_PICTURED]],
        own=own,
    )


def show_mirror(seeds: Seeds[MirrorEvidence]) -> Finding:
    """Some heads look at the mirrored place, and they carry the reversal."""
    first = seeds.first

    def without(i: int) -> tuple[Cell, ...]:
        return (
            f"head {i + 1}" if first.own else first.names[i],
            seeds.of(lambda e: e.shares[i], ".2f"),
            seeds.of(lambda e: e.zeroed[i], ".2f"),
            seeds.of(lambda e: e.averaged[i], ".2f"),
        )

    accuracy = seeds.of(lambda e: e.accuracy, ".2f")
    table = Table(
        f"Accuracy of the second half without heads (with all: {accuracy})",
        ("left out", "weight on the mirrored place", "set to 0", "set to its mean"),
        tuple(map(without, range(len(first.zeroed)))),
    )
    heat = Heat(
        "Where the first heads look, mean over sequences",
        "position that asks",
        "position looked at",
        tuple(
            (name, tuple(map(tuple, weights)))
            for name, weights in zip(first.names, first.weights, strict=False)
        ),
    )
    alone = seeds.of(lambda e: e.accuracy - e.zeroed[0], ".2f")
    said = (
        "Heads are ordered by the weight that queries of the second half give to the place where the answer "
        f"stands; a head that looks everywhere alike gives it {first.uniform:.2f}. Without the first head "
        f"alone accuracy falls by {alone}: where others look at the same place, they stand in. So all heads "
        f"with half of their weight there ({', '.join(str(e.lookers) for e in seeds)} of "
        f"{len(first.shares)}) were removed together, and then all the others."
    )
    if min(e.accuracy for e in seeds) < SOLVED:
        return Finding(f"{said} No claim is made: the model does not reverse.", (table,), (heat,))
    return Finding(said, (table,), (heat,), _mirror_claims(seeds))


def _mirror_claims(seeds: Seeds[MirrorEvidence]) -> tuple[Claim, ...]:
    halfway = (1 + seeds.first.chance) / 2
    because = f"Halfway between chance ({seeds.first.chance:.2g}) and 1."
    return (
        at_least(
            "A head looks at the mirrored place: the anti-diagonal",
            seeds.of(lambda e: e.shares[0], ".2f"),
            CARRIES,
            f"More there than everywhere else together; a uniform head has {seeds.first.uniform:.2f}.",
        ),
        at_most(
            "Without the heads that look there the reversal is lost",
            seeds.of(lambda e: e.without_lookers, ".2f"),
            halfway,
            because,
        ),
        at_least(
            "Without all the other heads, set to their mean, it is kept",
            seeds.of(lambda e: e.without_others, ".2f"),
            halfway,
            because,
        ),
    )
