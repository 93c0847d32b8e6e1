"""Question 3, shared: one MLP for all blocks, as wide as one of the separate ones or as all of them."""

import math
from dataclasses import dataclass

from tformer.answer.claims import Finding, at_least
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, accuracies, halves, n_parameters
from tformer.answer.q3_mlps.alike import flat
from tformer.answer.q3_mlps.facts import facts_for, learned_by_heart, remembered, reversing
from tformer.figures import Numbers, Table
from tformer.watch import blocks_of

SEPARATE, SHARED, WIDE = "separate", "shared", "shared, wide"
MLP_VARIANTS = (SEPARATE, SHARED, WIDE)


@dataclass(frozen=True)
class SharedEvidence:
    """What models with each kind of MLPs know and cost, by its name."""

    loss: dict[str, float]  # nats a fact
    known: dict[str, float]  # share of the facts
    reversal: dict[str, float]  # accuracy of the second half
    parameters: dict[str, int]  # of all MLPs together
    multiplications: dict[str, int]  # of all MLPs, for one position

    @property
    def lost(self) -> float:
        """The share of the facts that a shared MLP of the same width does not remember."""
        return self.known[SEPARATE] - self.known[SHARED]

    @property
    def regained(self) -> float:
        """The part of that which comes back with the parameters; no number where nothing was lost."""
        return (self.known[WIDE] - self.known[SHARED]) / self.lost if self.lost else math.nan


def measure_shared(effort: Effort, seed: int, subject: Subject | None) -> SharedEvidence:
    """Train the three variants on facts, which need MLPs, and on the reversal, which need not."""
    facts = facts_for(effort, seed)
    evidence = SharedEvidence({}, {}, {}, {}, {})
    for variant in MLP_VARIANTS:
        model = learned_by_heart(effort, seed, variant)
        evidence.loss[variant], evidence.known[variant] = remembered(model, facts)
        distinct = {id(block.mlp): block.mlp for block in blocks_of(model)}.values()
        evidence.parameters[variant] = sum(n_parameters(mlp) for mlp in distinct)
        evidence.multiplications[variant] = sum(flat(block.mlp).numel() for block in blocks_of(model))
        reverser, task = reversing(effort, seed, variant)
        evidence.reversal[variant] = halves(accuracies(reverser, task), task)[1]
    return evidence


def show_shared(seeds: Seeds[SharedEvidence]) -> Finding:
    """Sharing costs memory; as many parameters give it back, at more computation."""
    first = seeds.first

    def row(variant: str) -> tuple[str | Numbers, ...]:
        return (
            variant,
            f"{first.parameters[variant]:,}",
            f"{first.multiplications[variant]:,}",
            seeds.of(lambda e: e.known[variant], ".2f"),
            seeds.of(lambda e: e.reversal[variant], ".2f"),
        )

    return Finding.of(
        "Separate MLPs, one shared by all blocks, and one shared that is so wide that it has as many "
        "parameters as the separate ones, were trained alike on random facts: only memory helps there, and "
        "only MLPs are trained. Products are multiplications by their weights for one position. The last "
        "column is the accuracy of two blocks that learned to reverse, which attention can do alone.",
        Table(
            "Facts learned by the MLPs of three blocks, and the reversal",
            ("MLPs", "parameters", "products", "facts known", "reversal"),
            tuple(map(row, MLP_VARIANTS)),
        ),
        at_least(
            "One MLP for all blocks, of the same width, remembers fewer facts than separate ones",
            seeds.of(lambda e: e.lost, ".2f"),
            0.1,
            "It has a third of the parameters; 0 if these did not count.",
        ),
        at_least(
            "As many parameters, shared, give back most of what sharing lost",
            seeds.of(lambda e: e.regained, ".2f"),
            0.5,
            "Halfway: 0 is the narrow shared MLP, 1 the separate ones.",
        ),
    )
