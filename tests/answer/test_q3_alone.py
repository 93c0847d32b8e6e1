"""Question 3, alone: each claim holds, and fails for a model that is broken where it looks."""

import pytest
import torch
from torch import nn

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, tiny
from tformer.answer.q3_mlps import alone
from tformer.answer.q3_mlps.experiments import EXPERIMENTS

STAYS = "The MLP's output at other positions does not move"
CARRIES = "Attention carries the change to later positions"


@pytest.fixture
def model():
    return random_model(vocab_size=11, n_ctx=12)


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


def refuted_by(model):
    """The claims that this run refutes."""
    return refuted(shown(alone.show_alone, alone.measure_alone(QUICK, 0, subject(model))))


def test_an_mlp_moves_one_position_and_attention_many(model):
    evidence = alone.measure_alone(QUICK, 0, subject(model))
    assert verdicts(shown(alone.show_alone, evidence)) == {STAYS: True, CARRIES: True}


def test_an_mlp_that_mixes_positions_is_found(model):
    model.blocks[1].mlp = Mixing(model.blocks[1].mlp)
    assert refuted_by(model) == {STAYS}


def test_an_attention_that_does_not_communicate_is_found(model):
    for block in model.blocks:
        block.attn = Deaf()
    assert refuted_by(model) == {CARRIES}


def test_positions_with_rotary_angles_are_measured_too():
    made = build(tiny(family="nanochat", vocab_size=11, n_ctx=12), 0)
    with torch.no_grad():
        for block in made.blocks:
            block.attn.out.weight.normal_(std=0.1)
            block.mlp.down.weight.normal_(std=0.1)
    assert refuted_by(made) == set()


def test_a_run_of_two_positions_is_left_out():
    experiment = next(e for e in EXPERIMENTS if e.slug == "alone")
    assert experiment.skip(subject(build(tiny(vocab_size=5, n_ctx=2), 0)))
    assert experiment.skip(None) is None
