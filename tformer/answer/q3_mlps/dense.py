"""Evidence for question 3: the MLP acts on each position alone, and each block has one of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tformer.answer.claims import Budget, Claim, Finding, over_seeds
from tformer.answer.lab import Subject, accuracies, build, halves, n_parameters, too_short
from tformer.answer.parts import exchanged, same_start
from tformer.answer.q3_mlps.mlps import (
    arguments,
    best_match,
    cka,
    cosine,
    facts_of,
    flat,
    in_other_basis,
    learned_by_heart,
    neurons,
    pairs,
    recall,
    reversing,
)
from tformer.figures import Bars, Lines, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.watch import blocks_of

STATES = 512  # that every MLP is given
SEQUENCES = 16  # of which a position is replaced

# ---------------------------------------------------------------------------- one position alone


@dataclass(frozen=True)
class AloneEvidence:
    """How far outputs move when one position's input is replaced, in units of its own output's movement.

    A mean over sequences, the largest of all blocks at each position; `at` is the one that was replaced.
    """

    at: int
    mlp: list[float]
    attention: list[float]


def measure_alone(budget: Budget, seed: int, subject: Subject | None) -> AloneEvidence:
    """Replace the state of one position, before the MLP and before attention of every block."""
    if subject:
        model, ids = subject.model, subject.ids(SEQUENCES, budget.pick(quick=16, full=64), seed)
    else:
        model, task = reversing(budget, seed)
        ids = torch.from_numpy(task.fresh(SEQUENCES, 1)[0].copy())
    at = ids.shape[1] // 2
    torch.manual_seed(seed)
    blocks = blocks_of(model)
    return AloneEvidence(
        at,
        _movement([b.mlp for b in blocks], model, ids, at),
        _movement([b.attn for b in blocks], model, ids, at),
    )


@torch.inference_mode()
def _movement(parts: Sequence[nn.Module], model: Transformer, ids: Tensor, at: int) -> list[float]:
    """How far the outputs move when position `at` gets random inputs, the largest of all parts."""
    moved = []
    for part, (x, *rest) in zip(parts, arguments(parts, model, ids), strict=True):
        other = x.clone()
        other[:, at] = torch.randn_like(x[:, at]) * x.std()
        distance = (part(other, *rest) - part(x, *rest)).norm(dim=-1).mean(0)
        moved.append(distance / distance.max().clamp(min=1e-30))
    return [float(largest) for largest in torch.stack(moved).amax(0)]


def show_alone(measured: Sequence[AloneEvidence]) -> Finding:
    """The MLP's output moves at that position alone, attention's at later ones too."""
    at = measured[0].at
    others = Numbers(tuple(max(e.mlp[: e.at] + e.mlp[e.at + 1 :]) for e in measured), ".1e")
    later = Numbers(tuple(max(e.attention[e.at + 1 :]) for e in measured), ".2g")
    x = tuple(range(1, len(measured[0].mlp) + 1))
    figure = Lines(
        f"Position {at + 1} gets another input: which outputs move",
        "position",
        "movement (largest at any position: 1)",
        (
            over_seeds("MLP", x, [e.mlp for e in measured]),
            over_seeds("attention", x, [e.attention for e in measured]),
        ),
    )
    claims = (
        Claim(
            "The MLP's output at other positions does not move",
            others,
            "at most",
            1e-5,
            "It should be 0; rounding of float32 is about 1e-7.",
        ),
        Claim(
            "Attention carries the change to later positions",
            later,
            "at least",
            1e-3,
            "A hundred times what the MLP is allowed.",
        ),
    )
    said = (
        "The state of one position was replaced in front of the MLP, and in front of attention, of every "
        "block. Movements, means over sequences, are relative to the largest; the figure has the largest of "
        "all blocks."
    )
    return Finding(said, (), (figure,), claims)


# ---------------------------------------------------------------------------- how alike


@dataclass(frozen=True)
class LikenessEvidence:
    """Means and largest over pairs of blocks. `…_shuffled`: one of the two in a shuffled basis."""

    blocks: int
    block_parameters: tuple[int, int]  # of attention, of the MLP
    flat: float
    matched: float
    matched_shuffled: float
    matched_itself: float  # with its own neurons in another order: what sameness would give
    likeness: float  # the largest; 0 as shuffled, 1 the same neurons
    outputs: float
    outputs_largest: float
    outputs_shuffled: float
    cka: float
    cka_shuffled: float
    exchange: float  # nats that exchanging two MLPs adds to the loss, mean over pairs
    own: bool  # trained here


def measure_likeness(budget: Budget, seed: int, subject: Subject | None) -> LikenessEvidence:
    """Compare the MLPs of all pairs of blocks: their weights, what they make of the same states."""
    if subject:
        model, ids = subject.model, subject.ids(budget.pick(quick=8, full=32), 32, seed)
        inputs, targets = ids[:, :-1], ids[:, 1:]
    else:
        model = learned_by_heart(budget, seed)
        inputs, targets = (torch.from_numpy(a) for a in facts_of(budget, seed).all())
    torch.manual_seed(seed)
    return _compared(model, inputs, targets, budget.pick(quick=5, full=15), own=subject is None)


@torch.inference_mode()
def _compared(
    model: Transformer, inputs: Tensor, targets: Tensor, most_pairs: int, own: bool
) -> LikenessEvidence:
    def loss() -> float:
        losses = cross_entropy(model(inputs), targets)
        return float(losses.mean())

    order = torch.randperm(model.config.d_model)
    seen = arguments([b.norm_2 for b in blocks_of(model)], model, inputs)
    states = torch.cat([x.flatten(0, 1) for x, *_ in seen])
    states = states[torch.randperm(len(states))[:STATES]]
    blocks, usual, rows = blocks_of(model), loss(), []
    for i, j in pairs(len(blocks), most_pairs):
        a, b = neurons(blocks[i]), neurons(blocks[j])
        matched, shuffled = best_match(a, b), best_match(a, in_other_basis(b, order))
        norm_a, norm_b = blocks[i].norm_2(states), blocks[j].norm_2(states)
        pair = ((i, norm_a), (j, norm_b), (j, norm_b[:, order]))
        of_a, of_b, of_shuffled = (blocks[k].mlp(x[None])[0] for k, x in pair)  # (N, C)
        with exchanged(model, i, j):
            added = loss() - usual
        rows.append(
            {
                "flat": cosine(flat(blocks[i].mlp), flat(blocks[j].mlp)),
                "matched": matched,
                "matched_shuffled": shuffled,
                "matched_itself": best_match(a, a[torch.randperm(len(a))]),
                "likeness": (matched - shuffled) / max(1 - shuffled, 1e-6),
                "outputs": cosine(of_a - of_a.mean(0), of_b - of_b.mean(0)),
                "outputs_shuffled": cosine(of_a - of_a.mean(0), of_shuffled - of_shuffled.mean(0)),
                "cka": cka(of_a, of_b),
                "cka_shuffled": cka(of_a, of_shuffled),
                "exchange": added,
            }
        )
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return LikenessEvidence(
        blocks=len(blocks),
        block_parameters=(n_parameters(blocks[0].attn), n_parameters(blocks[0].mlp)),
        **mean | {"likeness": max(row["likeness"] for row in rows)},
        outputs_largest=max(row["outputs"] for row in rows),
        own=own,
    )


def show_likeness(measured: Sequence[LikenessEvidence]) -> Finding:
    """No more alike than strangers, in weights and in what they compute."""
    first = measured[0]

    def over(field: str, style: str = ".2f", unit: str = "") -> Numbers:
        return Numbers(tuple(float(getattr(e, field)) for e in measured), style, unit)

    table = Table(
        "Two blocks' MLPs: cosines, mean over pairs",
        ("", "measured", "if unrelated", "if the same"),
        (
            ("weights as they stand", over("flat"), "0", "1"),
            (
                "neurons, each with its best match",
                over("matched"),
                str(over("matched_shuffled")),
                str(over("matched_itself")),
            ),
            ("outputs for the same states", over("outputs"), str(over("outputs_shuffled")), "1"),
            ("these, the two most alike", over("outputs_largest"), "-", "1"),
            ("outputs for the same states, CKA", over("cka"), str(over("cka_shuffled")), "1"),
            ("nats added by exchanging them", over("exchange"), "-", "0"),
        ),
    )
    halfway = "Halfway between unrelated (0) and the same (1)."
    claims = [
        Claim(
            "No two blocks have the same MLP, in whatever order of its neurons",
            over("likeness"),
            "at most",
            0.5,
            f"{halfway} The two most alike blocks; unrelated is the match with a shuffled basis.",
        ),
    ]
    if first.own:  # what MLPs compute depends on what a run has learned
        claims += [
            Claim(
                "No two blocks' MLPs compute the same from the same states",
                over("outputs_largest"),
                "at most",
                0.5,
                f"{halfway} The two most alike blocks.",
            ),
            Claim(
                "Each MLP is of use in its own block: exchanging two costs",
                over("exchange", ".2f", "nats"),
                "at least",
                0.3,
                "Exchanging equal ones costs 0; a guess among all values loses more than 6.",
            ),
        ]
    attention, mlp = first.block_parameters
    whose = (
        "Three blocks whose MLPs learned a table of facts by heart were compared in pairs. "
        if first.own
        else f"The {first.blocks} blocks of the run were compared in pairs; in each, attention has "
        f"{attention:,} numbers and the MLP {mlp:,}. Whether their outputs agree depends on what they "
        "learned, so nothing is claimed of these. "
    )
    said = (
        f"{whose}The order of neurons means nothing, so each was also matched with the nearest of all "
        "neurons of the other block; shuffling the features of the stream shows what chance gives. CKA "
        "forgives any rotation of the outputs: high even for shuffled ones, it says that the inputs were the "
        "same and little of the MLPs."
    )
    return Finding(said, (table,), (), tuple(claims))


def one_block(subject: Subject | None) -> str | None:
    """There is nothing to compare a single block with."""
    if subject and subject.model.config.n_layers < 2:
        return "the model of --run has one block"
    return too_short(subject, positions=2)


# ---------------------------------------------------------------------------- the same start


@dataclass(frozen=True)
class PartingEvidence:
    """Cosines between blocks whose MLPs started as copies, mean over pairs."""

    start: float
    end: float
    update: float  # of what training added


def measure_parting(budget: Budget, seed: int, subject: Subject | None) -> PartingEvidence:
    """Start all MLPs from the same weights, train, and compare what was added."""
    after = learned_by_heart(budget, seed, "same start")
    before = build(after.config, seed, same_start)  # the same draw
    old, new = ([flat(block.mlp) for block in blocks_of(model)] for model in (before, after))
    found = pairs(len(new), most=15)

    def mean(vectors: list[Tensor]) -> float:
        return sum(cosine(vectors[i], vectors[j]) for i, j in found) / len(found)

    return PartingEvidence(mean(old), mean(new), mean([b - a for a, b in zip(old, new, strict=True)]))


def show_parting(measured: Sequence[PartingEvidence]) -> Finding:
    """Depth alone makes them differ."""
    update = Numbers(tuple(e.update for e in measured), ".2f")
    bars = Bars(
        "Cosine between blocks whose MLPs started as copies",
        "cosine",
        (
            ("weights before training", Numbers(tuple(e.start for e in measured), ".2f")),
            ("weights after training", Numbers(tuple(e.end for e in measured), ".2f")),
            ("what training added", update),
        ),
    )
    claim = Claim(
        "MLPs that start as copies are trained apart",
        update,
        "at most",
        0.8,
        "The same gradients would give 1 to rounding, unrelated ones 0.",
    )
    said = (
        "Blocks might differ only because they are drawn differently. Here the MLPs of all blocks started "
        "as copies and learned the same facts. They stand at different depths and see different states."
    )
    return Finding(said, (), (bars,), (claim,))


# ---------------------------------------------------------------------------- one MLP for all blocks


@dataclass(frozen=True)
class SharedEvidence:
    """By variant."""

    loss: dict[str, float]  # nats a fact
    known: dict[str, float]  # share of the facts
    reversal: dict[str, float]  # accuracy of the second half
    parameters: dict[str, int]  # of all MLPs together
    multiplications: dict[str, int]  # of all MLPs, for one position


VARIANTS = ("separate", "shared", "shared, wide")


def measure_shared(budget: Budget, seed: int, subject: Subject | None) -> SharedEvidence:
    """Train the three variants on facts, which need MLPs, and on the reversal, which need not."""
    facts = facts_of(budget, seed)
    evidence = SharedEvidence({}, {}, {}, {}, {})
    for variant in VARIANTS:
        model = learned_by_heart(budget, seed, variant)
        evidence.loss[variant], evidence.known[variant] = recall(model, facts)
        distinct = {id(b.mlp): b.mlp for b in blocks_of(model)}.values()
        evidence.parameters[variant] = sum(n_parameters(mlp) for mlp in distinct)
        evidence.multiplications[variant] = sum(flat(b.mlp).numel() for b in blocks_of(model))
        reverser, task = reversing(budget, seed, variant)
        evidence.reversal[variant] = halves(accuracies(reverser, task), task)[1]
    return evidence


def show_shared(measured: Sequence[SharedEvidence]) -> Finding:
    """Sharing costs memory; as many parameters give it back, at more computation."""
    first = measured[0]

    def over(field: str, variant: str, style: str = ".2f") -> Numbers:
        return Numbers(tuple(getattr(e, field)[variant] for e in measured), style)

    table = Table(
        "Facts learned by the MLPs of three blocks, and the reversal",
        ("MLPs", "parameters", "products", "facts known", "reversal"),
        tuple(
            (
                v,
                f"{first.parameters[v]:,}",
                f"{first.multiplications[v]:,}",
                over("known", v),
                over("reversal", v),
            )
            for v in VARIANTS
        ),
    )
    known = [e.known for e in measured]
    lost = Numbers(tuple(k["separate"] - k["shared"] for k in known), ".2f")
    regained = Numbers(
        tuple((k["shared, wide"] - k["shared"]) / (k["separate"] - k["shared"] or math.nan) for k in known),
        ".2f",
    )
    claims = (
        Claim(
            "One MLP for all blocks, of the same width, remembers fewer facts than separate ones",
            lost,
            "at least",
            0.1,
            "It has a third of the parameters; 0 if these did not count.",
        ),
        Claim(
            "As many parameters, shared, give back most of what sharing lost",
            regained,
            "at least",
            0.5,
            "Halfway: 0 is the narrow shared MLP, 1 the separate ones.",
        ),
    )
    said = (
        "Separate MLPs, one shared by all blocks, and one shared that is so wide that it has as many "
        "parameters as the separate ones, were trained alike on random facts: only memory helps there, and "
        "only MLPs are trained. Products are multiplications by their weights for one position. The last "
        "column is the accuracy of two blocks that learned to reverse, which attention can do alone."
    )
    return Finding(said, (table,), (), claims)
