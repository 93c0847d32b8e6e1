"""Decoding by numpy is the model with a cache: logits, keys and values, texts. Else the model decodes."""

import pytest
import torch

from tests.conftest import tiny_config
from tformer import sample, watch
from tformer.fast.decode import Decoder, can_decode
from tformer.kv_cache import KVCache
from tformer.model import CausalSelfAttention, Transformer, attention
from tformer.sample import Sampler, Sampling, generate

MODELS = [
    {"family": "gpt2"},
    {"family": "gpt2", "bias": False, "activation": "gelu", "positions": "none", "tied": False},
    {"family": "gpt2", "activation": "relu", "positions": "sinusoidal"},
    {"family": "gpt2", "activation": "relu2"},
    {"family": "nanochat"},
    {"family": "nanochat", "n_kv_heads": 1, "activation": "gelu_new", "logit_softcap": 0.0},
]
N_CTX = 24


def a_model(settings):
    torch.manual_seed(0)
    model = Transformer(tiny_config(**{"n_ctx": N_CTX, "n_heads": 2} | settings)).eval()
    for parameter in model.parameters():  # projections start at zero: nothing would be seen through them
        parameter.data.normal_(std=0.3)
    return model


def caches(model, rows=1, padding=None):
    return [KVCache(model.config, rows, model.embed.weight, padding) for _ in range(2)]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
@torch.inference_mode()
def test_a_token_after_those_in_a_cache_has_the_models_logits(settings):
    model = a_model(settings)
    ids = torch.randint(model.config.vocab_size, (1, N_CTX))
    whole, (own, its) = model(ids), caches(model)
    for cache in (own, its):
        model(ids[:, :5], cache)
    assert can_decode(model, own)
    decoder = Decoder(model, own)
    for i in range(5, N_CTX):
        found, expected = decoder(ids[:, i : i + 1], own), model(ids[:, i : i + 1], its)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert torch.allclose(found, expected, atol=2e-5) and torch.allclose(found[0], whole[:, i], atol=2e-5)
    assert own.length == its.length == N_CTX
    assert torch.allclose(own.keys, its.keys, atol=1e-5) and torch.allclose(own.values, its.values, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_text_is_the_same_past_the_end_of_the_context_too(settings, temperature, monkeypatch):
    model = a_model(settings)
    start = torch.randint(model.config.vocab_size, (1, 3))

    def text():
        choose = Sampler(Sampling(temperature=temperature), 7, 1)
        return [int(column) for column in generate(model, start, 3 * N_CTX, choose)]

    steps = []
    monkeypatch.setattr(Decoder, "__call__", _counted(Decoder.__call__, steps))
    fast = text()
    assert len(steps) > 2 * N_CTX
    monkeypatch.setattr(sample, "can_decode", lambda *given: False)
    assert text() == fast and (temperature == 0 or len(set(fast)) > 1)


def test_it_takes_one_thread_of_pytorch_and_gives_the_others_back(monkeypatch):
    model = a_model({"family": "gpt2", "activation": "gelu"})
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(Decoder, "_activate", lambda self, u: seen.append(torch.get_num_threads()) or u)
    torch.set_num_threads(2)
    try:
        list(generate(model, torch.zeros((1, 1), dtype=torch.int64), 3))
        assert seen == [1] * 2 * model.config.n_layers and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def _counted(step, steps):
    def counted(self, ids, cache):
        steps.append(1)
        return step(self, ids, cache)

    return counted


class Halved(CausalSelfAttention):
    """Attention that gives half as much."""

    def forward(self, *given: object) -> torch.Tensor:
        return super().forward(*given) / 2


def test_what_is_looked_into_or_has_more_rows_or_other_numbers_is_left_to_the_model():
    model = a_model({})
    one, _ = caches(model)
    assert can_decode(model, one)
    assert not can_decode(model, caches(model, rows=2)[0])
    assert not can_decode(model, caches(model, padding=torch.tensor([1]))[0])
    model.blocks[1].attn.formula = attention
    assert not can_decode(model, one)
    model.blocks[1].attn.formula = None
    hook = model.blocks[0].mlp.register_forward_hook(lambda *seen: None)
    assert not can_decode(model, one)
    hook.remove()
    assert can_decode(model, one)
    model.blocks[0].forward = model.blocks[0].forward
    assert not can_decode(model, one)
    del model.blocks[0].forward
    watch.put_attention(model, Halved)
    assert not can_decode(model, one), "a class of somebody's"
    assert not can_decode(model.double(), one) and not can_decode(model.bfloat16(), one)
