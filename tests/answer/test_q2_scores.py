"""The score functions of question 2 are what they are called: against torch and arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tformer.answer.lab import build, tiny
from tformer.answer.q2_qkv import scores
from tformer.answer.q2_qkv.scores import SCORES, Additive, Bilinear, with_scores
from tformer.model import attention, causal_mask
from tformer.watch import attentions_of

CONFIG = tiny(n_heads=2, d_model=16)  # d_head 8


def drawn(n=6, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, CONFIG.n_heads, n, CONFIG.d_head)
    return (
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)),
        causal_mask(n, n),
    )


def weigh(name):
    torch.manual_seed(0)
    function = SCORES[name](CONFIG)
    return function.double() if isinstance(function, torch.nn.Module) else function


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), seed=st.integers(0, 1000), size=st.floats(0.01, 30))
def test_weights_are_an_average_of_what_the_mask_shows(name, n, seed, size):
    q, k, _, mask = drawn(n, seed)
    weights = weigh(name)(size * q, k, mask)
    assert weights.shape == (3, CONFIG.n_heads, n, n)
    assert (weights >= 0).all()
    assert (weights[..., ~mask] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())


@pytest.mark.parametrize("name", SCORES)
def test_weights_are_the_same_whatever_order_the_keys_come_in(name):
    q, k, _, mask = drawn()
    order, everything = torch.randperm(6, generator=torch.Generator().manual_seed(1)), torch.ones_like(mask)
    shuffled = weigh(name)(q, k[:, :, order], everything)
    assert torch.allclose(shuffled, weigh(name)(q, k, everything)[..., order])


def test_the_scaled_dot_is_attentions_and_torchs():
    q, k, v, mask = drawn()
    weights = scores.scaled_dot(q, k, mask)
    assert torch.allclose(weights, attention(q, k, v, mask)[1])
    assert torch.allclose(weights @ v, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_the_unscaled_dot_is_torchs_at_scale_1():
    q, k, v, mask = drawn()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    assert torch.allclose(scores.unscaled_dot(q, k, mask) @ v, expected)


def test_squared_distance_is_a_gaussian_kernel():
    q, k, _, mask = drawn()
    kernel = torch.exp(-torch.cdist(q, k).square() / (2 * math.sqrt(CONFIG.d_head))) * mask
    assert torch.allclose(scores.squared_distance(q, k, mask), kernel / kernel.sum(-1, keepdim=True))


def test_cosine_is_torchs_cosine_similarity():
    q, k, _, mask = drawn()
    cosines = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    expected = (math.sqrt(CONFIG.d_head) * cosines).masked_fill(~mask, -torch.inf).softmax(-1)
    assert torch.allclose(scores.cosine(q, k, mask), expected)


def test_additive_and_bilinear_are_their_formulas_pair_by_pair():
    q, k, _, mask = drawn(4, batch=1)
    additive, bilinear = weigh("additive"), weigh("bilinear")
    assert isinstance(additive, Additive) and isinstance(bilinear, Bilinear)
    expected = torch.full((2, 1, CONFIG.n_heads, 4, 4), -torch.inf).double()
    for h, i in ((h, i) for h in range(CONFIG.n_heads) for i in range(4)):
        for j in range(i + 1):
            hidden = torch.tanh(q[0, h, i] @ additive.w_1[h] + k[0, h, j] @ additive.w_2[h])
            expected[0, 0, h, i, j] = hidden @ additive.w[h, :, 0]
            expected[1, 0, h, i, j] = q[0, h, i] @ bilinear.w[h] @ k[0, h, j] / math.sqrt(CONFIG.d_head)
    assert torch.allclose(additive(q, k, mask), expected[0].softmax(-1))
    assert torch.allclose(bilinear(q, k, mask), expected[1].softmax(-1))


def test_the_linear_kernel_is_the_recurrence_step_by_step():
    q, k, v, mask = drawn(7)
    state, total = torch.zeros(3, CONFIG.n_heads, 8, 8).double(), torch.zeros(3, CONFIG.n_heads, 8).double()
    for t in range(7):
        phi_q, phi_k = (F.elu(x[:, :, t]) + 1 for x in (q, k))
        state, total = state + phi_k[..., :, None] * v[:, :, t, None, :], total + phi_k
        expected = (phi_q[..., None, :] @ state)[..., 0, :] / (phi_q * total).sum(-1, keepdim=True)
        assert torch.allclose((scores.linear_kernel(q, k, mask) @ v)[:, :, t], expected)
        assert torch.allclose(scores.linear_attention(q, k, v)[:, :, t], expected)


def test_the_hard_maximum_is_one_hot_and_its_gradient_the_softmaxs():
    q, k, _, mask = drawn()
    hard, soft = scores.hard_maximum(q, k, mask), scores.scaled_dot(q, k, mask)
    assert set(hard.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    q.requires_grad_()
    cotangent = torch.arange(36.0).view(6, 6).double()
    (found,) = torch.autograd.grad((scores.hard_maximum(q, k, mask) * cotangent).sum(), q)
    (expected,) = torch.autograd.grad((scores.scaled_dot(q, k, mask) * cotangent).sum(), q)
    assert found.abs().max() > 0 and torch.allclose(found, expected)


# ---------------------------------------------------------------------------- in the model


@pytest.mark.parametrize("name", SCORES)
def test_only_the_scores_are_replaced(name):
    config = tiny(vocab_size=9, n_ctx=7, d_model=16)
    plain, other = build(config, 3), build(config, 3, with_scores(name))
    for attn, replaced in zip(attentions_of(plain), attentions_of(other), strict=True):
        assert torch.equal(attn.qkv.weight, replaced.qkv.weight)
        torch.nn.init.normal_(attn.out.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.normal_(replaced.out.weight, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(7)[None] % 9
    same = torch.allclose(plain(ids), other(ids), atol=1e-5)
    assert same == (name == "scaled dot")
    loss = other(ids).square().sum()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for attn in attentions_of(other) for p in attn.parameters())


def test_no_score_sees_the_future_in_the_model():
    config = tiny(vocab_size=9, n_ctx=7, d_model=16)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 0, 0, 0]])
    for name in SCORES:
        model = build(config, 3, with_scores(name))
        for attn in attentions_of(model):
            torch.nn.init.normal_(attn.out.weight)
        logits = model(ids)
        assert torch.allclose(logits[0, :4], logits[1, :4], atol=1e-5), name
        assert not torch.allclose(logits[0, 4:], logits[1, 4:], atol=1e-5), name
