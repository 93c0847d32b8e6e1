"""Question 1, memory: each claim holds, and fails where its mechanism is broken."""

from dataclasses import replace

import pytest

from tests.answer.subjects import forgetful, short_sighted, subject
from tests.answer.verdicts import refuted, shown, verdicts
from tests.conftest import tiny_model
from tformer.answer.experiment import QUICK
from tformer.answer.lab import Subject
from tformer.answer.q1_recurrence import memory
from tformer.answer.q1_recurrence.experiments import EXPERIMENTS
from tformer.answer.q1_recurrence.lstm import LSTMConfig
from tformer.answer.tasks import Recall

ENOUGH = "This is all that has to be carried: logits go on as if all were read again"
CACHE_GROWS = "The KV cache grows as fast as the text (its growth over the text's)"
CONSTANT = "The LSTM's state does not grow (last over first)"
FAR = "A transformer learns to look back 16 tokens"
NEAR = "An LSTM as torch initialises it learns 4"
NOT_FAR = "With the same steps it does not learn 16"
REVERSES = "The transformer reverses, at every distance"
NOT_IN_TIME = "An LSTM of as many parameters has not learned it in as many steps (mean over distances)"

# ---------------------------------------------------------------------------- what is carried


@pytest.mark.parametrize(
    "run", [None, {}, {"family": "nanochat", "n_heads": 4, "n_kv_heads": 2}, {"n_ctx": 8}], ids=str
)
def test_the_cache_grows_by_its_formula_and_is_enough(run):
    examined = None if run is None else subject(**run)
    evidence = memory.measure_carried(QUICK, 0, examined)
    assert verdicts(shown(memory.show_carried, evidence)) == {ENOUGH: True, CACHE_GROWS: True, CONSTANT: True}
    if examined:
        c = examined.model.config
        per_token = 2 * c.n_layers * c.n_kv_heads * c.d_head * 4  # bytes of float32
        assert evidence.cache_bytes == tuple(per_token * n for n in evidence.lengths)
    assert set(evidence.state_bytes) == {2 * 1 * 128 * 4}


def test_a_cache_without_its_first_token_is_not_enough(monkeypatch):
    kept = memory.kept_of

    def less(model, ids):
        found = kept(model, ids)
        found[..., 0, :] = 0
        return found

    monkeypatch.setattr(memory, "kept_of", less)
    evidence = memory.measure_carried(QUICK, 0, subject())
    assert refuted(shown(memory.show_carried, evidence)) == {ENOUGH}


def test_a_state_that_grows_and_a_cache_that_does_not_are_found_out():
    evidence = memory.measure_carried(QUICK, 0, subject())
    swapped = replace(evidence, cache_bytes=evidence.state_bytes, state_bytes=evidence.cache_bytes)
    assert refuted(shown(memory.show_carried, swapped)) == {CACHE_GROWS, CONSTANT}


@pytest.mark.parametrize("n_ctx, left_out", [(1, 3), (2, 3), (3, 1), (7, 1), (8, 0)])
def test_runs_that_are_too_short_are_left_out_with_a_reason(n_ctx, left_out):
    examined = Subject(None, tiny_model(n_ctx=n_ctx), None, None, None)
    every = {e.slug: e for e in EXPERIMENTS}
    assert sum(bool(e.skip(examined)) for e in every.values()) == left_out
    assert not any(e.skip(None) for e in every.values())
    for experiment in (every["permutation"], every["carried"]):
        if not experiment.skip(examined):
            shown(experiment.show, experiment.measure(QUICK, 0, examined))


# ---------------------------------------------------------------------------- memory


def test_only_the_mark_asks_for_memory():
    inputs, targets = Recall(5).fresh(50)
    assert (inputs[:, -1] == 8).all() and (targets[:, -1] == inputs[:, 0]).all()
    assert (inputs[:, :-1] == targets[:, :-1]).all() and inputs[:, :-1].max() == 7


@pytest.mark.slow
def test_recall_is_learned_far_by_attention_and_near_by_an_lstm():
    evidence = memory.measure_recall(QUICK, 0, None)
    assert verdicts(shown(memory.show_recall, evidence)) == {FAR: True, NEAR: True, NOT_FAR: True}


@pytest.mark.slow
def test_neither_short_sight_nor_a_lack_of_recurrence_can_recall(monkeypatch):
    monkeypatch.setattr(memory, "build", short_sighted)
    monkeypatch.setattr(memory, "build_lstm", forgetful)
    evidence = memory.measure_recall(QUICK, 0, None)
    assert refuted(shown(memory.show_recall, evidence)) == {FAR, NEAR}
    assert max(evidence.accuracy["transformer"]) < 0.3 and max(evidence.share["transformer"]) == 0
    learned = dict.fromkeys(evidence.accuracy, (1.0, 1.0))
    assert refuted(shown(memory.show_recall, replace(evidence, accuracy=learned))) == {NOT_FAR}


@pytest.mark.slow
def test_reversal_is_learned_at_every_distance_by_attention_first():
    evidence = memory.measure_reversal(QUICK, 0, None)
    assert verdicts(shown(memory.show_reversal, evidence)) == {REVERSES: True, NOT_IN_TIME: True}
    n, other = evidence.parameters["transformer"], evidence.parameters["LSTM"]
    assert other == pytest.approx(n, rel=0.02)
    equal = dict.fromkeys(evidence.accuracy, evidence.accuracy["transformer"])
    assert refuted(shown(memory.show_reversal, replace(evidence, accuracy=equal))) == {NOT_IN_TIME}


@pytest.mark.slow
def test_a_transformer_that_does_not_see_far_does_not_reverse(monkeypatch):
    monkeypatch.setattr(memory, "build", short_sighted)
    monkeypatch.setattr(memory, "build_lstm", lambda config, seed: forgetful(LSTMConfig(10, 4, 4), seed))
    evidence = memory.measure_reversal(QUICK, 0, None)
    assert refuted(shown(memory.show_reversal, evidence)) == {REVERSES}
    near, far = evidence.accuracy["transformer"][0], evidence.accuracy["transformer"][-1]
    assert near > 0.9 > 0.5 > far
