"""The verdict on the mask, of models that learn to reverse and of models that cheat."""

from functools import cache

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from tformer import model
from tformer.config import TrainConfig
from tformer.errors import RequestError
from tformer.evals.reversal import reversal
from tformer.model import Transformer
from tformer.text.data import Reversal
from tformer.training.fit import Learner, State, fit
from tformer.training.optim import Optimizers

TASK = Reversal(length=4, symbols=8, seed=0)


def train_on(task, steps=150, seed=0):
    """A small model trained on what `task` gives as batches."""
    torch.manual_seed(seed)
    config = tiny_config(vocab_size=8, n_ctx=7, d_model=32, n_layers=2, n_heads=2)
    settings = TrainConfig(
        steps=steps, batch_size=128, lr=1e-2, lr_final=0.0, warmup_steps=10, weight_decay=0.0
    )
    trained = Transformer(config)
    for _ in fit(Learner(trained, Optimizers(trained, settings)), task, settings, State()):
        pass
    return trained


@cache
def trained() -> Transformer:
    """One that learned TASK, for all that only look at it."""
    return train_on(TASK)


def test_a_trained_model_passes_and_an_untrained_one_does_not():
    assert reversal(trained(), TASK).passed
    untrained = reversal(tiny_model(vocab_size=8, n_ctx=7), TASK)
    assert not untrained.passed
    assert untrained.second_half < 0.5


def everything(n_query, n_key, device=None):
    """No mask."""
    return torch.ones(n_query, n_key, dtype=torch.bool)


def one_too_far(n_query, n_key, device=None):
    """A mask that lets each query see the token that it has to predict."""
    return torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query + 1)


@pytest.mark.parametrize("wrong", [everything, one_too_far])
def test_the_verdict_fails_where_the_mask_is_wrong(monkeypatch, wrong):
    monkeypatch.setattr(model, "causal_mask", wrong)
    result = reversal(train_on(TASK), TASK)
    assert result.second_half > 0.999, "the model has learned"
    assert result.first_half > result.interval[1], "and it sees its targets"
    assert not result.passed


def test_the_verdict_fails_where_targets_are_the_inputs():
    class Unshifted(Reversal):
        def batch(self, step, batch_size):
            inputs, _ = super().batch(step, batch_size)
            return inputs, inputs

        def fresh(self, n, index=0):
            inputs, _ = super().fresh(n, index)
            return inputs, inputs

    task = Unshifted(TASK.length, TASK.symbols)
    result = reversal(train_on(task), task)
    assert result.first_half == 1.0
    assert not result.passed


def test_a_table_of_positions_counts_each_half():
    result = reversal(tiny_model(vocab_size=8, n_ctx=7), TASK, n=100)
    assert [row.half for row in result.positions] == ["first"] * 3 + ["second"] * 4
    assert [row.position for row in result.positions] == list(range(1, 8))
    first = [row.accuracy for row in result.positions[:3]]
    assert result.first_half == pytest.approx(sum(first) / 3)


def test_a_model_that_sees_too_little_is_refused():
    with pytest.raises(RequestError, match="need 7"):
        reversal(tiny_model(vocab_size=8, n_ctx=6), TASK)
