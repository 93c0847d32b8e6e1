"""The model against its formulas and against torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_config, tiny_model
from tformer.kv_cache import KVCache
from tformer.model import (
    Block,
    Transformer,
    attention,
    causal_mask,
    padded_mask,
    rms_norm,
    rotary_angles,
    rotate,
    sinusoidal_positions,
)


@pytest.mark.parametrize("d_model", [1, 2, 7, 64])
def test_sinusoidal_positions_are_the_papers(d_model):
    table = sinusoidal_positions(50, d_model)
    for t in (0, 1, 7, 49):
        for column in range(d_model):
            angle = t / 10000 ** (2 * (column // 2) / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[t, column] == pytest.approx(expected, abs=1e-6)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    positions = torch.arange(40)
    cos, sin = (t[None, None].double() for t in rotary_angles(positions, 8, 10000.0))
    qs, ks = (rotate(x.expand(1, 1, 40, 8), cos, sin) for x in (q, k))
    scores = (qs @ ks.mT)[0, 0]
    for distance in (0, 1, 5, 20):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[0, 5], scores[5, 0])  # the direction matters


def test_rotation_keeps_lengths_and_leaves_position_zero_alone():
    x = torch.randn(1, 2, 5, 8)
    cos, sin = (t[None, None] for t in rotary_angles(torch.arange(5), 8, 10000.0))
    turned = rotate(x, cos, sin)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_causal_mask_lets_a_query_see_itself_and_its_past():
    mask = causal_mask(4, 4)
    assert mask.tolist() == [[j <= i for j in range(4)] for i in range(4)]


def test_causal_mask_of_cached_queries_is_the_end_of_the_whole_mask():
    assert torch.equal(causal_mask(3, 7), causal_mask(7, 7)[4:])


@settings(max_examples=60, deadline=None)
@given(padding=st.lists(st.integers(0, 6), min_size=1, max_size=4), n_query=st.integers(1, 7))
def test_a_padded_mask_hides_the_padding_and_nothing_else(padding, n_query):
    mask = padded_mask(causal_mask(n_query, 7)[None, None], torch.tensor(padding))
    assert mask.shape == (len(padding), 1, n_query, 7)
    for row, pads in enumerate(padding):
        for i in range(n_query):
            query = 7 - n_query + i
            seen = {key for key in range(7) if mask[row, 0, i, key]}
            expected = {query} if query < pads else set(range(pads, query + 1))
            assert seen == expected, "no softmax over nothing: padding sees itself, and only itself"


def test_no_padding_leaves_the_causal_mask():
    mask = causal_mask(3, 5)[None, None]
    assert torch.equal(padded_mask(mask, torch.tensor([0, 0])), mask.expand(2, 1, 3, 5))


def test_a_padded_mask_keeps_what_its_mask_hides_or_shows():
    """It takes keys away: it does not know of causality, and so cannot repair or break it."""
    window = causal_mask(5, 5).triu(-1)[None, None]
    assert torch.equal(padded_mask(window, torch.tensor([1]))[0, 0, 1:, 1:], window[0, 0, 1:, 1:])
    everything = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert padded_mask(everything, torch.tensor([2]))[0, 0, 2:].tolist() == [[False] * 2 + [True] * 3] * 3


@settings(max_examples=60, deadline=None)
@given(
    n_query=st.integers(1, 9),
    n_key=st.integers(1, 9),
    d_head=st.integers(1, 16),
    d_value=st.integers(1, 8),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    kind=st.sampled_from(["none", "causal", "random"]),
    seed=st.integers(0, 2**31),
)
def test_attention_equals_torchs(n_query, n_key, d_head, d_value, dtype, kind, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(2, 3, n_query, d_head), draw(2, 3, n_key, d_head), draw(2, 3, n_key, d_value)
    mask = None
    if kind == "causal" and n_key >= n_query:
        mask = causal_mask(n_query, n_key)
    elif kind == "random":
        mask = torch.rand(2, 3, n_query, n_key, generator=generator) < 0.5
        mask[..., 0] = True
    output, weights = attention(q, k, v, mask)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    assert torch.allclose(output, expected, atol=tolerance, rtol=tolerance)
    assert torch.allclose(weights.sum(-1).double(), torch.ones(2, 3, n_query).double(), atol=tolerance)
    if mask is not None:
        assert (weights.masked_select(~mask) == 0).all(), "a hidden key has weight exactly 0"


def test_a_hidden_key_has_weight_zero_at_any_score():
    q, k, v = torch.full((3, 1, 2, 4), 1e4)
    _, weights = attention(q, k, v, causal_mask(2, 2))
    assert weights[0, 0].tolist() == [1.0, 0.0]


def test_rms_norm_equals_torchs():
    x = torch.randn(3, 5, 16) * 7
    assert torch.allclose(rms_norm(x, 1e-6), F.rms_norm(x, (16,), eps=1e-6), atol=1e-6)


def test_a_block_is_two_residual_additions_and_nothing_else(model):
    block: Block = model.blocks[0]
    x, mask, rotation = torch.randn(2, 5, 16), causal_mask(5, 5)[None, None], None
    if model.config.positions == "rotary":
        rotation = tuple(
            t[None, None]
            for t in rotary_angles(torch.arange(5), model.config.d_head, model.config.rope_theta)
        )
    after_attention = x + block.attn(block.norm_1(x), mask, rotation)
    expected = after_attention + block.mlp(block.norm_2(after_attention))
    assert torch.allclose(block(x, mask, rotation), expected, atol=1e-6)


def test_later_tokens_do_not_change_earlier_logits_by_a_bit(model):
    ids = torch.randint(23, (2, 16))
    clean = model(ids)
    for t in range(1, 16):
        changed = ids.clone()
        changed[:, t:] = torch.randint(23, (2, 16 - t))
        assert torch.equal(model(changed)[:, :t], clean[:, :t]), f"position {t} leaks into the past"


def test_logits_depend_on_the_whole_past(model):
    embedded = []
    model.embed.register_forward_hook(lambda module, args, output: embedded.append(output))
    logits = model(torch.randint(23, (1, 8)))
    (gradient,) = torch.autograd.grad(logits[0, -1].square().sum(), embedded[0])
    assert (gradient.abs().sum(-1) > 0).all()


def test_attention_without_positions_or_mask_knows_no_order():
    model = tiny_model(family="gpt2", positions="none", n_layers=1)
    block, x, order = model.blocks[0], torch.randn(1, 6, 16), torch.randperm(6)
    everything = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    assert torch.allclose(block(x, everything)[:, order], block(x[:, order], everything), atol=1e-5)


@pytest.mark.parametrize("chunks", [[16], [1] * 16, [5, 1, 7, 3], [15, 1]])
def test_cached_logits_equal_uncached(model, chunks):
    ids = torch.randint(23, (3, 16))
    cache = KVCache(model.config, 3, model.embed.weight)
    pieces = [model(part, cache) for part in ids.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(pieces, 1), model(ids), atol=2e-5, rtol=1e-4)
    assert cache.length == 16


def test_a_layer_of_the_cache_appends_in_place_and_leaves_the_others_alone():
    cache = KVCache(tiny_config(n_layers=3), 2, torch.zeros(1))
    new = [torch.randn(2, 2, n, 8) for n in (5, 1)]
    keys, values = cache.layer(1).extend(new[0], -new[0])
    assert torch.equal(keys, new[0]) and torch.equal(values, -new[0])
    cache.length = 5
    keys, values = cache.layer(1).extend(new[1], -new[1])
    assert torch.equal(keys, torch.cat(new, dim=2)) and torch.equal(values, -keys)
    assert torch.equal(cache.keys[1, :, :, :6], keys), "it is the cache's own memory"
    assert cache.keys[[0, 2]].eq(0).all() and cache.values[[0, 2]].eq(0).all()


def test_padded_prompts_of_different_lengths_have_their_own_logits(model):
    prompts = [torch.randint(23, (n,)) for n in (3, 7, 5)]
    padding = torch.tensor([7 - len(p) for p in prompts])
    batch = torch.stack([F.pad(p, (7 - len(p), 0)) for p in prompts])
    cache = KVCache(model.config, 3, model.embed.weight, padding)
    logits = torch.cat([model(part, cache) for part in batch.split([4, 2, 1], dim=1)], 1)
    for row, prompt in enumerate(prompts):
        assert torch.allclose(logits[row, -len(prompt) :], model(prompt[None])[0], atol=2e-5, rtol=1e-4)


def test_dropout_acts_in_training_alone():
    model = tiny_model(family="gpt2", dropout=0.5)
    ids = torch.randint(23, (2, 8))
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_every_block_starts_as_the_identity_with_products_of_variance_one(family):
    model = Transformer(tiny_config(family=family, d_model=128, n_layers=3, vocab_size=500))
    block, x = model.blocks[1], torch.randn(2, 8, 128)
    assert block.attn.qkv(x).std().item() == pytest.approx(1, rel=0.05)
    assert block.mlp.up(x).std().item() == pytest.approx(1, rel=0.05)
    rotation = None
    if family == "nanochat":
        rotation = tuple(t[None, None] for t in rotary_angles(torch.arange(8), 64, 10000.0))
    assert torch.equal(block(x, causal_mask(8, 8)[None, None], rotation), x)
    assert model.embed.weight.std().item() == pytest.approx(0.02 if family == "gpt2" else 1, rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_the_loss_at_initialisation_is_that_of_a_guess(family):
    config = tiny_config(family=family, d_model=128, vocab_size=400, n_ctx=64)
    torch.manual_seed(0)
    model = Transformer(config).eval()
    ids = torch.randint(400, (8, 64))
    logits = model(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(400, (8 * 64,)))
    assert loss.item() == pytest.approx(math.log(400) + logits.var(-1).mean().item() / 2, rel=0.01)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_positions_are_a_table_or_nothing_and_saved_only_where_they_are_learned(positions):
    model = tiny_model(positions=positions)
    if positions == "none":
        assert model.position is None
    else:
        assert model.position.shape == (16, 16)
    assert ("position" in model.state_dict()) is (positions == "learned")
    assert tiny_model(family="nanochat").position is None, "rotary positions stand in attention"


def test_parameters_are_counted_once():
    tied, untied = tiny_model(family="gpt2"), tiny_model(family="gpt2", tied=False)
    d, v, t, layers = 16, 23, 16, 2
    block = 12 * d * d + (3 + 1 + 4 + 1) * d + 4 * d  # matrices, their biases, two LayerNorms
    assert tied.n_parameters == v * d + t * d + layers * block + 2 * d
    assert untied.n_parameters == tied.n_parameters + v * d
