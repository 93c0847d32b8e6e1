"""The experiments of question 6, in the order in which they are told."""

from typing import Any

from tformer.answer.claims import Experiment
from tformer.answer.q6_heads import heads, repeats

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment("sum", "Heads add up", heads.measure_sum, heads.show_sum, quick_seeds=2, full_seeds=3),
    Experiment(
        "mirror",
        "The anti-diagonal head, and the model without it",
        heads.measure_mirror,
        heads.show_mirror,
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
        skip=repeats.too_short,
    ),
    Experiment(
        "several",
        "One head against several",
        heads.measure_several,
        heads.show_several,
        quick_seeds=2,
        full_seeds=5,
    ),
)
