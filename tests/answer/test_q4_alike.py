"""Question 4: positions become alike without skips, and alike is measured right."""

import math

import pytest
import torch

from tests.answer.subjects import subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import BOTH, NEITHER, AttentionAlone, NoSkips
from tformer.answer.q4_skips import alike
from tformer.answer.q4_skips.stream import RUN
from tformer.model import Block

ALIKE = "Without skips, random blocks make all positions alike"
ATTENTION_ALONE = "So does attention alone without its skip"
APART = "With both skips they stay apart"


def measured():
    return alike.show_collapse(Seeds([alike.measure_collapse(QUICK, 5, None)]))


def test_measures_of_likeness_by_arithmetic():
    def measures(x):
        return alike.share_apart(x), alike.similarity(x), alike.effective_rank(x)

    same, different = torch.ones(1, 4, 4), torch.eye(4)[None]
    assert measures(same) == pytest.approx((0, 1, 1), abs=1e-6)
    assert measures(different) == pytest.approx((math.sqrt(3 / 4), 0, 4), abs=1e-6)


def test_positions_become_alike_without_skips_alone(monkeypatch):
    assert verdicts(measured()) == {ALIKE: True, ATTENTION_ALONE: True, APART: True}
    monkeypatch.setitem(alike.SKIP_VARIANTS, BOTH, NoSkips)
    monkeypatch.setitem(alike.SKIP_VARIANTS, NEITHER, Block)
    monkeypatch.setattr(alike, "AttentionAloneNoSkip", AttentionAlone)
    assert refuted(measured()) == {ALIKE, ATTENTION_ALONE, APART}


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined_and_left_as_it_was(changes):
    model = tiny_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seeds = Seeds(alike.measure_collapse(QUICK, seed, subject(model)) for seed in (0, 1))
    rows = alike.show_collapse(seeds).tables[0].rows
    assert {RUN, alike.RUN_CUT} <= {row[0] for row in rows}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
