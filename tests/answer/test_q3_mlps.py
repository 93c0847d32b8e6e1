"""Question 3: each claim of `tformer answer dense-layers` holds for the model and fails for a broken one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tformer.answer import parts
from tformer.answer.claims import QUICK
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.q3_mlps import dense, mlps
from tformer.answer.q3_mlps.experiments import EXPERIMENTS
from tformer.answer.tasks import Facts
from tformer.model import MLP, Transformer
from tformer.text.data import Reversal


def claims(finding):
    return {claim.claim: claim.passed for claim in finding.claims}


def subject(model, task=None):
    return Subject(None, model, None, task, None)


@pytest.fixture
def model():
    """Two blocks with random weights in every matrix."""
    made = build(tiny(vocab_size=11, n_ctx=12, d_model=32), 0)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                p.normal_(std=p.shape[1] ** -0.5)
    return made.eval()


@pytest.fixture
def briefly(monkeypatch):
    """Trainings of a few steps, computed anew."""
    monkeypatch.setattr(mlps, "train", lambda *args, **settings: None)
    for trained in (mlps.learned_by_heart, mlps.reversing):
        trained.cache_clear()
    yield
    for trained in (mlps.learned_by_heart, mlps.reversing):
        trained.cache_clear()


# ---------------------------------------------------------------------------- one position alone


class Mixing(nn.Module):
    """An MLP that sees the neighbour too."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x + x.roll(1, dims=1))


class Deaf(nn.Module):
    """An attention in which each position sees itself alone."""

    def forward(self, x, mask, rotation=None, cache=None, layer=0):
        return x


def alone(model):
    return list(claims(dense.show_alone([dense.measure_alone(QUICK, 0, subject(model))])).values())


def test_an_mlp_moves_one_position_and_attention_many(model):
    assert alone(model) == [True, True]


def test_an_mlp_that_mixes_positions_is_found(model):
    model.blocks[1].mlp = Mixing(model.blocks[1].mlp)
    assert alone(model) == [False, True]


def test_an_attention_that_does_not_communicate_is_found(model):
    for block in model.blocks:
        block.attn = Deaf()
    assert alone(model) == [True, False]


def test_positions_with_rotary_angles_are_measured_too():
    made = build(tiny(family="nanochat", vocab_size=11, n_ctx=12), 0)
    with torch.no_grad():
        for block in made.blocks:
            block.attn.out.weight.normal_(std=0.1)
            block.mlp.down.weight.normal_(std=0.1)
    assert alone(made) == [True, True]


# ---------------------------------------------------------------------------- how alike


def likeness(model):
    """Judged as one that was trained here: the first two claims are of weights and of outputs."""
    evidence = replace(dense.measure_likeness(QUICK, 0, subject(model)), own=True)
    return evidence, list(claims(dense.show_likeness([evidence])).values())[:2]


def test_blocks_drawn_apart_are_strangers(model):
    evidence, passed = likeness(model)
    assert passed == [True, True]
    assert abs(evidence.likeness) < 0.1
    assert evidence.matched_itself == pytest.approx(1, abs=1e-4)


def test_a_copied_mlp_is_found(model):
    model.blocks[1].mlp = copy.deepcopy(model.blocks[0].mlp)
    evidence, passed = likeness(model)
    assert passed == [False, False]
    assert evidence.flat == pytest.approx(1)
    assert evidence.exchange == pytest.approx(0, abs=1e-6)


def test_a_copy_with_its_neurons_in_another_order_is_found(model):
    a, b = model.blocks[0].mlp, model.blocks[1].mlp
    order = torch.randperm(a.up.out_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        b.up.weight.copy_(a.up.weight[order])
        b.down.weight.copy_(a.down.weight[:, order])
    evidence, passed = likeness(model)
    assert passed == [False, False]
    assert evidence.flat < 0.2, "as they stand the weights look unrelated"
    assert evidence.likeness == pytest.approx(1, abs=1e-4)


def test_neurons_that_are_scaled_back_and_forth_are_the_same(model):
    block, other = model.blocks[0], copy.deepcopy(model.blocks[0])
    with torch.no_grad():
        other.mlp.up.weight.mul_(3)
        other.mlp.down.weight.div_(3)
    assert mlps.best_match(mlps.neurons(block), mlps.neurons(other)) == pytest.approx(1, abs=1e-5)


def test_cka_forgives_rotation_and_scale_and_knows_strangers():
    torch.manual_seed(0)
    a, b = torch.randn(400, 8), torch.randn(400, 8)
    turned = a @ torch.linalg.qr(torch.randn(8, 8))[0] * 3 + 1
    assert mlps.cka(a, turned) == pytest.approx(1)
    assert mlps.cka(a, b) < 0.1


def test_exchanging_is_undone(model):
    before = [block.mlp for block in model.blocks]
    with parts.exchanged(model, 0, 1):
        assert [block.mlp for block in model.blocks] == before[::-1]
    assert [block.mlp for block in model.blocks] == before


def test_a_run_of_one_block_is_left_out():
    one = build(tiny(vocab_size=5, n_ctx=4, n_layers=1), 0)
    assert "one block" in dense.one_block(subject(one))
    assert dense.one_block(None) is None
    alone = next(e for e in EXPERIMENTS if e.slug == "alone")
    assert alone.skip(subject(build(tiny(vocab_size=5, n_ctx=2), 0)))
    assert alone.skip(None) is None


def test_untrained_mlps_can_be_exchanged_at_no_cost(briefly):
    """They add nothing yet: the claim that each is of use in its own block must fail."""
    found = claims(dense.show_likeness([dense.measure_likeness(QUICK, 0, None)]))
    assert found["Each MLP is of use in its own block: exchanging two costs"] is False


def test_a_reversal_run_is_compared_on_its_own_sequences(model):
    task = Reversal(4, 11)
    evidence = dense.measure_likeness(QUICK, 0, subject(model, task))
    assert not evidence.own and len(dense.show_likeness([evidence]).claims) == 1


# ---------------------------------------------------------------------------- sharing


def test_a_shared_mlp_is_one_and_counts_once():
    config = tiny(vocab_size=8, n_ctx=4, n_layers=3, d_mlp=16)
    separate, shared = build(config, 0), parts.with_one_mlp(build(config, 0), 16)
    wide = parts.with_one_mlp(build(config, 0), 48)
    assert len({id(block.mlp) for block in shared.blocks}) == 1
    one = sum(p.numel() for p in MLP(config).parameters())
    assert separate.n_parameters - shared.n_parameters == 2 * one
    weights = 2 * 64 * 48
    assert wide.blocks[0].mlp.up.weight.numel() + wide.blocks[0].mlp.down.weight.numel() == weights
    assert 3 * (one - 16 - 64) == weights, "as many weights as three separate ones, biases aside"


def test_only_mlps_learn_facts():
    made = build(tiny(vocab_size=8, n_ctx=1), 0, parts.only_mlps_learn)
    assert {n.split(".")[2] for n, p in made.named_parameters() if p.requires_grad} == {"mlp"}


def test_facts_are_a_fixed_table_and_batches_draw_from_it():
    facts = Facts(32, seed=3)
    keys, values = facts.all()
    table = dict(zip(keys[:, 0].tolist(), values[:, 0].tolist(), strict=True))
    for step in range(3):
        k, v = facts.batch(step, 16)
        assert len(set(k[:, 0].tolist())) == 16
        assert all(table[a] == b for a, b in zip(k[:, 0].tolist(), v[:, 0].tolist(), strict=True))


def test_where_sharing_changes_nothing_the_claims_fail(briefly):
    """Nothing is learned: there is nothing that sharing could lose, or give back."""
    found = claims(dense.show_shared([dense.measure_shared(QUICK, 0, None)]))
    assert list(found.values()) == [False, False]  # the second is 0 / 0


def test_the_same_gradients_would_be_found(monkeypatch):
    """One MLP for all blocks, examined as if they were several: what training added is the same."""
    monkeypatch.setattr(
        dense, "learned_by_heart", lambda budget, seed, variant: mlps.learned_by_heart(budget, seed, "shared")
    )
    monkeypatch.setattr(dense, "same_start", lambda model: parts.with_mlps(model, "shared"))
    monkeypatch.setattr(mlps, "facts_of", lambda budget, seed: Facts(64, seed))
    mlps.learned_by_heart.cache_clear()
    finding = dense.show_parting([dense.measure_parting(QUICK, 0, None)])
    mlps.learned_by_heart.cache_clear()
    assert list(claims(finding).values()) == [False]


def test_the_claims_hold_for_what_is_trained_here():
    """The experiments as they are, with one seed."""
    found = {}
    for experiment in EXPERIMENTS:
        found |= claims(experiment.show([experiment.measure(QUICK, 0, None)]))
    assert len(found) == 8 and all(found.values()), found
    assert isinstance(mlps.learned_by_heart(QUICK, 0), Transformer)
