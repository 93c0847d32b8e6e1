"""The experiments of question 3, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q3_mlps import alike, alone, shared

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "alone",
        "The MLP sees one position, attention many",
        alone.measure_alone,
        alone.show_alone,
        quick_seeds=2,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "likeness",
        "How alike the MLPs of two blocks are",
        alike.measure_likeness,
        alike.show_likeness,
        quick_seeds=2,
        full_seeds=5,
        skip=alike.one_block,
    ),
    Experiment(
        "parting",
        "The same start, other ends",
        alike.measure_parting,
        alike.show_parting,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "shared",
        "One MLP for all blocks",
        shared.measure_shared,
        shared.show_shared,
        quick_seeds=2,
        full_seeds=5,
    ),
)
