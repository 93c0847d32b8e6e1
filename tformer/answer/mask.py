"""Evidence for question 5: what the causal mask does, and one sequence as many examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tformer.answer.lab import Subject, build, tiny
from tformer.evidence import Budget, Claim, Experiment, Finding, Numbers, Table
from tformer.train import cross_entropy

# ---------------------------------------------------------------------------- one forward, many examples


@dataclass(frozen=True)
class PrefixEvidence:
    """The losses of one forward of T positions against those of T forwards of the T prefixes."""

    positions: int
    largest_difference: float  # nats
    positions_computed_once: int
    positions_computed_by_prefixes: int


def measure_prefixes(budget: Budget, seed: int, subject: Subject | None) -> PrefixEvidence:
    """Score the same tokens both ways, with the weights of the run or with random ones."""
    length = budget.pick(quick=32, full=128)
    if subject:
        model, ids = subject.model, subject.ids(1, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed)
        ids = torch.randint(32, (1, length))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.inference_mode():
        once = cross_entropy(model(inputs), targets)[0]
        each = [
            cross_entropy(model(inputs[:, : t + 1]), targets[:, : t + 1])[0, -1] for t in range(len(once))
        ]
    n = len(once)
    difference = float((once - torch.stack(each)).abs().max())
    return PrefixEvidence(n, difference, n, n * (n + 1) // 2)


def show_prefixes(measured: Sequence[PrefixEvidence]) -> Finding:
    """The same losses to rounding, for a T-th of the work."""
    difference = Numbers(tuple(e.largest_difference for e in measured), ".1e", "nats")
    first = measured[0]
    table = Table(
        "The same losses, computed twice",
        ("", "forwards", "positions computed"),
        (
            ("one forward of the sequence", "1", str(first.positions_computed_once)),
            ("a forward for each prefix", str(first.positions), str(first.positions_computed_by_prefixes)),
        ),
    )
    claim = Claim(
        f"One forward of {first.positions} positions gives the losses of all {first.positions} prefixes",
        difference, "at most", 1e-4, "Rounding of float32 in matrix products of other shapes is about 1e-6.",
    )  # fmt: skip
    return Finding("Every position of one forward is an example of its own.", (table,), (), (claim,))


EXPERIMENTS = (
    Experiment("prefixes", "One forward, many examples", measure_prefixes, show_prefixes, seeds=(3, 5)),
)
