"""Evidence for question 5: a finite number added to hidden scores, and up to which score it hides."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, accuracies, halves, train
from tformer.answer.parts import adding, copy_of
from tformer.answer.q5_mask.leaks import small_model
from tformer.figures import Cell, Lines, Series, Table
from tformer.model import Formula, Transformer, attention
from tformer.text.data import Reversal
from tformer.watch import AttentionCall, put_formula, watching_attention

VALUES = (-10.0, -100.0, -1e4)
VANISHES = 150 * math.log(2)  # e to the minus this is half of float32's smallest number: it rounds to 0

# ---------------------------------------------------------------------------- measuring


def hidden_weight(formula: Formula, gap: float) -> float:
    """What a hidden key gets whose score is `gap` above that of the one visible key."""
    one, keys, mask = torch.ones(1, 1), torch.tensor([[0.0], [gap]]), torch.tensor([[True, False]])
    _, weights = formula(one, keys, keys, mask)
    return float(weights[0, 1])


def hides_up_to(value: float) -> float:
    """The largest gap at which that weight is exactly 0 with `value` added, by bisection, to 1e-3."""
    formula = adding(value)
    low, high = -value - 200.0, -value
    while high - low > 1e-3:
        middle = (low + high) / 2
        if hidden_weight(formula, middle) == 0:
            low = middle
        else:
            high = middle
    return low


@contextmanager
def hidden_weights(model: Transformer) -> Iterator[list[float]]:
    """The largest weight of a hidden key in each call of the model's attention inside the block."""
    largest: list[float] = []

    def see(call: AttentionCall) -> None:
        assert call.mask is not None
        largest.append(float((call.weights * ~call.mask).max()))

    with watching_attention(model, see):
        yield largest


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


def measure_finite(effort: Effort, seed: int, subject: Subject | None) -> FiniteEvidence:
    """Weights against the formula; reversal trained with a finite mask; the run with one."""
    gaps = [float(gap) for gap in range(-10, 31)]
    weights = [hidden_weight(adding(VALUES[0]), gap) for gap in gaps]
    expected = [1 / (1 + math.exp(-(gap + VALUES[0]))) for gap in gaps]
    task = Reversal(4, 8, seed=seed)
    trained_weight, trained_first_half = [], []
    for value in (VALUES[0], VALUES[-1]):
        model = small_model(task, seed, adding(value))
        steps = effort.pick(quick=300, full=600)
        train(model, task, steps, seed, batch_size=32, lr=1e-2, lr_final=0.1)
        with hidden_weights(model) as largest:
            trained_first_half.append(halves(accuracies(model, task, 1000), task)[0])
        trained_weight.append(max(largest))
    return FiniteEvidence(
        [hides_up_to(value) for value in VALUES],
        gaps,
        weights,
        off_formula=max(abs(a - b) for a, b in zip(weights, expected, strict=True)),
        exact_at_largest=hidden_weight(attention, torch.finfo(torch.float32).max),
        trained_weight=trained_weight,
        trained_first_half=trained_first_half,
        chance=1 / task.symbols,
        run_weight=put_into_run(effort, seed, subject) if subject else None,
    )


@torch.inference_mode()
def put_into_run(effort: Effort, seed: int, subject: Subject) -> list[float]:
    """The largest weight of a hidden key in a forward of the run, with each value in its mask."""
    ids = subject.ids(8, effort.pick(quick=64, full=256), seed)
    by_value = []
    for value in VALUES:
        model = put_formula(copy_of(subject.model), adding(value))
        with hidden_weights(model) as largest:
            model(ids)
        by_value.append(max(largest))
    return by_value


# ---------------------------------------------------------------------------- showing


def show_finite(seeds: Seeds[FiniteEvidence]) -> Finding:
    """It hides as far as the formula says; and training finds out."""
    figure = Lines(
        "A hidden key's weight with -10, against one visible key",
        "its score above the visible one",
        "weight",
        (Series("-10 added", tuple(seeds.first.gaps), tuple(seeds.first.weights)),),
        log_y=True,
    )
    said = (
        "Gradient flows to hidden keys wherever their weight is not 0. At first it is tiny with -10, and the "
        "model learns what can be learned without; then it finds the leak, in some heads, after some "
        "hundreds of steps at the high learning rate of 0.01."
    )
    return Finding(said, _finite_tables(seeds), (figure,), _finite_claims(seeds))


def _finite_tables(seeds: Seeds[FiniteEvidence]) -> tuple[Table, ...]:
    def trained(i: int, value: float) -> tuple[Cell, ...]:
        return (
            f"{value:g}",
            seeds.of(lambda e: e.trained_weight[i], ".2g"),
            seeds.of(lambda e: e.trained_first_half[i], ".3f"),
        )

    def of_run(i: int, value: float) -> tuple[Cell, ...]:
        return (f"{value:g}", seeds.of(lambda e: (e.run_weight or [])[i], ".2g"))

    hidden = Table(
        "A hidden key's weight is exactly 0 up to a score above the visible one of",
        ("added", "measured", "formula: -value - 150 ln 2", "equal weights at"),
        tuple(
            (f"{value:g}", f"{up_to:,.1f}", f"{-value - VANISHES:,.1f}", f"{-value:,.0f}")
            for value, up_to in zip(VALUES, seeds.first.holds_up_to, strict=True)
        ),
    )
    after_training = Table(
        "After training to reverse with it",
        ("added", "largest hidden weight", "first half right"),
        (trained(0, VALUES[0]), trained(1, VALUES[-1])),
    )
    if not seeds.first.run_weight:
        return hidden, after_training
    in_the_run = Table(
        "Put into the run: the largest weight that a hidden key gets",
        ("added", "largest hidden weight"),
        tuple(of_run(i, value) for i, value in enumerate(VALUES)),
    )
    return hidden, after_training, in_the_run


def _finite_claims(seeds: Seeds[FiniteEvidence]) -> tuple[Claim, ...]:
    return (
        at_most(
            "With -10 a hidden key gets what the formula says, 1 / (1 + e^(10 - gap))",
            seeds.of(lambda e: e.off_formula, ".1e"),
            1e-6,
            "Rounding of float32.",
        ),
        at_most(
            "-10⁴ hides exactly, up to about 9,896 above the visible scores",
            seeds.of(lambda e: abs(e.holds_up_to[-1] + VALUES[-1] + VANISHES), ".2f"),
            20,
            "The distance from the formula; it is 17 where numbers below 2^-126 are flushed to 0.",
        ),
        at_most(
            "-inf hides at every score that float32 holds",
            seeds.of(lambda e: e.exact_at_largest, ".2g"),
            0,
            "exp(-inf) is 0.",
        ),
        at_least(
            "Training outbids -10: a hidden key gets most of a query's weight",
            seeds.of(lambda e: e.trained_weight[0], ".3f"),
            0.5,
            f"Half of all weight; with equal scores it would be {math.exp(VALUES[0]):.1e}.",
        ),
        at_most(
            "Training does not outbid -10⁴",
            seeds.of(lambda e: e.trained_weight[1], ".2g"),
            0,
            "Scores would have to grow by thousands.",
        ),
    )
