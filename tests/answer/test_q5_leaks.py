"""Question 5: wrong masks leak as said, and each claim falls where its mechanism is taken away."""

import math
from dataclasses import replace

import pytest

from tests.answer.subjects import subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.q5_mask import leaks
from tformer.answer.tasks import Unshifted
from tformer.model import CausalSelfAttention, attention
from tformer.text.data import Reversal

CLAIMS = {
    "With the mask, the first half is at chance",
    "Without it, or one diagonal too far, the model reads its targets",
    "Their loss says nothing of prediction: over prefixes they do far worse",
    "One too short: the first position is NaN, training stops at once",
    "Targets not shifted: the loss falls below what is possible",
    "Targets not shifted: the model does not predict the next token, not even in the second half",
}


@pytest.fixture(scope="module")
def evidence():
    return leaks.measure_leaks(QUICK, 5, None)


def test_unshifted_targets_are_the_inputs():
    task = Reversal(4, 8)
    inputs, targets = Unshifted(task).batch(3, 5)
    assert (inputs == targets).all() and (inputs == task.batch(3, 5)[0]).all()


def test_one_too_short_spoils_the_first_position_and_then_all():
    assert leaks.nan_positions(1, 0) == [True] + [False] * 6
    assert leaks.nan_positions(2, 0) == [True] * 7, "0 · NaN = NaN"


def test_the_reversal_table_tells_masks_apart(evidence):
    assert verdicts(leaks.show_leaks(Seeds([evidence]))) == dict.fromkeys(CLAIMS, True)


def test_every_claim_on_leaks_falls_when_the_masks_are_exchanged(evidence, monkeypatch):
    """What was trained with them is exchanged, since training is the cost."""
    monkeypatch.setattr(leaks, "TOO_SHORT", attention)
    had = evidence.variants
    exchanged = replace(
        evidence,
        variants=had
        | {leaks.RIGHT: had[leaks.NONE], leaks.NONE: had[leaks.RIGHT], leaks.SAME: had[leaks.RIGHT]},
        nan_one_block=leaks.nan_positions(1, 5),
        nan_two_blocks=leaks.nan_positions(2, 5),
        stopped=leaks.is_stopped(Reversal(4, 8, seed=5), 5),
    )
    assert refuted(leaks.show_leaks(Seeds([exchanged]))) == CLAIMS


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_on_reversal_has_a_table_and_is_left_as_it_was(monkeypatch, changes):
    monkeypatch.setattr(leaks, "train", lambda *args, **settings: [math.nan])
    model = tiny_model(**changes)
    evidence = leaks.measure_leaks(QUICK, 0, subject(model, Reversal(4, 23)))
    assert leaks.show_leaks(Seeds([evidence])).tables[-1].title == "The run"
    for block in model.blocks:
        assert type(block.attn) is CausalSelfAttention and block.attn.formula is None
