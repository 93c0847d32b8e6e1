"""The experiments of question 6, in the order in which they are told."""

from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.q6_heads import removed, repeats, several

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment("sum", "Heads add up", removed.measure_sum, removed.show_sum, quick_seeds=2, full_seeds=3),
    Experiment(
        "mirror",
        "The anti-diagonal head, and the model without it",
        removed.measure_mirror,
        removed.show_mirror,
        quick_seeds=3,
        full_seeds=5,
    ),
    Experiment(
        "repeats",
        "Previous-token and repeated-token heads",
        repeats.measure_repeats,
        repeats.show_repeats,
        quick_seeds=2,
        full_seeds=5,
        skip=repeats.too_short_to_repeat,
    ),
    Experiment(
        "several",
        "One head against several",
        several.measure_several,
        several.show_several,
        quick_seeds=2,
        full_seeds=5,
    ),
)
