"""Question 3, shared: each claim holds, and fails where its mechanism is broken."""

import pytest

from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer import parts
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, tiny
from tformer.answer.q3_mlps import facts, shared
from tformer.answer.q3_mlps.experiments import EXPERIMENTS
from tformer.answer.tasks import Facts
from tformer.model import MLP, Transformer

FEWER = "One MLP for all blocks, of the same width, remembers fewer facts than separate ones"
GIVE_BACK = "As many parameters, shared, give back most of what sharing lost"


# ---------------------------------------------------------------------------- sharing


def test_a_shared_mlp_is_one_and_counts_once():
    config = tiny(vocab_size=8, n_ctx=4, n_layers=3, d_mlp=16)
    separate, narrow = build(config, 0), parts.with_one_mlp(build(config, 0), 16)
    wide = parts.with_one_mlp(build(config, 0), 48)
    assert len({id(block.mlp) for block in narrow.blocks}) == 1
    one = sum(p.numel() for p in MLP(config).parameters())
    assert separate.n_parameters - narrow.n_parameters == 2 * one
    weights = 2 * 64 * 48
    assert wide.blocks[0].mlp.up.weight.numel() + wide.blocks[0].mlp.down.weight.numel() == weights
    assert 3 * (one - 16 - 64) == weights, "as many weights as three separate ones, biases aside"


def test_where_sharing_changes_nothing_the_claims_fail(untrained):
    """Nothing is learned: there is nothing that sharing could lose, or give back."""
    evidence = shared.measure_shared(QUICK, 0, None)
    assert refuted(shown(shared.show_shared, evidence)) == {FEWER, GIVE_BACK}  # the second is 0 / 0


@pytest.mark.slow
def test_the_claims_hold_for_what_is_trained_here():
    """The experiments as they are, with one seed."""
    found = {}
    for experiment in EXPERIMENTS:
        found |= verdicts(shown(experiment.show, experiment.measure(QUICK, 0, None)))
    assert len(found) == 8 and all(found.values()), found
    assert isinstance(facts.learned_by_heart(QUICK, 0), Transformer)


# ---------------------------------------------------------------------------- facts


def test_only_mlps_learn_facts():
    made = build(tiny(vocab_size=8, n_ctx=1), 0, parts.only_mlps_learn)
    assert {n.split(".")[2] for n, p in made.named_parameters() if p.requires_grad} == {"mlp"}


def test_facts_are_a_fixed_table_and_batches_draw_from_it():
    task = Facts(32, seed=3)
    keys, values = task.all()
    table = dict(zip(keys[:, 0].tolist(), values[:, 0].tolist(), strict=True))
    for step in range(3):
        k, v = task.batch(step, 16)
        assert len(set(k[:, 0].tolist())) == 16
        assert all(table[a] == b for a, b in zip(k[:, 0].tolist(), v[:, 0].tolist(), strict=True))
