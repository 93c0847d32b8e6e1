"""Question 3, alike: how alike the MLPs of two blocks are, drawn apart or started as copies."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, n_parameters, too_short
from tformer.answer.parts import exchanged, with_mlps
from tformer.answer.q3_mlps.facts import facts_for, learned_by_heart
from tformer.figures import Bars, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import MLP, Block, Transformer
from tformer.watch import blocks_of, module_calls

COMPARED_STATES = 512  # that every MLP is given
MOST_NEURONS = 256  # compared with all of another block

# ---------------------------------------------------------------------------- how alike two are


def flat(mlp: MLP) -> Tensor:
    """Both matrices as one vector of 2 · d_mlp · d_model numbers."""
    return torch.cat((mlp.up.weight.flatten(), mlp.down.weight.flatten())).detach()


def neurons(block: Block) -> Tensor:
    """What each neuron reads and what it writes, each of length 1, side by side: (d_mlp, 2 · d_model).

    The gain of the norm before it counts as the neuron's. Lengths do not: a ReLU neuron computes the
    same if what it reads is made longer and what it writes shorter.
    """
    gain = getattr(block.norm_2, "weight", None)
    reads = block.mlp.up.weight.detach() * (1.0 if gain is None else gain.detach())
    writes = block.mlp.down.weight.detach().T
    return torch.cat((F.normalize(reads, dim=1), F.normalize(writes, dim=1)), dim=1) / math.sqrt(2)


def best_match(a: Tensor, b: Tensor) -> float:
    """The cosine of a neuron of a with the most similar one of b, mean over (at most 256) neurons of a.

    Several may choose the same one, so no order of b's neurons agrees better with a's.
    """
    some = a[:: math.ceil(len(a) / MOST_NEURONS)]
    return float((some @ b.T).max(dim=1).values.mean())


def in_other_basis(vectors: Tensor, order: Tensor) -> Tensor:
    """Neurons (n, 2 · d_model) that read and write feature order[i] of the stream instead of i."""
    return vectors.unflatten(1, (2, -1))[:, :, order].flatten(1)


def cosine_of(a: Tensor, b: Tensor) -> float:
    """Of two tensors as vectors; 0 if either is 0."""
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of (example, feature) matrices: 1 if one is the other turned and scaled.

    ‖a'ᵀb'‖² / (‖a'ᵀa'‖ ‖b'ᵀb'‖) with centred columns (Kornblith et al. 2019, section 3).
    """
    a, b = ((x - x.mean(0)).double() for x in (a, b))
    norm = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / norm) if norm else 0.0


def pairs(n_layers: int, most: int) -> list[tuple[int, int]]:
    """Pairs of blocks i < j, evenly thinned to `most`."""
    every = list(combinations(range(n_layers), 2))
    return every[:: math.ceil(len(every) / most)] if every else []


# ---------------------------------------------------------------------------- drawn apart


@dataclass(frozen=True)
class Pair:
    """How alike the MLPs of two blocks are. `…_shuffled`: one of the two in a shuffled basis."""

    flat: float
    matched: float
    matched_shuffled: float
    matched_itself: float  # with its own neurons in another order: what sameness would give
    outputs: float
    outputs_shuffled: float
    cka: float
    cka_shuffled: float
    exchange: float  # nats that exchanging the two adds to the loss

    @property
    def likeness(self) -> float:
        """How good the match is: 0 as with a shuffled basis, 1 the same neurons."""
        return (self.matched - self.matched_shuffled) / max(1 - self.matched_shuffled, 1e-6)


@dataclass(frozen=True)
class LikenessEvidence:
    """What `Pair` has, means and largest over pairs of blocks."""

    blocks: int
    block_parameters: tuple[int, int]  # of attention, of the MLP
    flat: float
    matched: float
    matched_shuffled: float
    matched_itself: float
    likeness: float  # the largest
    outputs: float
    outputs_largest: float
    outputs_shuffled: float
    cka: float
    cka_shuffled: float
    exchange: float
    own: bool  # trained here


def measure_likeness(effort: Effort, seed: int, subject: Subject | None) -> LikenessEvidence:
    """Compare the MLPs of all pairs of blocks: their weights, what they make of the same states."""
    if subject:
        model, ids = subject.model, subject.ids(effort.pick(quick=8, full=32), 32, seed)
        inputs, targets = ids[:, :-1], ids[:, 1:]
    else:
        model = learned_by_heart(effort, seed)
        inputs, targets = (torch.from_numpy(a) for a in facts_for(effort, seed).all())
    torch.manual_seed(seed)
    compared = compare_pairs(model, inputs, targets, most=effort.pick(quick=5, full=15))

    def mean(quantity: Callable[[Pair], float]) -> float:
        return sum(map(quantity, compared)) / len(compared)

    block = blocks_of(model)[0]
    return LikenessEvidence(
        blocks=len(model.blocks),
        block_parameters=(n_parameters(block.attn), n_parameters(block.mlp)),
        flat=mean(lambda pair: pair.flat),
        matched=mean(lambda pair: pair.matched),
        matched_shuffled=mean(lambda pair: pair.matched_shuffled),
        matched_itself=mean(lambda pair: pair.matched_itself),
        likeness=max(pair.likeness for pair in compared),
        outputs=mean(lambda pair: pair.outputs),
        outputs_largest=max(pair.outputs for pair in compared),
        outputs_shuffled=mean(lambda pair: pair.outputs_shuffled),
        cka=mean(lambda pair: pair.cka),
        cka_shuffled=mean(lambda pair: pair.cka_shuffled),
        exchange=mean(lambda pair: pair.exchange),
        own=subject is None,
    )


@torch.inference_mode()
def compare_pairs(model: Transformer, inputs: Tensor, targets: Tensor, most: int) -> list[Pair]:
    """At most so many pairs of blocks, on states that the model has when it reads the inputs."""
    blocks = blocks_of(model)

    def loss() -> float:
        return float(cross_entropy(model(inputs), targets).mean())

    order = torch.randperm(model.config.d_model)
    with module_calls(block.norm_2 for block in blocks) as calls:
        model.eval()(inputs)
    states = torch.cat([call.x.flatten(0, 1) for call in calls])
    states = states[torch.randperm(len(states))[:COMPARED_STATES]]
    usual, compared = loss(), []
    for i, j in pairs(len(blocks), most):
        a, b = neurons(blocks[i]), neurons(blocks[j])
        norm_a, norm_b = blocks[i].norm_2(states), blocks[j].norm_2(states)
        given = ((i, norm_a), (j, norm_b), (j, norm_b[:, order]))
        of_a, of_b, of_shuffled = (blocks[k].mlp(x[None])[0] for k, x in given)  # (N, C)
        with exchanged(model, i, j):
            exchanging = loss() - usual
        pair = Pair(
            flat=cosine_of(flat(blocks[i].mlp), flat(blocks[j].mlp)),
            matched=best_match(a, b),
            matched_shuffled=best_match(a, in_other_basis(b, order)),
            matched_itself=best_match(a, a[torch.randperm(len(a))]),
            outputs=cosine_of(of_a - of_a.mean(0), of_b - of_b.mean(0)),
            outputs_shuffled=cosine_of(of_a - of_a.mean(0), of_shuffled - of_shuffled.mean(0)),
            cka=cka(of_a, of_b),
            cka_shuffled=cka(of_a, of_shuffled),
            exchange=exchanging,
        )
        compared.append(pair)
    return compared


def show_likeness(seeds: Seeds[LikenessEvidence]) -> Finding:
    """No more alike than strangers, in weights and in what they compute."""
    halfway = "Halfway between unrelated (0) and the same (1)."
    claims = [
        at_most(
            "No two blocks have the same MLP, in whatever order of its neurons",
            seeds.of(lambda e: e.likeness, ".2f"),
            0.5,
            f"{halfway} The two most alike blocks; unrelated is the match with a shuffled basis.",
        ),
    ]
    if seeds.first.own:
        claims += _claims_of_facts(seeds, halfway)
    return Finding.of(
        f"{_whose(seeds.first)}The order of neurons means nothing, so each was also matched with the nearest "
        "of all neurons of the other block; shuffling the features of the stream shows what chance gives. "
        "CKA forgives any rotation of the outputs: high even for shuffled ones, it says that the inputs were "
        "the same and little of the MLPs.",
        _likeness_table(seeds),
        *claims,
    )


def _claims_of_facts(seeds: Seeds[LikenessEvidence], halfway: str) -> list[Claim]:
    """Of what was trained here: what MLPs compute depends on what a run has learned."""
    return [
        at_most(
            "No two blocks' MLPs compute the same from the same states",
            seeds.of(lambda e: e.outputs_largest, ".2f"),
            0.5,
            f"{halfway} The two most alike blocks.",
        ),
        at_least(
            "Each MLP is of use in its own block: exchanging two costs",
            seeds.of(lambda e: e.exchange, ".2f", "nats"),
            0.3,
            "Exchanging equal ones costs 0; a guess among all values loses more than 6.",
        ),
    ]


def _whose(first: LikenessEvidence) -> str:
    """Which blocks were compared."""
    if first.own:
        return "Three blocks whose MLPs learned a table of facts by heart were compared in pairs. "
    attention, mlp = first.block_parameters
    return (
        f"The {first.blocks} blocks of the run were compared in pairs; in each, attention has "
        f"{attention:,} numbers and the MLP {mlp:,}. Whether their outputs agree depends on what they "
        "learned, so nothing is claimed of these. "
    )


def _likeness_table(seeds: Seeds[LikenessEvidence]) -> Table:
    """Each likeness beside what strangers and what the same would give."""

    def of(quantity: Callable[[LikenessEvidence], float]) -> Numbers:
        return seeds.of(quantity, ".2f")

    shuffled, itself = of(lambda e: e.matched_shuffled), of(lambda e: e.matched_itself)
    return Table(
        "Two blocks' MLPs: cosines, mean over pairs",
        ("", "measured", "if unrelated", "if the same"),
        (
            ("weights as they stand", of(lambda e: e.flat), "0", "1"),
            ("neurons, each with its best match", of(lambda e: e.matched), str(shuffled), str(itself)),
            (
                "outputs for the same states",
                of(lambda e: e.outputs),
                str(of(lambda e: e.outputs_shuffled)),
                "1",
            ),
            ("these, the two most alike", of(lambda e: e.outputs_largest), "-", "1"),
            ("outputs for the same states, CKA", of(lambda e: e.cka), str(of(lambda e: e.cka_shuffled)), "1"),
            ("nats added by exchanging them", of(lambda e: e.exchange), "-", "0"),
        ),
    )


def one_block(subject: Subject | None) -> str | None:
    """Why a run cannot be examined: there is nothing to compare a single block with."""
    if subject and subject.model.config.n_layers < 2:
        return "the model of --run has one block"
    return too_short(subject, positions=2)


# ---------------------------------------------------------------------------- started as copies


@dataclass(frozen=True)
class PartingEvidence:
    """Cosines between blocks whose MLPs started as copies, mean over pairs."""

    start: float
    end: float
    update: float  # of what training added


def measure_parting(
    effort: Effort, seed: int, subject: Subject | None, variant: str = "same start"
) -> PartingEvidence:
    """Start all MLPs from the same weights, train, and compare what was added."""
    after = learned_by_heart(effort, seed, variant)
    before = build(after.config, seed, partial(with_mlps, variant=variant))  # the same draw
    old, new = ([flat(block.mlp) for block in blocks_of(model)] for model in (before, after))
    compared = pairs(len(new), most=15)

    def mean(vectors: list[Tensor]) -> float:
        return sum(cosine_of(vectors[i], vectors[j]) for i, j in compared) / len(compared)

    return PartingEvidence(mean(old), mean(new), mean([b - a for a, b in zip(old, new, strict=True)]))


def show_parting(seeds: Seeds[PartingEvidence]) -> Finding:
    """Depth alone makes them differ."""
    update = seeds.of(lambda e: e.update, ".2f")
    return Finding.of(
        "Blocks might differ only because they are drawn differently. Here the MLPs of all blocks started "
        "as copies and learned the same facts. They stand at different depths and see different states.",
        Bars(
            "Cosine between blocks whose MLPs started as copies",
            "cosine",
            (
                ("weights before training", seeds.of(lambda e: e.start, ".2f")),
                ("weights after training", seeds.of(lambda e: e.end, ".2f")),
                ("what training added", update),
            ),
        ),
        at_most(
            "MLPs that start as copies are trained apart",
            update,
            0.8,
            "The same gradients would give 1 to rounding, unrelated ones 0.",
        ),
    )
