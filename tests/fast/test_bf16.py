"""Weights in bfloat16 for sampling: products of rounded numbers, in both layouts, and texts."""

import pytest
import torch
from torch import nn

from tests.conftest import FAMILIES, tiny_model
from tformer.fast import bf16
from tformer.fast.bf16 import BF16Linear, packs, use_bf16
from tformer.fast.decode import can_decode
from tformer.kv_cache import KVCache
from tformer.sample import generate

LAYOUTS = [
    pytest.param(True, marks=pytest.mark.skipif(not packs(), reason="this processor's library packs none")),
    False,
]


@pytest.fixture(params=LAYOUTS, ids=["packed", "plain"])
def packed(request, monkeypatch) -> bool:
    monkeypatch.setattr(bf16, "packs", lambda: request.param)
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 33])
@torch.inference_mode()
def test_a_product_is_that_of_rounded_numbers(packed, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 80, bias=bias), torch.randn(2, rows, 48)
    found = BF16Linear(linear)(x)
    exact = x.bfloat16().double() @ linear.weight.bfloat16().double().T
    assert found.dtype == torch.float32 and found.shape == (2, rows, 80)
    if bias:
        found = found - linear.bias
    # What comes out has eight bits.
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@torch.inference_mode()
def test_a_model_has_its_logits_nearly_and_generates_the_same_with_a_cache_and_without(family, packed):
    model, other = tiny_model(**family).eval(), tiny_model(**family).eval()
    for one, its in zip(model.parameters(), other.parameters(), strict=True):
        one.data.normal_(std=0.3)
        its.data.copy_(one.data)
    use_bf16(model)
    assert not any(type(module) is nn.Linear for module in model.modules())
    ids = torch.randint(model.config.vocab_size, (2, model.config.n_ctx))
    found, expected = model(ids), other(ids)
    difference = (found - expected).norm() / expected.norm()
    assert 0 < difference < 0.03
    assert not can_decode(model, KVCache(model.config, 1, model.embed.weight))
    for rows in (1, 2):
        cached, anew = (
            torch.stack(list(generate(model, ids[:rows, :3], 2 * model.config.n_ctx, cached=cached)))
            for cached in (True, False)
        )
        # Rounding differs with the shape of a product: texts may part where two logits are near.
        assert (cached == anew).float().mean() > 0.5


def test_a_table_that_is_tied_stays_as_it_is():
    model = tiny_model(family="gpt2", tied=True)
    use_bf16(model)
    assert model.embed.weight.dtype == torch.float32
