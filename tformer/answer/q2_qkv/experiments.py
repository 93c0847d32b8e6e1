"""The experiments of question 2, in the order in which they are told."""

from functools import partial
from typing import Any

from tformer.answer.experiment import Experiment
from tformer.answer.lab import too_short
from tformer.answer.q2_qkv import alternatives, cost, scale, shapes

EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "shapes",
        "Shapes, traced through a forward pass",
        shapes.measure_shapes,
        shapes.show_shapes,
        quick_seeds=2,
        full_seeds=3,
        skip=partial(too_short, positions=2),
    ),
    Experiment("scale", "Why √d_k", scale.measure_scale, scale.show_scale, quick_seeds=3, full_seeds=10),
    Experiment(
        "kin",
        "Other functions of Q and K: how they are kin",
        alternatives.measure_kin,
        alternatives.show_kin,
        quick_seeds=2,
        full_seeds=5,
    ),
    Experiment(
        "trained",
        "Eight of them, head to head",
        alternatives.measure_trained_scores,
        alternatives.show_trained_scores,
        quick_seeds=3,
        full_seeds=5,
    ),
    Experiment(
        "cost",
        "What they cost as n grows",
        cost.measure_cost,
        cost.show_cost,
        quick_seeds=2,
        full_seeds=3,
    ),
)
