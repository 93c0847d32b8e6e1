"""Shapes are checked in the tests: of a training, its first steps and all that is beside them."""

import jaxtyping
import numpy as np
import pytest
import torch

from tests import CHECKED_STEPS, annotated_modules
from tests.conftest import tiny_model
from tformer.config import TrainConfig
from tformer.loss import cross_entropy
from tformer.training.fit import Learner, State, fit
from tformer.training.optim import Optimizers

STEPS = CHECKED_STEPS + 2
LOGITS, TOO_FEW = torch.zeros(2, 5, 23), torch.zeros(2, 4, dtype=torch.int64)


def unchecked() -> bool:
    return jaxtyping.config.jaxtyping_disable


class Batches:
    """Tells whether shapes are checked at each step; that of a number is not as it should be."""

    n_ctx = 5

    def __init__(self, wrong: int = STEPS):
        self.wrong, self.unchecked = wrong, []

    def batch(self, step, batch_size):
        self.unchecked.append(unchecked())
        ids = np.ones((batch_size, self.n_ctx), dtype=np.int64)
        return ids, ids.astype(np.float32) if step == self.wrong else ids


def training(batches, forward=None, validate=None):
    model = tiny_model()
    train = TrainConfig(steps=STEPS, batch_size=2, eval_every=STEPS)
    return fit(Learner(model, Optimizers(model, train), forward), batches, train, State(), validate)


def test_the_modules_that_annotate_shapes_are_checked():
    assert {"tformer.model", "tformer.loss", "tformer.sample"} <= {*annotated_modules()}
    with pytest.raises(jaxtyping.TypeCheckError):
        cross_entropy(LOGITS, TOO_FEW)


@pytest.mark.parametrize("step", range(CHECKED_STEPS))
def test_a_first_step_of_a_training_is_checked(step):
    with pytest.raises(jaxtyping.TypeCheckError):
        list(training(Batches(wrong=step)))
    assert not unchecked()


def test_steps_that_repeat_their_shapes_are_not_but_what_is_between_them():
    batches = Batches()
    assert not any(unchecked() for _ in training(batches))
    assert batches.unchecked == [False] * CHECKED_STEPS + [True] * (STEPS - CHECKED_STEPS)


def test_an_evaluation_is_checked_whenever_it_is():
    with pytest.raises(jaxtyping.TypeCheckError):
        list(training(Batches(), validate=lambda: (cross_entropy(LOGITS, TOO_FEW).item(), 1.0)))
    assert not unchecked()


def test_what_stands_in_for_the_model_is_checked_at_every_step():
    batches, model = Batches(), tiny_model()
    list(training(batches, forward=lambda ids: model(ids)))
    assert not any(batches.unchecked)


def test_where_nothing_is_checked_nothing_is(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    seen = []
    list(training(Batches(), validate=lambda: (float(seen.append(unchecked()) or 1), 1.0)))
    assert seen == [True] and unchecked()
