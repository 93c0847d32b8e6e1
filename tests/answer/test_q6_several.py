"""Question 6: several heads are better where several places are needed, and one is enough for one."""

import pytest

from tests.answer.verdicts import refuted, verdicts
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.lab import build, tiny, train
from tformer.answer.q6_heads import several
from tformer.answer.tasks import Places

HIGHER_LOSS = "Where three places are needed at once, one head has a higher loss than four (ratio)"
MORE_WEIGHT = "Four heads give the three places more weight than one head has to give"
ENOUGH = "Where one place is needed, one head is enough: it reverses"


def measured(seed):
    return several.show_several(Seeds([several.measure_several(QUICK, seed, None)]))


def test_places_asks_for_the_symbols_at_its_distances():
    task = Places(4, 8, (1, 2, 4))
    inputs, targets = task.fresh(20)
    for t in range(4, 8):
        expected = 16 * inputs[:, t - 1] + 4 * inputs[:, t - 2] + inputs[:, t - 4]
        assert (targets[:, t] == expected).all()
    assert task.outcomes == 64


def test_no_head_count_changes_the_parameters():
    assert len({build(tiny(vocab_size=8, n_ctx=4, n_heads=n), 0).n_parameters for n in (1, 2, 4, 8)}) == 1


def test_where_all_have_one_head_the_claims_fail(monkeypatch):
    """Every model gets one head, whatever it is called: no gain, no place with most of a head's weight."""
    monkeypatch.setattr(several, "N_HEADS", (1, 4))
    monkeypatch.setattr(several, "tiny", lambda **changes: tiny(**(changes | {"n_heads": 1})))
    monkeypatch.setattr(several, "train", lambda m, task, steps, seed, **s: train(m, task, 60, seed, **s))
    assert {HIGHER_LOSS, MORE_WEIGHT} <= refuted(measured(0))


def test_untrained_heads_do_not_reverse(monkeypatch):
    monkeypatch.setattr(several, "train", lambda *args, **settings: None)
    assert refuted(measured(0)) == {HIGHER_LOSS, MORE_WEIGHT, ENOUGH}


@pytest.mark.slow
def test_the_claims_hold_for_what_is_trained_here():
    assert verdicts(measured(7)) == {HIGHER_LOSS: True, MORE_WEIGHT: True, ENOUGH: True}
