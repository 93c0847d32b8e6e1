"""The experiments of question 5, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q5_mask import finite, leaks, prefixes, triangle

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "jacobian",
        "The Jacobian is a triangle",
        triangle.measure_jacobian,
        triangle.show_jacobian,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "prefixes",
        "One forward, many examples",
        prefixes.measure_prefixes,
        prefixes.show_prefixes,
        quick_seeds=3,
        full_seeds=5,
        skip=partial(too_short, positions=3),
    ),
    Experiment(
        "leaks",
        "Wrong masks on the reversal task",
        leaks.measure_leaks,
        leaks.show_leaks,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "finite",
        "A finite mask can be outbid",
        finite.measure_finite,
        finite.show_finite,
        quick_seeds=2,
        full_seeds=5,
    ),
)
