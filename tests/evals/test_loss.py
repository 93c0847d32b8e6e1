"""Losses against arithmetic."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import tiny_model
from tformer.errors import RequestError
from tformer.evals.loss import text_loss, token_losses


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
