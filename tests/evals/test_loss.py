"""Losses against arithmetic."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import tiny_model
from tformer.errors import RequestError
from tformer.evals.loss import loss_result, text_loss, token_losses


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


@pytest.mark.parametrize("stride", [1, 5, 15, 16])
def test_with_a_stride_each_token_is_scored_as_a_plain_loop_would(model, stride):
    """transformers' recipe for perplexity, but that its mean is over all tokens; at n_ctx as without one."""
    ids = np.random.default_rng(stride).integers(23, size=70)
    losses, previous = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + 16, len(ids))
        logits = model(torch.from_numpy(ids[None, begin : end - 1]))[0]
        nats = -logits.log_softmax(-1).gather(1, torch.from_numpy(ids[begin + 1 : end, None]))[:, 0]
        losses += nats[max(0, previous - begin - 1) :].tolist()
        previous = end
        if end == len(ids):
            break
    if stride == 16:
        losses = token_losses(model, ids).tolist()
    assert token_losses(model, ids, stride=stride) == pytest.approx(losses, abs=1e-4)
    sliding = loss_result(np.array(losses), ids, np.ones(23, dtype=int), 16, stride)
    assert sliding.loss == pytest.approx(np.mean(losses)) and sliding.bytes == len(losses) == 69
    last = len(sliding.by_position)
    assert last == (16 if stride == 16 else 15), "positions that have a token before them"
    if stride == 1:
        assert sliding.by_position[:14] == pytest.approx(losses[:14])
        assert sliding.by_position[14] == pytest.approx(np.mean(losses[14:]))


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
