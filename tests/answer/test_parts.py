"""The parts that experiments exchange compute what they say, and keep the weights that were there."""

import pytest
import torch
import torch.nn.functional as F

from tests.answer.subjects import random_model
from tformer.answer import parts
from tformer.answer.parts import BOTH, SKIP_VARIANTS
from tformer.model import causal_mask
from tformer.watch import put_blocks

# ---------------------------------------------------------------------------- masks


def qkv(n_query, n_key, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator) for n in (n_query, n_key, n_key))
    return q, k, v, causal_mask(n_query, n_key)[None, None]


@pytest.mark.parametrize("n_query", [5, 2])
@pytest.mark.parametrize(
    ("formula", "ahead"),
    [(parts.unmasked, 99), (parts.reaching(1), 1), (parts.reaching(0), 0), (parts.reaching(-1), -1)],
    ids=["unmasked", "one too far", "right", "one too short"],
)
def test_wrong_masks_are_those_of_torch_with_another_diagonal(formula, ahead, n_query):
    q, k, v, causal = qkv(n_query, 5)
    at = torch.arange(5 - n_query, 5)[:, None]
    seen = torch.arange(5)[None] <= at + ahead
    output = formula(q, k, v, causal)[0]
    expected = F.scaled_dot_product_attention(q, k, v, seen)
    rows = seen.any(-1)
    torch.testing.assert_close(output[:, :, rows], expected[:, :, rows])
    assert output[:, :, ~rows].isnan().all(), "a query without a key"


def test_weights_zeroed_after_the_softmax_sum_to_less_than_one():
    q, k, _, causal = qkv(5, 5)
    sums, weights = parts.zeroed_after(q, k, torch.ones(2, 3, 5, 4), causal)
    exact = F.scaled_dot_product_attention(q, k, torch.ones(2, 3, 5, 4))
    assert (sums[:, :, :-1] < 1).all()
    torch.testing.assert_close(sums[:, :, -1], exact[:, :, -1])
    torch.testing.assert_close(sums[..., 0], weights.sum(-1))


@pytest.mark.parametrize("value", [-1.0, -10.0, -1e4])
def test_a_finite_mask_is_torchs_with_that_bias(value):
    q, k, v, causal = qkv(5, 5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=value * ~causal)
    torch.testing.assert_close(parts.adding(value)(q, k, v, causal)[0], expected)


# ---------------------------------------------------------------------------- blocks


def small_model(**changes):
    return random_model(**({"vocab_size": 8, "n_ctx": 6, "n_heads": 2} | changes))


@pytest.mark.parametrize("name", SKIP_VARIANTS)
def test_a_variant_adds_only_where_it_has_a_skip(name):
    block = put_blocks(small_model(), SKIP_VARIANTS[name]).blocks[0]
    x, mask = torch.randn(2, 6, 32), causal_mask(6, 6)[None, None]
    after = block.attn(block.norm_1(x), mask) + (x if name in (BOTH, "none at the MLP") else 0)
    expected = block.mlp(block.norm_2(after)) + (after if name in (BOTH, "none at attention") else 0)
    torch.testing.assert_close(block(x, mask), expected)


def test_variants_have_the_weights_of_the_model():
    one, two = small_model(), put_blocks(small_model(), parts.NoSkips)
    assert all(isinstance(block, parts.NoSkips) for block in two.blocks)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------- starts and copies


def test_the_copying_start_copies():
    model = parts.start_copying(small_model())
    x = torch.randn(2, 6, 32)
    for block in model.blocks:
        torch.testing.assert_close(block.mlp(x), x, msg="gelu(x) - gelu(-x) = x")
        copied = block.attn(block.norm_1(x), causal_mask(6, 6)[None, None])
        assert torch.nn.functional.cosine_similarity(copied, block.norm_1(x), dim=-1).min() > 0.9


def test_a_copy_computes_what_the_model_does(model):
    ids = torch.randint(23, (2, 9))
    assert torch.equal(parts.copy_of(model)(ids), model(ids))
