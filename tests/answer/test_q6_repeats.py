"""Question 6: heads for repeated tokens need previous-token heads, and without either the claims fail."""

from functools import cache

import numpy as np
import torch

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, verdicts
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.lab import build, train
from tformer.answer.q6_heads import repeats
from tformer.model import attention

PREVIOUS = "A head of the first block looks mostly at the token before"
REPEATED = "A head of the second block looks mostly at what followed an earlier copy"
NEEDED = "The second needs the first: without the look 1 back accuracy is lost"
THAT_PATH = "It is that path: without the look 2 back accuracy stays"
TWO_BLOCKS = "Two blocks get more right than one"


def measured(seed=0):
    return repeats.show_repeats(Seeds([repeats.measure_repeats(QUICK, seed, None)]))


def test_without_a_previous_token_head_the_claims_fail(monkeypatch):
    """Nobody in the first block may look one back, in training either: the path cannot form."""

    def blind(q, k, v, mask, dropout=0.0):
        n = mask.shape[-1]
        back = torch.eye(n, dtype=torch.bool).roll(-1, 1).tril()
        return attention(q, k, v, mask & ~back, dropout)

    def build_blind(config, seed):
        model = build(config, seed)
        model.blocks[0].attn.formula = blind
        return model

    monkeypatch.setattr(repeats, "build", build_blind)
    monkeypatch.setattr(repeats, "train", lambda m, task, steps, seed, **s: train(m, task, 60, seed, **s))
    assert {PREVIOUS, NEEDED} <= refuted(measured())


def test_untrained_models_have_neither_head(monkeypatch):
    monkeypatch.setattr(repeats, "train", lambda *args, **settings: None)
    found = verdicts(measured())
    assert found.pop(THAT_PATH), "nothing is lost by closing another path"
    assert set(found) == {PREVIOUS, REPEATED, NEEDED, TWO_BLOCKS} and not any(found.values())


def test_a_path_of_the_wrong_distance_is_found(monkeypatch):
    """Closing every path at once must not pass as closing that one."""
    monkeypatch.setattr(repeats, "learn_repeats", cache(repeats.learn_repeats))
    claims = (PREVIOUS, REPEATED, NEEDED, THAT_PATH, TWO_BLOCKS)
    assert verdicts(measured(7)) == dict.fromkeys(claims, True)
    close = repeats.not_looking_back_by
    monkeypatch.setattr(
        repeats, "not_looking_back_by", lambda model, distance, layers: close(model, 1, layers)
    )
    assert refuted(measured(7)) == {THAT_PATH}


def test_a_foreign_run_is_scored_and_nothing_claimed():
    model = random_model()
    text = np.arange(200) % 13
    for given in (None, text):
        seeds = Seeds(repeats.measure_repeats(QUICK, s, subject(model, text_ids=given)) for s in (0, 1))
        finding = repeats.show_repeats(seeds)
        assert not finding.claims and len(finding.tables[0].rows) == 12
        assert all((row[-1] == "-") == (given is None) for row in finding.tables[0].rows)


def test_a_run_of_five_positions_is_left_out():
    assert "5 positions" in (repeats.too_short_to_repeat(subject(random_model(n_ctx=5))) or "")
    assert repeats.too_short_to_repeat(subject(random_model(n_ctx=6))) is None
    assert repeats.too_short_to_repeat(None) is None
