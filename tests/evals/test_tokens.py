"""The hardest and easiest tokens against brute force; coloured text that adds up, in every kind of stream."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.conftest import tiny_model
from tformer.evals.loss import text_loss, token_losses
from tformer.evals.tokens import LEVELS, ReadText, extremes, guesses, level, surprise
from tformer.text.data import eval_contexts, eval_windows

BYTES = [
    b"<b>&",
    b"\x1b[2J",
    b"\xe2\x80",
    b"\n",
    b"\t",
    b'"',
    "\u202e".encode(),
    *(bytes([65 + i]) for i in range(16)),
]


def read(model, stride=None):
    """A text of 50 ids, as the model reads it in windows of 16."""
    ids = np.random.default_rng(1).integers(23, size=50)
    contexts = eval_contexts(eval_windows(50, 16, stride))
    return ReadText(ids, token_losses(model, ids, stride=stride), contexts, BYTES)


def found_in_random_text():
    """A model, a text of 50 ids in windows of 16, its losses, and what was found."""
    model = tiny_model(std=0.6)
    text = read(model)
    return model, text.ids, text.losses, surprise(model, text, n=40, most=5)


@pytest.fixture(scope="module")
def judged():
    return found_in_random_text()


def test_the_losses_shown_add_up_to_the_loss_of_that_stretch(judged):
    model, ids, _, found = judged
    shown = [token.loss for token in found.stretch]
    assert len(shown) == 40
    assert found.loss == pytest.approx(text_loss(model, ids[:41], np.ones(23, dtype=int)).loss, abs=1e-5)
    assert f"{sum(shown):.2f} together" in found.summary
    assert all(token.raw == BYTES[ids[token.place]] for token in found.stretch)
    assert all(token.probability == pytest.approx(math.exp(-token.loss)) for token in found.stretch)


@pytest.mark.parametrize("stride", [None, 4])
def test_guesses_are_the_most_likely_given_the_window(judged, stride):
    model, *_ = judged
    text = read(model, stride)
    ids, losses = text.ids, text.losses
    found = guesses(model, text, range(1, 50))
    for place in range(1, 50):
        start = (place - 1) // 16 * 16 if stride is None else max(0, (place - 12) // 4 * 4)
        probabilities = model(torch.from_numpy(ids[None, start:place]))[0, -1].softmax(-1).detach()
        assert found[place].id == int(probabilities.argmax())
        assert found[place].probability == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert found[place].probability >= math.exp(-losses[place - 1]) - 1e-6


def test_the_context_shown_is_what_the_model_saw(judged):
    *_, ids, _, found = judged
    for token in found.stretch:
        assert token.context == (token.place - 1) % 16 + 1
        seen = b"".join(BYTES[i] for i in ids[token.place - token.context : token.place])
        assert seen.endswith(token.before) and (token.before == seen or len(token.before) == 40)


def test_no_token_is_shown_to_cost_less_than_nothing(judged):
    model, *_ = judged
    certain = dataclasses.replace(read(model), losses=np.full(49, -1e-7))  # as rounding makes of log 1
    found = surprise(model, certain, n=40, most=5)
    shown = [*found.stretch, *found.hardest, *found.easiest]
    assert {f"{token.loss:.4f}" for token in shown} == {"0.0000"}
    assert all(token.probability == 1.0 for token in shown) and "-0" not in found.summary


@pytest.mark.parametrize("hardest", [True, False])
def test_extremes_are_each_token_at_its_most_extreme_place(judged, hardest):
    _, ids, losses, _ = judged
    pick = max if hardest else min
    best = {i: pick(losses[ids[1:] == i]) for i in set(ids[1:].tolist())}
    chosen = extremes(losses, ids, 7, hardest)
    assert [losses[p - 1] for p in chosen] == sorted(best.values(), reverse=hardest)[:7]
    assert all(losses[p - 1] == best[ids[p]] for p in chosen)


def test_ranks_count_from_the_hardest(judged):
    _, _, losses, found = judged
    for token in found.stretch:
        assert token.rank == 1 + int((losses > token.loss).sum())
    assert found.hardest[0].rank == 1 and found.easiest[0].rank == found.of == 49


def test_a_level_is_a_range_of_probabilities():
    assert [level(-math.log(p)) for p in (1, 0.91, 0.89, 0.4, 0.05, 0.005, 0.0005)] == [0, 0, 1, 2, 3, 4, 5]
    assert level(math.inf) == 5
    assert [nats for _, nats in LEVELS] == [
        "0–0.11",
        "0.11–0.69",
        "0.69–2.30",
        "2.30–4.61",
        "4.61–6.91",
        "over 6.91",
    ]


# ---------------------------------------------------------------------------- curves


def test_a_large_vocabulary_has_fewer_logits_at_once(model, monkeypatch):
    monkeypatch.setattr("tformer.evals.loss.LOGITS_AT_ONCE", 2 * 16 * 23)
    monkeypatch.setattr("tformer.evals.tokens.LOGITS_AT_ONCE", 2 * 16 * 23)
    seen, text = [], read(model)
    expected = guesses(model, text, range(1, 50)), token_losses(model, text.ids)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", _noting(type(model).forward, seen))
        found = guesses(model, text, range(1, 50)), token_losses(model, text.ids)
    assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert max(seen) == 2 * 16 * 23, "two windows, where the tokens alone would let all of them through"


def _noting(forward, seen):
    def noted(self, ids, *args):
        logits = forward(self, ids, *args)
        seen.append(logits.numel())
        return logits

    return noted
