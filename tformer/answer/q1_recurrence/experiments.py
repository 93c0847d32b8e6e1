"""The experiments of question 1, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.claims import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q1_recurrence import memory, positions, recurrence

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "permutation",
        "Is attention a bag of words?",
        positions.measure_permutation,
        positions.show_permutation,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "order",
        "A task that needs order",
        positions.measure_order,
        positions.show_order,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "steps",
        "Steps that wait for each other",
        recurrence.measure_steps,
        recurrence.show_steps,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "gradient",
        "How far back a gradient reaches",
        recurrence.measure_reach,
        recurrence.show_reach,
        quick_seeds=3,
        full_seeds=5,
    ),
    Experiment(
        "carried",
        "What generation carries along",
        recurrence.measure_carried,
        recurrence.show_carried,
        quick_seeds=2,
        full_seeds=3,
        skip=partial(too_short, positions=8),
    ),
    Experiment(
        "recall",
        "Remembering one token",
        memory.measure_recall,
        memory.show_recall,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "reversal",
        "Reversal, with equal parameters and steps",
        memory.measure_reversal,
        memory.show_reversal,
        quick_seeds=2,
        full_seeds=5,
    ),
)
