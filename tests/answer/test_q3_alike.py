"""Question 3, alike: each claim holds, and fails for a model that is broken where it looks."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer import parts
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, tiny
from tformer.answer.q3_mlps import alike, facts
from tformer.answer.tasks import Facts
from tformer.text.data import Reversal

SAME_MLP = "No two blocks have the same MLP, in whatever order of its neurons"
SAME_OUTPUTS = "No two blocks' MLPs compute the same from the same states"
OF_USE = "Each MLP is of use in its own block: exchanging two costs"
TRAINED_APART = "MLPs that start as copies are trained apart"


@pytest.fixture
def model():
    return random_model(vocab_size=11, n_ctx=12)


# ---------------------------------------------------------------------------- drawn apart


def likeness(model):
    """Judged as one that was trained here: what it refutes of weights and of outputs."""
    evidence = replace(alike.measure_likeness(QUICK, 0, subject(model)), own=True)
    return evidence, refuted(shown(alike.show_likeness, evidence)) & {SAME_MLP, SAME_OUTPUTS}


def test_blocks_drawn_apart_are_strangers(model):
    evidence, wrong = likeness(model)
    assert wrong == set()
    assert abs(evidence.likeness) < 0.1
    assert evidence.matched_itself == pytest.approx(1, abs=1e-4)


def test_a_copied_mlp_is_found(model):
    model.blocks[1].mlp = copy.deepcopy(model.blocks[0].mlp)
    evidence, wrong = likeness(model)
    assert wrong == {SAME_MLP, SAME_OUTPUTS}
    assert evidence.flat == pytest.approx(1)
    assert evidence.exchange == pytest.approx(0, abs=1e-6)


def test_a_copy_with_its_neurons_in_another_order_is_found(model):
    a, b = model.blocks[0].mlp, model.blocks[1].mlp
    order = torch.randperm(a.up.out_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        b.up.weight.copy_(a.up.weight[order])
        b.down.weight.copy_(a.down.weight[:, order])
    evidence, wrong = likeness(model)
    assert wrong == {SAME_MLP, SAME_OUTPUTS}
    assert evidence.flat < 0.2, "as they stand the weights look unrelated"
    assert evidence.likeness == pytest.approx(1, abs=1e-4)


def test_neurons_that_are_scaled_back_and_forth_are_the_same(model):
    block, other = model.blocks[0], copy.deepcopy(model.blocks[0])
    with torch.no_grad():
        other.mlp.up.weight.mul_(3)
        other.mlp.down.weight.div_(3)
    assert alike.best_match(alike.neurons(block), alike.neurons(other)) == pytest.approx(1, abs=1e-5)


def test_cka_forgives_rotation_and_scale_and_knows_strangers():
    torch.manual_seed(0)
    a, b = torch.randn(400, 8), torch.randn(400, 8)
    turned = a @ torch.linalg.qr(torch.randn(8, 8))[0] * 3 + 1
    assert alike.cka(a, turned) == pytest.approx(1)
    assert alike.cka(a, b) < 0.1


def test_exchanging_is_undone(model):
    before = [block.mlp for block in model.blocks]
    with parts.exchanged(model, 0, 1):
        assert [block.mlp for block in model.blocks] == before[::-1]
    assert [block.mlp for block in model.blocks] == before


def test_a_run_of_one_block_is_left_out():
    one = build(tiny(vocab_size=5, n_ctx=4, n_layers=1), 0)
    assert "one block" in alike.one_block(subject(one))
    assert alike.one_block(None) is None


def test_untrained_mlps_can_be_exchanged_at_no_cost(untrained):
    """They add nothing yet: the claim that each is of use in its own block must fail."""
    assert OF_USE in refuted(shown(alike.show_likeness, alike.measure_likeness(QUICK, 0, None)))


def test_a_reversal_run_is_compared_on_its_own_sequences(model):
    task = Reversal(4, 11)
    evidence = alike.measure_likeness(QUICK, 0, subject(model, task))
    assert not evidence.own and list(verdicts(shown(alike.show_likeness, evidence))) == [SAME_MLP]


# ---------------------------------------------------------------------------- started as copies


def test_the_same_gradients_would_be_found(monkeypatch):
    """One MLP for all blocks, examined as if they were several: what training added is the same."""
    monkeypatch.setattr(facts, "facts_for", lambda effort, seed: Facts(64, seed))
    facts.learned_by_heart.cache_clear()
    evidence = alike.measure_parting(QUICK, 0, None, variant="shared")
    facts.learned_by_heart.cache_clear()
    assert refuted(shown(alike.show_parting, evidence)) == {TRAINED_APART}
