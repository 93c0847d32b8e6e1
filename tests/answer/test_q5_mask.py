"""Question 5: wrong masks are wrong as said, and each claim falls where its mechanism is taken away."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import FAMILIES, tiny_model
from tformer import model as room
from tformer.answer import parts
from tformer.answer.claims import QUICK
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import (
    Open,
    TooFar,
    TooShort,
    ZeroedAfter,
    adding_attention,
    copy_of,
    start_random,
    with_attention,
)
from tformer.answer.q5_mask import finite, leaks, mask
from tformer.model import CausalSelfAttention
from tformer.text.data import Reversal


def verdicts(finding):
    return [claim.passed for claim in finding.claims]


def qkv(n_query, n_key, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator) for n in (n_query, n_key, n_key))
    return q, k, v, room.causal_mask(n_query, n_key)[None, None]


# ---------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("n_query", [5, 2])
@pytest.mark.parametrize(("kind", "ahead"), [(Open, 99), (TooFar, 1), (TooShort, -1)])
def test_wrong_masks_are_those_of_torch_with_another_diagonal(kind, ahead, n_query):
    q, k, v, causal = qkv(n_query, 5)
    at = torch.arange(5 - n_query, 5)[:, None]
    seen = torch.arange(5)[None] <= at + ahead
    found = kind(tiny()).attend(q, k, v, causal)
    expected = F.scaled_dot_product_attention(q, k, v, seen)
    rows = seen.any(-1)
    torch.testing.assert_close(found[:, :, rows], expected[:, :, rows])
    assert found[:, :, ~rows].isnan().all(), "a query without a key"


def test_weights_zeroed_after_the_softmax_sum_to_less_than_one():
    q, k, _, causal = qkv(5, 5)
    sums = ZeroedAfter(tiny()).attend(q, k, torch.ones(2, 3, 5, 4), causal)
    exact = F.scaled_dot_product_attention(q, k, torch.ones(2, 3, 5, 4))
    assert (sums[:, :, :-1] < 1).all()
    torch.testing.assert_close(sums[:, :, -1], exact[:, :, -1])


@pytest.mark.parametrize("value", [-1.0, -10.0, -1e4])
def test_a_finite_mask_is_torchs_with_that_bias(value):
    q, k, v, causal = qkv(5, 5)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=value * ~causal)
    torch.testing.assert_close(adding_attention(q, k, v, causal, value)[0], expected)


def test_dependence_is_the_jacobian_of_autograd():
    model = build(tiny(vocab_size=9, n_ctx=5, d_model=8), 0, start_random).double()
    ids = torch.randint(9, (1, 5))
    found = mask.dependence(model, ids, seed=3)
    table = model.embed(ids).detach()

    def logits(x):
        x = x + model.position
        for block in model.blocks:
            x = block(x, room.causal_mask(5, 5)[None, None])
        return model.unembed(model.norm_final(x))

    jacobian = torch.autograd.functional.jacobian(logits, table)[0, :, :, 0]  # (t, V, s, C)
    direction = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.einsum("tvsc,v->tsc", jacobian, direction).norm(dim=-1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-15)


def test_prefix_losses_see_no_future_even_in_a_model_with_a_leak():
    model = with_attention(tiny_model(), Open)
    ids = torch.randint(23, (3, 8))
    changed = torch.cat((ids[:, :5], (ids[:, 5:] + 1) % 23), dim=1)
    one, two = (leaks.prefix_losses(model, x[:, :-1], x[:, 1:]) for x in (ids, changed))
    assert torch.equal(one[:, :4], two[:, :4])


def test_unshifted_targets_are_the_inputs():
    task = Reversal(4, 8)
    inputs, targets = leaks.Unshifted(task).batch(3, 5)
    assert (inputs == targets).all() and (inputs == task.batch(3, 5)[0]).all()


def test_one_too_short_spoils_the_first_position_and_then_all():
    assert leaks.nan_positions(1, 0) == [True] + [False] * 6
    assert leaks.nan_positions(2, 0) == [True] * 7, "0 · NaN = NaN"


# ---------------------------------------------------------------------------- claims hold and fall


def everything(n_query, n_key, device=None):
    return torch.ones(n_query, n_key, dtype=torch.bool)


def test_the_triangle_and_what_breaks_it(monkeypatch):
    assert verdicts(mask.show_jacobian([mask.measure_jacobian(QUICK, s, None) for s in (5, 6)])) == [True] * 4
    monkeypatch.setitem(mask.KINDS, mask.NONE, CausalSelfAttention)
    monkeypatch.setitem(mask.KINDS, mask.FAR, CausalSelfAttention)
    monkeypatch.setattr(room, "causal_mask", everything)
    found = mask.show_jacobian([mask.measure_jacobian(QUICK, 5, None)])
    assert verdicts(found) == [False, True, True, False], "all are open now"
    monkeypatch.setitem(mask.KINDS, mask.NONE, TooFar)
    assert not verdicts(mask.show_jacobian([mask.measure_jacobian(QUICK, 5, None)]))[2]


def test_a_position_that_ignores_its_token_is_no_proof_of_causality(monkeypatch):
    blind = np.tril(np.ones((12, 12)), -1)
    blind[0, 0] = 1
    monkeypatch.setattr(mask, "dependence", lambda model, ids, seed: blind)
    assert not verdicts(mask.show_jacobian([mask.measure_jacobian(QUICK, 0, None)]))[1]


def test_one_forward_is_all_prefixes_with_the_mask_alone(monkeypatch):
    assert verdicts(mask.show_prefixes([mask.measure_prefixes(QUICK, 5, None)])) == [True] * 3
    monkeypatch.setattr(room, "causal_mask", everything)
    monkeypatch.setattr(mask, "prefix_losses", lambda model, inputs, targets: torch.zeros(inputs.shape))
    assert verdicts(mask.show_prefixes([mask.measure_prefixes(QUICK, 5, None)])) == [False] * 3


def test_the_reversal_table_tells_masks_apart():
    assert verdicts(leaks.show_leaks([leaks.measure_leaks(QUICK, 5, None)])) == [True] * 6


def test_every_claim_on_leaks_falls_when_the_masks_are_exchanged(monkeypatch):
    monkeypatch.setitem(leaks.KINDS, leaks.RIGHT, Open)
    monkeypatch.setitem(leaks.KINDS, leaks.NONE, CausalSelfAttention)
    monkeypatch.setattr(leaks, "TooShort", CausalSelfAttention)
    monkeypatch.setattr(leaks, "Unshifted", lambda task: task)
    assert verdicts(leaks.show_leaks([leaks.measure_leaks(QUICK, 5, None)])) == [False] * 6


def test_a_finite_mask_is_outbid_and_a_large_one_is_not():
    assert verdicts(finite.show_finite([finite.measure_finite(QUICK, 5, None)])) == [True] * 5


def test_every_claim_on_finite_masks_falls_when_its_part_is_replaced(monkeypatch):
    def writing(q, k, v, seen, value):
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, value)
        weights = scores.softmax(-1)
        return weights @ v, weights

    monkeypatch.setattr(finite, "train", lambda *args, **settings: [])
    monkeypatch.setattr(finite, "attention", lambda q, k, v, seen: finite_attention(q, k, v, seen, -1e4))
    finite_attention = adding_attention
    monkeypatch.setattr(parts, "adding_attention", writing)
    monkeypatch.setattr(finite, "adding_attention", writing)
    monkeypatch.setattr(finite, "VALUES", (-10.0, -100.0, -11.0))
    assert verdicts(finite.show_finite([finite.measure_finite(QUICK, 5, None)])) == [False] * 5


# ---------------------------------------------------------------------------- the run of --run


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(finite, "train", lambda *args, **settings: [])
    monkeypatch.setattr(leaks, "train", lambda *args, **settings: [math.nan])
    model = tiny_model(**changes)
    task = Reversal(4, 23)
    subject = Subject(tmp_path, model, None, task, None)
    assert verdicts(mask.show_jacobian([mask.measure_jacobian(QUICK, 0, subject)])) == [True] * 4
    assert verdicts(mask.show_prefixes([mask.measure_prefixes(QUICK, 0, subject)]))[:2] == [True] * 2
    tables = finite.show_finite([finite.measure_finite(QUICK, 0, subject)]).tables
    assert tables[-1].title.startswith("Put into the run") and len(tables[-1].rows) == 3
    tables = leaks.show_leaks([leaks.measure_leaks(QUICK, 0, subject)]).tables
    assert tables[-1].title == "The run"
    assert all(isinstance(b.attn, CausalSelfAttention) for b in model.blocks), "a run is left as it was"
    assert type(model.blocks[0].attn) is CausalSelfAttention


def test_a_copy_computes_what_the_model_does(model):
    ids = torch.randint(23, (2, 9))
    assert torch.equal(copy_of(model)(ids), model(ids))
