"""Question 5: a finite mask is outbid, a large one is not, and each claim falls with its part."""

import math

import pytest

from tests.answer.subjects import subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import adding
from tformer.answer.q5_mask import finite
from tformer.model import CausalSelfAttention
from tformer.text.data import Reversal

CLAIMS = {
    "With -10 a hidden key gets what the formula says, 1 / (1 + e^(10 - gap))",
    "-10⁴ hides exactly, up to about 9,896 above the visible scores",
    "-inf hides at every score that float32 holds",
    "Training outbids -10: a hidden key gets most of a query's weight",
    "Training does not outbid -10⁴",
}


def measured():
    return finite.show_finite(Seeds([finite.measure_finite(QUICK, 5, None)]))


def writing(value):
    """A formula that writes the value in the place of hidden scores, where `adding` adds it to them."""

    def formula(q, k, v, seen=None, dropout=0.0):
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, value)
        weights = scores.softmax(-1)
        return weights @ v, weights

    return formula


def test_a_finite_mask_is_outbid_and_a_large_one_is_not():
    assert verdicts(measured()) == dict.fromkeys(CLAIMS, True)


def test_every_claim_on_finite_masks_falls_when_its_part_is_replaced(monkeypatch):
    monkeypatch.setattr(finite, "train", lambda *args, **settings: [])
    monkeypatch.setattr(finite, "attention", adding(-1e4))
    monkeypatch.setattr(finite, "adding", writing)
    monkeypatch.setattr(finite, "VALUES", (-10.0, -100.0, -11.0))
    assert refuted(measured()) == CLAIMS


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_values_are_put_into_a_run_of_either_family_which_is_left_as_it_was(monkeypatch, changes):
    monkeypatch.setattr(finite, "train", lambda *args, **settings: [])
    model = tiny_model(**changes)
    evidence = finite.measure_finite(QUICK, 0, subject(model, Reversal(4, 23)))
    table = finite.show_finite(Seeds([evidence])).tables[-1]
    assert table.title.startswith("Put into the run") and len(table.rows) == 3
    for block in model.blocks:
        assert type(block.attn) is CausalSelfAttention and block.attn.formula is None
