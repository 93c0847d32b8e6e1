"""Losses against arithmetic; the reversal verdict against models that cheat."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from tformer import model
from tformer.config import TrainConfig
from tformer.errors import RequestError
from tformer.evals.loss import text_loss, token_losses
from tformer.evals.reversal import reversal
from tformer.evals.statistics import binomial_interval
from tformer.model import Transformer
from tformer.text.data import Reversal
from tformer.training.fit import State, fit
from tformer.training.optim import Optimizers

# ---------------------------------------------------------------------------- loss


@pytest.mark.parametrize("n", [2, 5, 16, 17, 18, 33, 100])
def test_every_token_but_the_first_is_scored_once_given_its_window(model, n):
    ids = np.random.default_rng(n).integers(23, size=n)
    losses = token_losses(model, ids)
    assert losses.shape == (n - 1,)
    for start in range(0, n - 1, 16):
        window = torch.from_numpy(ids[start : start + 17])
        logits = model(window[None, :-1])[0]
        expected = -logits.log_softmax(-1).gather(1, window[1:, None])[:, 0]
        assert losses[start : start + 16] == pytest.approx(expected.detach().numpy(), abs=1e-4)


def test_bits_per_byte_divide_by_the_bytes_of_the_targets():
    uniform = tiny_model(std=0.0)
    ids, n_bytes = np.array([0, 1, 2, 3]), np.arange(23) + 1
    result = text_loss(uniform, ids, n_bytes)
    assert result.loss == pytest.approx(math.log(23))
    assert result.perplexity == pytest.approx(23)
    assert (result.tokens, result.bytes) == (3, 2 + 3 + 4)
    assert result.bits_per_byte == pytest.approx(3 * math.log2(23) / 9)
    assert result.by_position == pytest.approx([math.log(23)] * 3)


def test_a_text_of_one_token_has_no_loss():
    with pytest.raises(RequestError, match="at least 2"):
        text_loss(tiny_model(), np.array([1]), np.ones(23))


# ---------------------------------------------------------------------------- the binomial interval


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (10, 0.1), (200, 0.04), (18_000, 1 / 26)])
def test_the_binomial_interval_is_exact(n, p):
    low, high = binomial_interval(n, p, 0.999)
    pmf = [
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(p)
            + (n - k) * math.log1p(-p)
        )
        for k in range(n + 1)
    ]
    k_low, k_high = round(low * n), round(high * n)
    assert sum(pmf[:k_low]) <= 0.0005 < sum(pmf[: k_low + 1])
    assert sum(pmf[k_high + 1 :]) <= 0.0005 + 1e-12
    assert sum(pmf[k_high:]) > 0.0005


# ---------------------------------------------------------------------------- reversal

TASK = Reversal(length=4, symbols=8, seed=0)


def train_on(task, steps=150, seed=0):
    """A small model trained on what `task` gives as batches."""
    torch.manual_seed(seed)
    config = tiny_config(vocab_size=8, n_ctx=7, d_model=32, n_layers=2, n_heads=2)
    settings = TrainConfig(
        steps=steps, batch_size=128, lr=1e-2, lr_final=0.0, warmup_steps=10, weight_decay=0.0
    )
    trained = Transformer(config)
    for _ in fit(trained, Optimizers(trained, settings), task, settings, State()):
        pass
    return trained


def test_a_trained_model_passes_and_an_untrained_one_does_not():
    assert reversal(train_on(TASK), TASK).passed
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
