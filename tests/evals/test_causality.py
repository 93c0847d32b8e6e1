"""The causality verdict: no false alarm on right models, and every planted leak is caught."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import FAMILIES, tiny_model
from tformer import model as room
from tformer import watch
from tformer.errors import RequestError, TformerError
from tformer.evals.causality import causality, largest_change, positions_to_change, ways_to_cut

NAMES = ["gpt2", "gpt2-sinusoidal", "nanochat", "nanochat-gqa"]
ATTENTION, MASK = room.attention, room.causal_mask


def hiding_by(value, scale=1.0):
    """Attention that writes `value` where -inf belongs, its scores `scale` times as large."""

    def attention(q, k, v, mask=None, dropout=0.0):
        scores = (q * (scale / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
        weights = scores.masked_fill(~mask, value).softmax(-1)
        return weights @ v, weights

    return attention


def adding(value):
    """Attention that adds `value` to the score of a hidden key."""

    def attention(q, k, v, mask=None, dropout=0.0):
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        weights = (scores + value * ~mask).softmax(-1)
        return weights @ v, weights

    return attention


# ---------------------------------------------------------------------------- no false alarm


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", FAMILIES, ids=NAMES)
def test_a_causal_model_passes_to_the_bit(changes, precision):
    result = causality(tiny_model(**changes), precision=precision)
    assert result.passed
    assert (result.max_leak, result.full_leak, result.max_gradient) == (0, 0, 0)
    assert result.cached.passed
    assert result.positions == list(range(1, 16)), "every position that has one before it"
    assert result.cached.difference < (1e-5 if precision == "fp32" else 0.05), "the cache only rounds"
    assert result.reached == 1, "each changed token shows in its own logits, so the check can fail"
    assert result.mask.kind == "exact"
    assert (result.mask.value, result.mask.safe_score, result.mask.blocks) == (None, None, [])


@pytest.mark.parametrize("n_ctx", [2, 3, 5, 33])
def test_a_causal_model_of_any_context_passes(n_ctx):
    result = causality(tiny_model(n_ctx=n_ctx, family="nanochat"))
    assert result.passed
    assert len(result.positions) == n_ctx - 1


def test_groups_of_rows_give_the_verdict_of_one_batch(monkeypatch):
    monkeypatch.setattr("tformer.evals.causality.ELEMENTS_AT_ONCE", 16 * (23 + 2 * 2 * 16) * 4)
    steps = []
    assert causality(tiny_model(), progress=lambda done, total: steps.append((done, total))).passed
    n = (1 + len(ways_to_cut(16)) + 1 + 1) * 4
    assert steps == [(i + 1, n) for i in range(n)], "4 groups of 4 rows for 15 positions, each counted"
    monkeypatch.setattr(room, "attention", hiding_by(0.0))
    assert not causality(tiny_model()).passed


def test_attention_is_left_as_it_was():
    model = tiny_model()
    causality(model)
    assert room.attention is ATTENTION and watch.is_plain(model)
    del model.blocks[1].attn.out
    with pytest.raises(AttributeError):
        causality(model)
    assert room.attention is ATTENTION and watch.is_plain(model), "also where the forward breaks off"


def test_a_model_with_dropout_passes_and_draws_nothing_from_outside():
    model = tiny_model(dropout=0.5).train()
    before = torch.get_rng_state()
    assert causality(model).passed
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        causality(tiny_model())
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------- planted leaks


def one_too_far(n_query, n_key, device=None):
    return torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query + 1)


def everything(n_query, n_key, device=None):
    return torch.ones(n_query, n_key, dtype=torch.bool)


@pytest.mark.parametrize("changes", FAMILIES, ids=NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mask_off_by_one_is_caught(monkeypatch, changes, precision):
    monkeypatch.setattr(room, "causal_mask", one_too_far)
    result = causality(tiny_model(**changes), precision=precision)
    assert not result.passed
    assert result.full_leak > 0
    assert result.max_gradient > 0
    assert not result.cached.passed
    assert result.mask.kind == "open"
    for t, row in zip(result.positions, result.matrix, strict=True):
        assert row[t - 1] > 0, f"the logits before position {t} show its token"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [0.0, -10.0])
@pytest.mark.parametrize("plant", [hiding_by, adding])
def test_a_mask_of_0_or_of_minus_10_is_caught(monkeypatch, plant, value, precision):
    monkeypatch.setattr(room, "attention", plant(value))
    result = causality(tiny_model(), precision=precision)
    assert not result.passed
    assert result.full_leak > 0
    assert result.max_gradient > 0
    assert not result.cached.passed
    assert result.mask.hidden_weight > 0
    assert result.mask.safe_score == 0
    assert result.mask.value == pytest.approx(value, abs=0.05)
    assert result.mask.kind == ("finite" if value else "open")


def test_a_leak_too_small_for_the_logits_is_caught_by_its_gradient(monkeypatch):
    monkeypatch.setattr(room, "attention", hiding_by(-50.0))
    result = causality(tiny_model())
    assert result.max_leak == 0
    assert 0 < result.max_gradient < 1e-20
    assert not result.passed


@pytest.mark.parametrize(
    ("plant", "safe"),
    [(hiding_by(-1e4), 1e4 - 104), (adding(-1e4), (1e4 - 104) / 2)],
    ids=["written", "added"],
)
def test_a_finite_mask_that_hides_passes_and_is_reported_with_its_safe_score(monkeypatch, plant, safe):
    monkeypatch.setattr(room, "attention", plant)
    result = causality(tiny_model())
    assert result.passed, "exp underflows to 0 at ordinary scores"
    assert result.mask.kind == "finite"
    assert result.mask.value == pytest.approx(-1e4, rel=1e-4)
    assert result.mask.safe_score == pytest.approx(safe, abs=1)
    assert result.mask.largest_score < result.mask.safe_score
    assert result.mask.blocks == [1, 2]


def test_a_mask_of_minus_1e4_with_scores_past_it_is_caught(monkeypatch):
    monkeypatch.setattr(room, "attention", hiding_by(-1e4))
    model = tiny_model(family="gpt2")
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:32] *= 400  # queries and keys
    result = causality(model)
    assert result.mask.largest_score > result.mask.safe_score
    assert result.full_leak > 0
    assert not result.cached.passed
    assert not result.passed
    monkeypatch.setattr(room, "attention", ATTENTION)
    assert causality(model).passed, "with -inf the same weights leak nothing"


@pytest.mark.parametrize("value", [-120.0, -1e9, -1e30])
def test_the_safe_score_is_where_the_mask_fails(monkeypatch, value):
    """Keys on one side of it leak, on the other they do not: against attention itself."""
    monkeypatch.setattr(room, "attention", hiding_by(value))
    safe = causality(tiny_model()).mask.safe_score
    for factor, leaks in ((0.99, False), (1.01, True)):
        q, k = torch.ones(1, 1, 2, 1), torch.full((1, 1, 2, 1), -safe * factor)
        _, weights = room.attention(q, k, k, MASK(2, 2))
        assert bool(weights[0, 0, 0, 1] > 0) is leaks


@pytest.mark.parametrize("where", ["norm_1", "norm_2", "norm_final"])
def test_a_norm_over_positions_is_caught(where):
    class NormOverPositions(nn.Module):
        def forward(self, x):
            return (x - x.mean(1, keepdim=True)) / (x.std(1, correction=0, keepdim=True) + 1e-5)

    model = tiny_model()
    setattr(model if where == "norm_final" else model.blocks[0], where, NormOverPositions())
    result = causality(model)
    assert not result.passed
    assert result.full_leak > 0
    assert result.max_gradient > 0
    assert result.mask.kind == "exact", "the mask is not to blame"


def no_mask_in_later_pieces(n_query, n_key, device=None):
    whole = n_query == n_key or n_query == 1
    return MASK(n_query, n_key, device) if whole else everything(n_query, n_key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("first_piece", [True, False])
def test_a_cached_prefill_without_mask_is_caught(monkeypatch, first_piece, precision):
    model = tiny_model(family="gpt2")
    if first_piece:
        forward = model.forward

        def unmasked_in_the_cache(ids, cache=None):
            room.causal_mask = MASK if cache is None else everything
            return forward(ids, cache)

        monkeypatch.setattr(room, "causal_mask", MASK)  # put back afterwards
        model.forward = unmasked_in_the_cache
    else:
        monkeypatch.setattr(room, "causal_mask", no_mask_in_later_pieces)
    result = causality(model, precision=precision)
    assert result.full_leak == 0
    assert result.max_gradient == 0
    assert result.cached.max_leak == result.max_leak > 0
    assert not result.cached.passed
    assert not result.passed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_leak_only_in_the_last_layer_is_caught_and_named(monkeypatch, precision):
    model = tiny_model(family="gpt2", n_layers=3)
    forward = model.blocks[2].attn.forward
    model.blocks[2].attn.forward = lambda x, mask, *rest: forward(x, torch.ones_like(mask), *rest)
    result = causality(model, precision=precision)
    assert not result.passed
    assert result.full_leak > 0
    assert result.max_gradient > 0
    assert (result.mask.kind, result.mask.blocks) == ("open", [3])


@pytest.mark.parametrize("position", [0, 7, 14])
def test_a_leak_only_at_one_position_is_caught_and_shown(monkeypatch, position):
    def one_hole(n_query, n_key, device=None):
        mask, row = MASK(n_query, n_key, device), position - (n_key - n_query)
        if 0 <= row < n_query and position + 1 < n_key:
            mask[row, position + 1] = True
        return mask

    monkeypatch.setattr(room, "causal_mask", one_hole)
    result = causality(tiny_model(family="gpt2"))
    assert not result.passed
    assert result.max_gradient > 0
    leaks = [
        (t, j) for t, row in zip(result.positions, result.matrix, strict=True) for j in range(16) if row[j]
    ]
    assert leaks == [(position + 1, position)]
    picture = dict(result.cells(16))
    assert [cells.count("leak") for t, cells in picture.items()] == [t == position + 1 for t in picture]
    assert picture[position + 1][position] == "leak"


def test_attention_that_gives_weight_without_effect_is_caught(monkeypatch):
    """At nanochat's initialisation the branches are silent: only the weights themselves show the leak."""
    monkeypatch.setattr(room, "causal_mask", one_too_far)
    model = tiny_model(family="nanochat")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.weight.zero_()
    result = causality(model)
    assert (result.max_leak, result.max_gradient) == (0, 0)
    assert result.mask.hidden_weight > 0
    assert not result.passed


class OtherWay(room.CausalSelfAttention):
    """Attention with a formula of its own in its own method."""

    hides = True

    def attend(self, q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, mask if self.hides else None)


class OtherWayOpen(OtherWay):
    hides = False


@pytest.mark.parametrize("kind", [OtherWay, OtherWayOpen])
def test_a_model_that_does_not_use_the_formula_is_judged_by_its_logits_and_its_mask_called_unseen(kind):
    result = causality(watch.put_attention(tiny_model(), kind))
    assert result.mask.kind == "unseen"
    assert result.passed is kind.hides
    assert (result.max_leak == 0) is (result.max_gradient == 0) is kind.hides


def test_a_mask_is_not_called_exact_where_one_block_was_not_seen():
    model = watch.put_attention(tiny_model(n_layers=3), OtherWay)
    model.blocks[1].attn = tiny_model(n_layers=3).blocks[1].attn
    assert causality(model).mask.kind == "unseen"


def test_another_formula_in_one_block_is_asked_and_named():
    with watch.with_formula(model := tiny_model(), hiding_by(-50.0), layers=[1]):
        result = causality(model)
    assert (result.mask.kind, result.mask.blocks) == ("finite", [2])
    assert result.mask.value == pytest.approx(-50, abs=0.05)


# ---------------------------------------------------------------------------- its parts


def test_positions_are_spread_evenly_with_both_ends():
    assert positions_to_change(65, 64) == list(range(1, 65))
    assert positions_to_change(64, 64) == list(range(1, 64))
    positions = positions_to_change(1024, 64)
    assert (len(positions), positions[0], positions[-1]) == (64, 1, 1023)
    assert {b - a for a, b in itertools.pairwise(positions)} <= {16, 17}
    assert positions_to_change(2, 64) == positions_to_change(1024, 1) == [1]


@pytest.mark.parametrize("n_ctx", [2, 3, 4, 16, 64, 65, 1024])
def test_every_way_through_the_cache_covers_the_context_once(n_ctx):
    cuts = ways_to_cut(n_ctx)
    assert all(sum(pieces) == n_ctx and min(pieces) > 0 for pieces in cuts)
    assert len(set(cuts)) == len(cuts)
    assert cuts[0] == (n_ctx,)
    assert all(pieces[-1] == 1 for pieces in cuts[1:]), "the end goes token by token"


def test_a_spread_of_positions_keeps_the_size_of_the_picture():
    result = causality(tiny_model(n_ctx=100), n_positions=10)
    assert len(result.positions) == len(result.matrix) == 10
    assert all(len(row) == 64 for row in result.matrix)
    cells = result.cells(8)
    assert len(cells) == 8
    assert all(len(row) == 8 for _, row in cells)
    assert cells[0][1] == ["unchanged"] + ["allowed"] * 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_difference_of_one_bit_is_a_difference(dtype):
    a = torch.tensor([1.0, 0.0, -2.0, 3.0], dtype=dtype).view(1, 4, 1)
    b = torch.tensor([1.0, -0.0, math.nan, 3.5], dtype=dtype).view(1, 4, 1)
    same, sign, nan, half = largest_change(a, b)[0].tolist()
    assert same == 0
    assert sign > 0
    assert nan > 1e38
    assert half == 0.5


def test_a_model_that_ignores_its_input_proves_nothing():
    assert causality(tiny_model(std=0.0)).reached == 0


@pytest.mark.parametrize(("changes", "named"), [({"n_ctx": 1}, "n_ctx"), ({"vocab_size": 1}, "vocab_size")])
def test_a_model_with_nothing_to_change_is_refused(changes, named):
    with pytest.raises(RequestError, match=named):
        causality(tiny_model(**changes))


def test_logits_that_are_not_finite_are_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.position[3] = math.nan
    with pytest.raises(TformerError, match="not finite"):
        causality(model)
