"""Leaks in one place alone (a head, a mode, a padded prompt, another row, a seam): each is caught."""

import pytest

from tests.conftest import tiny_model
from tests.evals.test_causality import ATTENTION, MASK, everything
from tformer import model as room
from tformer.evals.causality import causality


def test_a_leak_in_one_head_alone_is_caught_and_its_mask_not_called_exact(monkeypatch):
    def attention(q, k, v, mask=None, dropout=0.0):
        mask = mask.expand(*q.shape[:2], -1, -1).clone()
        mask[:, 1:2] = True  # not head 0, and not where there is one head alone
        return ATTENTION(q, k, v, mask)

    monkeypatch.setattr(room, "attention", attention)
    result = causality(tiny_model())
    assert not result.passed
    assert result.full_leak > 0
    assert (result.mask.kind, result.mask.safe_score, result.mask.blocks) == ("open", 0, [1, 2])


def unmasked_where(condition):
    """A causal mask, except in calls of a forward for which `condition(model, cache)` holds."""

    def spoil(model, monkeypatch):
        forward = model.forward

        def spoiled(ids, cache=None):
            room.causal_mask = everything if condition(model, cache) else MASK
            return forward(ids, cache)

        monkeypatch.setattr(room, "causal_mask", MASK)  # put back afterwards
        model.forward = spoiled
        return model

    return spoil


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_leak_in_training_mode_alone_is_caught_by_its_gradient(monkeypatch, dropout):
    spoil = unmasked_where(lambda model, cache: model.training)
    result = causality(spoil(tiny_model(dropout=dropout), monkeypatch))
    assert result.max_leak == 0
    assert result.max_gradient > 0
    assert not result.passed


def test_a_leak_for_padded_prompts_alone_is_caught(monkeypatch):
    spoil = unmasked_where(lambda model, cache: cache is not None and cache.padding is not None)
    result = causality(spoil(tiny_model(), monkeypatch))
    assert (result.full_leak, result.max_gradient) == (0, 0)
    assert not result.cached.passed
    assert not result.passed


@pytest.mark.parametrize("into", ["another row", "the mean over rows"])
def test_a_leak_through_other_rows_is_caught(into):
    model = tiny_model()
    up = model.blocks[0].mlp.up
    mixed = {"another row": lambda x: x.roll(1, 0), "the mean over rows": lambda x: x.mean(0, keepdim=True)}
    up.register_forward_hook(lambda module, args, output: output + 0.01 * mixed[into](output))
    assert not causality(model).passed


def test_a_leak_at_the_seam_of_two_pieces_is_caught(monkeypatch):
    def one_more_at_the_seam(n_query, n_key, device=None):
        mask = MASK(n_query, n_key, device)
        if n_key > n_query > 1:
            mask[0, n_key - n_query + 1] = True
        return mask

    monkeypatch.setattr(room, "causal_mask", one_more_at_the_seam)
    result = causality(tiny_model())
    assert result.full_leak == 0
    assert not result.cached.passed


def test_a_leak_between_the_positions_that_are_tried_shows_in_the_weights(monkeypatch):
    def hole(n_query, n_key, device=None):
        mask = MASK(n_query, n_key, device)
        if n_query == n_key == 100:
            mask[70, 71] = True
        return mask

    monkeypatch.setattr(room, "causal_mask", hole)
    result = causality(tiny_model(n_ctx=100), n_positions=3)
    assert 71 not in result.positions
    assert (result.max_leak, result.max_gradient) == (0, 0)
    assert result.mask.hidden_weight > 0
    assert not result.passed


def test_logits_that_depend_on_how_many_tokens_follow_differ_with_the_cache():
    """Not on what they are, so no bit changes: the share of the largest logit shows it."""
    model = tiny_model()
    model.embed.register_forward_hook(lambda module, args, output: output * (1 + output.shape[1] / 16))
    result = causality(model)
    assert result.max_leak == 0
    assert result.cached.difference > 0.05


def test_an_embedding_that_is_looked_up_twice_is_measured():
    model = tiny_model()
    forward = model.forward
    model.forward = lambda ids, cache=None: forward(ids, cache) + model.unembed(model.embed(ids.roll(-1, 1)))
    result = causality(model)
    assert result.full_leak > 0
    assert not result.passed
