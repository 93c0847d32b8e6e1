"""Evidence for question 5: a finite number added to hidden scores, and up to which score it hides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tformer.answer.claims import Budget, Claim, Finding
from tformer.answer.lab import Subject, accuracies, halves, train
from tformer.answer.parts import Adding, adding, adding_attention, blocks_of, copy_of, with_attention
from tformer.answer.q5_mask.leaks import small
from tformer.figures import Lines, Numbers, Series, Table
from tformer.model import Transformer, attention
from tformer.text.data import Reversal

VALUES = (-10.0, -100.0, -1e4)
VANISHES = 150 * math.log(2)  # e to the minus this is half of float32's smallest number: it rounds to 0


def hidden_weight(value: float, gap: float) -> float:
    """What a hidden key gets whose score is `gap` above that of the one visible key.

    With -inf it is the model's own `attention` that is asked.
    """
    one, keys, mask = torch.ones(1, 1), torch.tensor([[0.0], [gap]]), torch.tensor([[True, False]])
    exact = value == -math.inf
    weights = (attention(one, keys, keys, mask) if exact else adding_attention(one, keys, keys, mask, value))[
        1
    ]
    return float(weights[0, 1])


def holds_up_to(value: float) -> float:
    """The largest gap at which that weight is exactly 0, by bisection, to 1e-3."""
    low, high = -value - 200.0, -value
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if hidden_weight(value, middle) == 0 else (low, middle)
    return low


def largest_hidden(model: Transformer) -> float:
    """Over the blocks, in the last forward."""
    return max(block.attn.hidden_weight for block in blocks_of(model) if isinstance(block.attn, Adding))


@dataclass(frozen=True)
class FiniteEvidence:
    """Of each value in VALUES, and of a training with the first and the last."""

    holds_up_to: list[float]
    gaps: list[float]
    weights: list[float]  # of the first value, at each gap
    off_formula: float
    exact_at_largest: float  # weight of a hidden key with -inf, at the largest score of float32
    trained_weight: list[float]  # largest of a hidden key after training
    trained_first_half: list[float]
    chance: float
    run_weight: list[float] | None = None  # of each value, put into the run


def measure_finite(budget: Budget, seed: int, subject: Subject | None) -> FiniteEvidence:
    """Weights against the formula; reversal trained with a finite mask; the run with one."""
    gaps = [float(g) for g in range(-10, 31)]
    weights = [hidden_weight(VALUES[0], g) for g in gaps]
    formula = [1 / (1 + math.exp(-(g + VALUES[0]))) for g in gaps]
    task = Reversal(4, 8, seed=seed)
    trained, first = [], []
    for value in (VALUES[0], VALUES[-1]):
        model = small(task, seed, adding(value))
        train(model, task, budget.pick(quick=300, full=600), seed, batch_size=32, lr=1e-2, lr_final=0.1)
        first.append(halves(accuracies(model, task, 1000), task)[0])  # its last forward is of all of them
        trained.append(largest_hidden(model))
    run = None
    if subject:
        ids, run = subject.ids(8, budget.pick(quick=64, full=256), seed), []
        for value in VALUES:
            model = with_attention(copy_of(subject.model), adding(value))
            with torch.inference_mode():
                model(ids)
            run.append(largest_hidden(model))
    return FiniteEvidence(
        [holds_up_to(v) for v in VALUES],
        gaps,
        weights,
        max(abs(a - b) for a, b in zip(weights, formula, strict=True)),
        hidden_weight(-math.inf, torch.finfo(torch.float32).max),
        trained,
        first,
        1 / task.symbols,
        run,
    )


def show_finite(measured: Sequence[FiniteEvidence]) -> Finding:
    """As the formula says; and training finds out."""
    one = measured[0]

    def over(values: Sequence[float], style: str = ".2g") -> Numbers:
        return Numbers(tuple(values), style)

    tables = [
        Table(
            "A hidden key's weight is exactly 0 up to a score above the visible one of",
            ("added", "measured", "formula: -value - 150 ln 2", "equal weights at"),
            tuple(
                (f"{value:g}", f"{up_to:,.1f}", f"{-value - VANISHES:,.1f}", f"{-value:,.0f}")
                for value, up_to in zip(VALUES, one.holds_up_to, strict=True)
            ),
        ),
        Table(
            "After training to reverse with it",
            ("added", "largest hidden weight", "first half right"),
            tuple(
                (
                    f"{value:g}",
                    over([e.trained_weight[i] for e in measured]),
                    over([e.trained_first_half[i] for e in measured], ".3f"),
                )
                for i, value in enumerate((VALUES[0], VALUES[-1]))
            ),
        ),
    ]
    if one.run_weight:
        tables.append(
            Table(
                "Put into the run: the largest weight that a hidden key gets",
                ("added", "largest hidden weight"),
                tuple(
                    (f"{v:g}", over([(e.run_weight or [])[i] for e in measured]))
                    for i, v in enumerate(VALUES)
                ),
            )
        )
    figure = Lines(
        "A hidden key's weight with -10, against one visible key",
        "its score above the visible one",
        "weight",
        (Series("-10 added", tuple(one.gaps), tuple(one.weights)),),
        log_y=True,
    )
    start = math.exp(VALUES[0])
    claims = (
        Claim(
            "With -10 a hidden key gets what the formula says, 1 / (1 + e^(10 - gap))",
            over([e.off_formula for e in measured], ".1e"),
            "at most",
            1e-6,
            "Rounding of float32.",
        ),
        Claim(
            "-10⁴ hides exactly, up to about 9,896 above the visible scores",
            over([abs(e.holds_up_to[-1] + VALUES[-1] + VANISHES) for e in measured], ".2f"),
            "at most",
            20,
            "The distance from the formula; it is 17 where numbers below 2^-126 are flushed to 0.",
        ),
        Claim(
            "-inf hides at every score that float32 holds",
            over([e.exact_at_largest for e in measured]),
            "at most",
            0,
            "exp(-inf) is 0.",
        ),
        Claim(
            "Training outbids -10: a hidden key gets most of a query's weight",
            over([e.trained_weight[0] for e in measured], ".3f"),
            "at least",
            0.5,
            f"Half of all weight; with equal scores it would be {start:.1e}.",
        ),
        Claim(
            "Training does not outbid -10⁴",
            over([e.trained_weight[1] for e in measured]),
            "at most",
            0,
            "Scores would have to grow by thousands.",
        ),
    )
    said = (
        "Gradient flows to hidden keys wherever their weight is not 0. At first it is tiny with -10, and the "
        "model learns what can be learned without; then it finds the leak, in some heads, after some "
        "hundreds of steps at the high learning rate of 0.01."
    )
    return Finding(said, tuple(tables), (figure,), claims)
