"""Question 6: heads add up, those that look at the mirrored place carry the reversal, and no others."""

import pytest
import torch
from torch import Tensor, nn

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, verdicts
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.lab import accuracies, build, halves, tiny, train
from tformer.answer.q6_heads import removed
from tformer.text.data import Reversal
from tformer.watch import without_heads

SUM = "The output of attention is the sum of what its 4 heads add, each alone"
LOOKS = "A head looks at the mirrored place: the anti-diagonal"
LOST = "Without the heads that look there the reversal is lost"
KEPT = "Without all the other heads, set to their mean, it is kept"

# ---------------------------------------------------------------------------- a sum over heads


class Bent(nn.Linear):
    """An output projection that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_heads_add_up(family):
    model = random_model(family=family, n_kv_heads=2 if family == "nanochat" else 0)
    finding = removed.show_sum(Seeds([removed.measure_sum(QUICK, 0, subject(model))]))
    assert verdicts(finding) == {SUM: True}


def test_heads_behind_a_bent_projection_do_not_add_up():
    model = random_model()
    for block in model.blocks:
        bent = Bent(32, 32)
        bent.load_state_dict(block.attn.out.state_dict())
        block.attn.out = bent
    finding = removed.show_sum(Seeds([removed.measure_sum(QUICK, 0, subject(model))]))
    assert verdicts(finding) == {SUM: False}


# ---------------------------------------------------------------------------- removing heads


def test_a_head_without_output_is_one_whose_projection_is_zero():
    model, ids = random_model(), torch.randint(13, (3, 20))
    with torch.inference_mode(), without_heads(model, [(1, 2)]):
        without = model(ids)
    usual = model(ids)
    with torch.no_grad():
        model.blocks[1].attn.out.weight[:, 16:24] = 0  # d_head 8
        torch.testing.assert_close(without, model(ids))
    assert not torch.allclose(usual, without)


def test_mean_ablation_leaves_one_sequence_alone_and_is_undone():
    model, ids = random_model(), torch.randint(13, (1, 20))
    usual = model(ids)
    with without_heads(model, [(0, 0), (1, 3)], mean=True):
        torch.testing.assert_close(model(ids), usual)
    with without_heads(model, [(0, 0)]):
        assert not torch.allclose(model(ids), usual)
    assert torch.equal(model(ids), usual)


# ---------------------------------------------------------------------------- the mirror


@pytest.fixture(scope="module")
def reverser():
    """One block of two heads that reverses."""
    task = Reversal(4, 6, seed=1)
    model = build(tiny(vocab_size=6, n_ctx=task.n_ctx, n_layers=1, n_heads=2, d_model=32), 0)
    train(model, task, 120, 0, batch_size=32, lr=6e-3)
    assert halves(accuracies(model, task), task)[1] > 0.95
    return model, task


def test_the_mirror_is_found_on_a_run_that_reverses(reverser):
    model, task = reverser
    evidence = removed.measure_mirror(QUICK, 0, subject(model, task))
    assert not evidence.own
    found = verdicts(removed.show_mirror(Seeds([evidence])))
    assert found[LOOKS] and found[LOST]


def test_a_run_that_does_not_reverse_is_reported_without_a_claim():
    task = Reversal(4, 6)
    model = build(tiny(vocab_size=6, n_ctx=task.n_ctx), 0)
    finding = removed.show_mirror(Seeds([removed.measure_mirror(QUICK, 0, subject(model, task))]))
    assert not finding.claims and "does not reverse" in finding.said


def test_heads_that_do_not_look_at_the_mirror_fail_the_claims(reverser, monkeypatch):
    """The shares of a uniform head in place of the measured ones: then nobody looks there."""
    model, task = reverser
    real = removed.mirror

    def blind(*args, **settings):
        result = real(*args, **settings)
        blurred = [type(h)(h.layer, h.head, result.uniform, h.by_query) for h in result.heads]
        return type(result)(blurred, result.uniform, result.n)

    monkeypatch.setattr(removed, "mirror", blind)
    finding = removed.show_mirror(Seeds([removed.measure_mirror(QUICK, 0, subject(model, task))]))
    assert refuted(finding) == {LOOKS, LOST, KEPT}


def test_the_claims_hold_for_what_is_trained_here():
    finding = removed.show_mirror(Seeds([removed.measure_mirror(QUICK, 7, None)]))
    assert verdicts(finding) == {LOOKS: True, LOST: True, KEPT: True}
