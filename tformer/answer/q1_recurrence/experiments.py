"""The experiments of question 1, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q1_recurrence import chain, memory, order

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "permutation",
        "Is attention a bag of words?",
        order.measure_permutation,
        order.show_permutation,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "order",
        "A task that needs order",
        order.measure_order,
        order.show_order,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "steps",
        "Steps that wait for each other",
        chain.measure_steps,
        chain.show_steps,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "gradient",
        "How far back a gradient reaches",
        chain.measure_reach,
        chain.show_reach,
        quick_seeds=3,
        full_seeds=5,
    ),
    Experiment(
        "carried",
        "What generation carries along",
        memory.measure_carried,
        memory.show_carried,
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
