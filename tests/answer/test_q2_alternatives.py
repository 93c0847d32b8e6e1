"""Question 2, alternatives: each claim holds, and fails where its mechanism is broken."""

import math

import pytest

from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, tiny
from tformer.answer.q2_qkv import alternatives, scores
from tformer.text.data import Reversal

KIN = "These functions are kin: two ways to the same weights, outputs or gradients"
WEIGHTS = "All 8 give weights: rows sum to 1, a hidden key weighs 0"
NO_GRADIENT = "The hard maximum has no gradient: it stays put when q moves a millionth"
ALL_LEARN = "The dot product is not the only way: all six scaled soft functions learn to reverse"
NONE_SEES = "None of the eight sees the future: on the random half all are at chance"

# ---------------------------------------------------------------------------- kin


def test_kin_hold_here():
    finding = shown(alternatives.show_kin, alternatives.measure_kin(QUICK, 0, None))
    assert verdicts(finding) == dict.fromkeys((KIN, WEIGHTS, NO_GRADIENT), True)
    assert len(finding.tables[0].rows) == 8


@pytest.mark.parametrize("name", ["cosine", "squared_distance", "linear_attention"])
def test_another_formula_is_no_kin(monkeypatch, name):
    monkeypatch.setattr(
        scores, name, lambda q, k, last: last if last.dtype == q.dtype else scores.scaled_dot(q, k, last)
    )
    assert KIN in refuted(shown(alternatives.show_kin, alternatives.measure_kin(QUICK, 0, None)))


def test_a_score_without_the_mask_gives_no_weights(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES, "cosine", lambda config: lambda q, k, mask: scores.cosine(q, k, mask | True)
    )
    assert refuted(shown(alternatives.show_kin, alternatives.measure_kin(QUICK, 0, None))) == {WEIGHTS}


def test_weights_that_are_no_numbers_refute(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES,
        "linear kernel",
        lambda config: lambda q, k, mask: 0 * scores.scaled_dot(q, k, mask) / 0,
    )
    assert refuted(shown(alternatives.show_kin, alternatives.measure_kin(QUICK, 0, None))) == {WEIGHTS}


def test_a_soft_maximum_has_a_gradient_of_its_own(monkeypatch):
    monkeypatch.setattr(scores, "hard_maximum", scores.scaled_dot)
    monkeypatch.setitem(scores.SCORES, "hard maximum", lambda config: scores.scaled_dot)
    assert NO_GRADIENT in refuted(shown(alternatives.show_kin, alternatives.measure_kin(QUICK, 0, None)))


# ---------------------------------------------------------------------------- head to head


def short(budget_steps=60):
    """The experiment, shorter: an easier task, and two of the eight."""
    task = Reversal(3, 4, 0)
    config = tiny(vocab_size=4, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_model=32)
    found = {}
    for name in ("scaled dot", "additive"):
        model = build(config, 0, scores.with_scores(name))
        found[name] = alternatives.train_score(model, task, budget_steps, 0)
    return found


def all_eight(found):
    """Evidence for eight of what was trained for two."""
    by_score = {name: found.get(name, found["scaled dot"]) for name in scores.SCORES}
    return alternatives.TrainedScoresEvidence(3, 4, 32, len(found["additive"].losses), by_score)


def test_training_learns_and_counts():
    found = short()
    finding = shown(alternatives.show_trained_scores, all_eight(found))
    assert verdicts(finding) == {ALL_LEARN: True, NONE_SEES: True}
    assert found["scaled dot"].learned == 0 and found["additive"].learned == 2 * 32 * 32 + 32
    assert found["additive"].kept > found["scaled dot"].kept
    assert 0.5 < found["scaled dot"].mirror <= 1
    assert len(found["scaled dot"].losses) == 60 >= found["scaled dot"].steps
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in found["scaled dot"].map)


def test_scores_that_look_nowhere_do_not_learn(monkeypatch):
    def blind(q, k, mask):
        return scores.scaled_dot(0 * q, k, mask)

    monkeypatch.setitem(scores.SCORES, "additive", lambda config: blind)
    # The last symbol repeats the one before it, so the mean of three still tells something.
    task = Reversal(6, 8, 0)
    model = build(tiny(vocab_size=8, n_ctx=11, n_layers=1, n_heads=1), 0, scores.with_scores("additive"))
    blinded = alternatives.train_score(model, task, 120, 0)
    assert blinded.steps == 120
    evidence = alternatives.TrainedScoresEvidence(6, 8, 64, 120, dict.fromkeys(scores.SCORES, blinded))
    assert refuted(shown(alternatives.show_trained_scores, evidence)) == {ALL_LEARN}


def test_a_score_without_the_mask_sees_the_future(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES, "additive", lambda config: lambda q, k, mask: scores.scaled_dot(q, k, mask | True)
    )
    assert NONE_SEES in refuted(shown(alternatives.show_trained_scores, all_eight(short(120))))


def test_steps_are_counted_to_nine_tenths():
    assert alternatives.first_below([3.0, 2.0, 1.0, 1.0, 1.0, 1.0], 1.0) == 5
    assert alternatives.first_below([3.0, 2.0, 2.0, 2.0], 1.0) == 4
    task = Reversal(6, 8)
    floor = 5 / 11 * math.log(8)  # five of eleven targets are fresh randomness
    assert alternatives.nine_tenths(task) == pytest.approx(floor + 0.1 * (math.log(8) - floor))
