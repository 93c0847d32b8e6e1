"""The experiments of question 4, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.claims import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q4_skips import skips, stream

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "trained",
        "Trained with skips and without",
        skips.measure_training,
        skips.show_training,
        quick_seeds=2,
        full_seeds=3,
    ),
    Experiment(
        "collapse",
        "Positions become alike",
        stream.measure_collapse,
        stream.show_collapse,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "gradients",
        "Gradients at the start",
        stream.measure_gradients,
        stream.show_gradients,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "lens",
        "The stream can be read at any depth",
        stream.measure_lens,
        stream.show_lens,
        quick_seeds=2,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
)
