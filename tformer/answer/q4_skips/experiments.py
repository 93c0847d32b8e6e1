"""The experiments of question 4, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q4_skips import alike, gradients, lens, trained

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "trained",
        "Trained with skips and without",
        trained.measure_training,
        trained.show_training,
        quick_seeds=2,
        full_seeds=3,
    ),
    Experiment(
        "collapse",
        "Positions become alike",
        alike.measure_collapse,
        alike.show_collapse,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "gradients",
        "Gradients at the start",
        gradients.measure_gradients,
        gradients.show_gradients,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "lens",
        "The stream can be read at any depth",
        lens.measure_lens,
        lens.show_lens,
        quick_seeds=2,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
)
