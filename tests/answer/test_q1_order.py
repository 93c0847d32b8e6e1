"""Question 1, order: each claim holds, and fails where its mechanism is broken."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.answer.subjects import subject
from tests.answer.verdicts import refuted, shown, verdicts
from tests.conftest import tiny_model
from tformer.answer.experiment import QUICK
from tformer.answer.parts import Rotary, Unmasked
from tformer.answer.q1_recurrence import order
from tformer.answer.q1_recurrence.order import OrderVariant
from tformer.answer.tasks import Previous
from tformer.model import CausalSelfAttention, causal_mask
from tformer.watch import put_attention

# ---------------------------------------------------------------------------- parts put in


def test_rotary_in_gpt2_is_rotation_by_complex_numbers():
    model = tiny_model(positions="none")
    attn, x = model.blocks[0].attn, torch.randn(2, 9, 16)
    mask = causal_mask(9, 9)[None, None]
    q, k, v = attn.qkv(x).unflatten(-1, (6, 8)).transpose(1, 2).split((2, 2, 2), dim=1)
    angle = torch.arange(9)[:, None] * 10000.0 ** (-torch.arange(4) / 4)

    def turned(t):
        z = torch.complex(t[..., :4], t[..., 4:]) * torch.polar(torch.ones_like(angle), -angle)
        return torch.cat((z.real, z.imag), dim=-1)

    heads = F.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=mask)
    put_attention(model, Rotary)
    assert torch.allclose(
        model.blocks[0].attn(x, mask), attn.out(heads.transpose(1, 2).flatten(2)), atol=1e-5
    )


def test_unmasked_attention_sees_everything():
    model = tiny_model(positions="none")
    ids = torch.randint(23, (1, 9))
    put_attention(model, Unmasked)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 23
    assert not torch.allclose(model(ids)[:, 0], model(changed)[:, 0])


def test_a_replaced_part_keeps_the_weights():
    model = tiny_model()
    ids = torch.randint(23, (1, 9))
    before = model(ids)
    put_attention(model, CausalSelfAttention)
    assert torch.equal(model(ids), before)


# ---------------------------------------------------------------------------- order

BAG = "Without mask and positions, permuting the inputs permutes the outputs and does nothing else"
ONE_LAYER = "Under the causal mask alone, one layer does not see the order of the earlier tokens"
TWO_LAYERS = "Under the causal mask alone, two layers do"
GUESS = "One layer without positions can only guess"
PLACED = "Sinusoidal, learned and rotary positions each tell it the order"
MASK_ALONE = "From two layers on, the causal mask alone does"


@pytest.mark.parametrize(
    "run", [None, {}, {"n_layers": 1}, {"family": "nanochat"}, {"positions": "sinusoidal"}], ids=str
)
def test_only_the_mask_of_two_layers_sees_order(run):
    evidence = order.measure_permutation(QUICK, 0, None if run is None else subject(**run))
    assert verdicts(shown(order.show_permutation, evidence)) == {BAG: True, ONE_LAYER: True, TWO_LAYERS: True}
    assert evidence.with_positions > 1e-3
    assert evidence.one_token < 1e-12


def test_a_mask_in_the_first_model_or_none_in_the_others_is_seen(monkeypatch):
    masked, unmasked = order.Timeless, order.Unmasked
    timeless = order.timeless

    def swapped(model, n_layers, kind=masked):
        return timeless(model, n_layers, masked if kind is unmasked else unmasked)

    monkeypatch.setattr(order, "timeless", swapped)
    evidence = order.measure_permutation(QUICK, 0, None)
    assert refuted(shown(order.show_permutation, evidence)) == {BAG, TWO_LAYERS}


def test_positions_left_in_are_seen(monkeypatch):
    monkeypatch.setattr(order, "put_attention", lambda model, kind: model)
    evidence = order.measure_permutation(QUICK, 0, subject(family="nanochat"))
    assert refuted(shown(order.show_permutation, evidence)) >= {BAG, ONE_LAYER}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_guessing_is_the_best_without_order(n):
    """By enumeration: of all orders of the tokens before t, each is equally likely."""
    task = Previous(n, seed=1)
    ids, targets = task.fresh(4000)
    right = np.zeros(n)
    for t in range(n):
        best: dict[tuple, Counter] = {}
        for row, target in zip(ids, targets[:, t], strict=True):
            best.setdefault((row[t], tuple(sorted(row[:t]))), Counter())[int(target)] += 1
        right[t] = sum(c.most_common(1)[0][1] for c in best.values()) / len(ids)
    assert right.mean() == pytest.approx(task.guessing, abs=0.03)


def test_the_target_is_the_token_before():
    ids, targets = Previous(6).batch(0, 5)
    assert (targets[:, 1:] == ids[:, :-1]).all() and (targets[:, 0] == ids[:, 0]).all()
    assert (np.sort(ids, axis=1) == np.arange(6)).all()


@pytest.mark.slow
def test_positions_and_the_mask_of_two_layers_solve_what_needs_order():
    evidence = order.measure_order(QUICK, 0, None)
    assert verdicts(shown(order.show_order, evidence)) == {GUESS: True, PLACED: True, MASK_ALONE: True}
    assert evidence.accuracy["none, 1 layer"] < evidence.guessing + 0.03, "nothing can beat it"
    assert evidence.accuracy["none, 2 layers, no mask"] < evidence.guessing


def test_the_verdicts_on_order_follow_the_parts():
    broken = {
        "none, 1 layer": OrderVariant("none, 1 layer", "learned", 1),
        "rotary, 1 layer": OrderVariant("rotary, 1 layer", "none", 1),
        "none, 2 layers": OrderVariant("none, 2 layers", "none", 2, partial(put_attention, kind=Unmasked)),
    }
    variants = [broken.get(v.name, v) for v in order.ORDER_VARIANTS[:5]]
    evidence = order.measure_order(QUICK, 0, None, variants)
    assert refuted(shown(order.show_order, evidence)) == {GUESS, PLACED, MASK_ALONE}
