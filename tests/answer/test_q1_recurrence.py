"""Question 1: order, recurrence and memory. Each claim holds, and fails where its mechanism is broken."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import tiny_model
from tformer.answer.claims import QUICK
from tformer.answer.lab import Subject, build, n_parameters
from tformer.answer.q1_recurrence import memory, positions, recurrence
from tformer.answer.q1_recurrence.lstm import LSTM, LSTMConfig, as_large_as, build_lstm, size
from tformer.answer.q1_recurrence.memory import Recall
from tformer.answer.q1_recurrence.positions import Previous, Rotary, Unmasked, Variant, with_attention
from tformer.answer.q1_recurrence.recurrence import longest_chain, reach
from tformer.kv_cache import KVCache
from tformer.model import CausalSelfAttention, causal_mask

OLD = 3  # what a short-sighted model still sees


class ShortSighted(CausalSelfAttention):
    """Sees itself and the `OLD` tokens before."""

    def attend(self, q, k, v, mask):
        return super().attend(q, k, v, mask & causal_mask(*mask.shape[-2:]).triu(-OLD))


class Forgetful(LSTM):
    """Starts afresh at every token: no recurrence."""

    def carry(self, ids, state=None):
        hidden, state = self.lstm(self.embed(ids).flatten(0, 1)[:, None])
        return self.unembed(hidden).view(*ids.shape, -1), state


def forgetful(config, seed):
    torch.manual_seed(seed)
    return Forgetful(config)


def short_sighted(config, seed, change=lambda model: None):
    model = build(config, seed, change)
    with_attention(ShortSighted)(model)
    return model


def verdicts(finding):
    return [claim.passed for claim in finding.claims]


def subject(**changes):
    return Subject(None, tiny_model(**changes), None, None, None)


# ---------------------------------------------------------------------------- the LSTM


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_lstm_is_its_equations(n_layers):
    model = build_lstm(LSTMConfig(7, 5, 6, n_layers), 0)
    ids = torch.randint(7, (3, 9))
    state = [(torch.zeros(3, 6), torch.zeros(3, 6)) for _ in range(n_layers)]
    for t in range(9):
        x = model.embed.weight[ids[:, t]]
        for layer, (h, c) in enumerate(state):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w, u, b, d = (getattr(model.lstm, f"{name}_l{layer}") for name in names)
            i, f, g, o = (x @ w.T + b + h @ u.T + d).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            state[layer] = x, c
    expected = x @ model.unembed.weight.T + model.unembed.bias
    assert torch.allclose(model(ids)[:, -1], expected, atol=1e-5)


def test_the_forget_bias_is_added_to_the_forget_gates_alone():
    plain, biased = (build_lstm(LSTMConfig(7, 5, 6, 2, b), 0).state_dict() for b in (0.0, 4.0))
    for name, before in plain.items():
        moved = torch.zeros_like(before)
        if name.startswith("lstm.bias_hh"):
            moved[6:12] = 4.0  # after the 6 input gates
        assert torch.allclose(biased[name] - before, moved, atol=1e-6), name


@pytest.mark.parametrize("config", [LSTMConfig(7, 5, 6), LSTMConfig(11, 16, 8, 3)])
def test_size_counts_every_parameter(config):
    assert size(config) == n_parameters(build_lstm(config, 0))


@pytest.mark.parametrize("n", [26_000, 101_440])
def test_models_that_are_compared_are_of_one_size(n):
    assert size(as_large_as(n, 10, 64)) == pytest.approx(n, rel=0.02)


def test_a_carried_state_stands_for_all_that_was_read():
    model = build_lstm(LSTMConfig(7, 5, 6, 2), 0)
    ids = torch.randint(7, (2, 9))
    first, state = model.carry(ids[:, :4])
    second, _ = model.carry(ids[:, 4:], state)
    assert torch.allclose(torch.cat((first, second), dim=1), model(ids), atol=1e-6)


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
    with_attention(Rotary)(model)
    assert torch.allclose(
        model.blocks[0].attn(x, mask), attn.out(heads.transpose(1, 2).flatten(2)), atol=1e-5
    )


def test_unmasked_attention_sees_everything():
    model = tiny_model(positions="none")
    ids = torch.randint(23, (1, 9))
    with_attention(Unmasked)(model)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 23
    assert not torch.allclose(model(ids)[:, 0], model(changed)[:, 0])


def test_a_replaced_part_keeps_the_weights():
    model = tiny_model()
    ids = torch.randint(23, (1, 9))
    before = model(ids)
    with_attention(CausalSelfAttention)(model)
    assert torch.equal(model(ids), before)


# ---------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    "run", [None, {}, {"n_layers": 1}, {"family": "nanochat"}, {"positions": "sinusoidal"}], ids=str
)
def test_only_the_mask_of_two_layers_sees_order(run):
    evidence = positions.measure_permutation(QUICK, 0, None if run is None else subject(**run))
    assert verdicts(positions.show_permutation([evidence])) == [True, True, True]
    assert evidence.with_positions > 1e-3
    assert evidence.one_token < 1e-12


def test_a_mask_in_the_first_model_or_none_in_the_others_is_seen(monkeypatch):
    masked, unmasked = positions.Timeless, positions.Unmasked
    timeless = positions.timeless

    def swapped(model, n_layers, kind=masked):
        return timeless(model, n_layers, masked if kind is unmasked else unmasked)

    monkeypatch.setattr(positions, "timeless", swapped)
    evidence = positions.measure_permutation(QUICK, 0, None)
    assert verdicts(positions.show_permutation([evidence])) == [False, True, False]


def test_positions_left_in_are_seen(monkeypatch):
    monkeypatch.setattr(positions, "with_attention", lambda kind: lambda model: None)
    evidence = positions.measure_permutation(QUICK, 0, subject(family="nanochat"))
    assert verdicts(positions.show_permutation([evidence]))[:2] == [False, False]


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


def test_positions_and_the_mask_of_two_layers_solve_what_needs_order():
    evidence = positions.measure_order(QUICK, 0, None)
    assert verdicts(positions.show_order([evidence])) == [True, True, True]
    assert evidence.accuracy["none, 1 layer"] < evidence.guessing + 0.03, "nothing can beat it"
    assert evidence.accuracy["none, 2 layers, no mask"] < evidence.guessing


def test_the_verdicts_on_order_follow_the_parts(monkeypatch):
    broken = {
        "none, 1 layer": Variant("none, 1 layer", "learned", 1),
        "rotary, 1 layer": Variant("rotary, 1 layer", "none", 1),
        "none, 2 layers": Variant("none, 2 layers", "none", 2, with_attention(Unmasked)),
    }
    monkeypatch.setattr(positions, "VARIANTS", [broken.get(v.name, v) for v in positions.VARIANTS[:5]])
    evidence = positions.measure_order(QUICK, 0, None)
    assert verdicts(positions.show_order([evidence])) == [False, False, False]


# ---------------------------------------------------------------------------- steps


def test_the_longest_chain_is_counted_over_all_paths():
    x = torch.ones(3, requires_grad=True)
    y = x.tanh().tanh().tanh()
    assert longest_chain(y) == 4  # and the leaf
    assert longest_chain(x.exp() + y) == 5
    assert longest_chain((x + y) * (x - y).tanh()) == 7


def test_only_an_lstms_chain_grows():
    evidence = recurrence.measure_steps(QUICK, 0, None)
    assert verdicts(recurrence.show_steps([evidence])) == [True, True]
    assert all(t > 0 for t in (*evidence.transformer_ms, *evidence.lstm_ms))


class Looping(nn.Module):
    """A transformer that is fed one position after the other."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids):
        cache = KVCache(self.config, len(ids), self.model.embed.weight)
        return torch.cat([self.model(ids[:, t : t + 1], cache) for t in range(ids.shape[1])], dim=1)


def test_a_transformer_that_loops_and_an_lstm_that_does_not_are_found_out(monkeypatch):
    monkeypatch.setattr(recurrence, "build_lstm", forgetful)
    monkeypatch.setattr(recurrence, "step_ms", lambda *args: 1.0)
    looping = replace(subject(), model=Looping(tiny_model()))
    evidence = recurrence.measure_steps(QUICK, 0, looping)
    assert verdicts(recurrence.show_steps([evidence])) == [False, False]


# ---------------------------------------------------------------------------- gradients


def test_reach_is_the_norm_of_the_jacobian():
    model = tiny_model().double()
    ids = torch.randint(23, (1, 6))
    x = model.embed(ids).detach()

    def last(x):
        hook = model.embed.register_forward_hook(lambda *_: x)
        logits = model(ids)[0, -1]
        hook.remove()
        return logits

    norms = torch.autograd.functional.jacobian(last, x).square().sum((0, 1, 3)).sqrt().flip(0)
    torch.manual_seed(0)
    shares = torch.tensor(reach(model, ids, draws=500), dtype=torch.float64)
    assert torch.allclose(shares, norms / norms.sum(), rtol=0.15)


def test_a_gradient_reaches_far_through_attention_and_open_gates():
    evidence = recurrence.measure_reach(QUICK, 0, subject())
    assert verdicts(recurrence.show_reach([evidence])) == [True, True, True]
    assert len(evidence.shares["the run"]) == 16


def test_short_sight_and_other_gates_change_the_verdicts_on_reach(monkeypatch):
    monkeypatch.setattr(recurrence, "build", short_sighted)
    monkeypatch.setattr(recurrence, "FORGET_BIASES", {recurrence.CLOSED: 4.0, recurrence.OPEN: 0.0})
    evidence = recurrence.measure_reach(QUICK, 0, None)
    assert verdicts(recurrence.show_reach([evidence])) == [False, False, False]


# ---------------------------------------------------------------------------- what is carried


@pytest.mark.parametrize(
    "run", [None, {}, {"family": "nanochat", "n_heads": 4, "n_kv_heads": 2}, {"n_ctx": 8}], ids=str
)
def test_the_cache_grows_by_its_formula_and_is_enough(run):
    examined = None if run is None else subject(**run)
    evidence = recurrence.measure_carried(QUICK, 0, examined)
    assert verdicts(recurrence.show_carried([evidence])) == [True, True, True]
    if examined:
        c = examined.model.config
        per_token = 2 * c.n_layers * c.n_kv_heads * c.d_head * 4  # bytes of float32
        assert evidence.cache_bytes == tuple(per_token * n for n in evidence.lengths)
    assert set(evidence.state_bytes) == {2 * 1 * 128 * 4}


def test_a_cache_without_its_first_token_is_not_enough(monkeypatch):
    kept = recurrence._kept

    def less(model, ids):
        found = kept(model, ids)
        found[..., 0, :] = 0
        return found

    monkeypatch.setattr(recurrence, "_kept", less)
    evidence = recurrence.measure_carried(QUICK, 0, subject())
    assert verdicts(recurrence.show_carried([evidence])) == [False, True, True]


def test_a_state_that_grows_and_a_cache_that_does_not_are_found_out():
    evidence = recurrence.measure_carried(QUICK, 0, subject())
    swapped = replace(evidence, cache_bytes=evidence.state_bytes, state_bytes=evidence.cache_bytes)
    assert verdicts(recurrence.show_carried([swapped])) == [True, False, False]


@pytest.mark.parametrize("n_ctx, left_out", [(1, 3), (2, 3), (3, 1), (7, 1), (8, 0)])
def test_runs_that_are_too_short_are_left_out_with_a_reason(n_ctx, left_out):
    examined = Subject(None, tiny_model(n_ctx=n_ctx), None, None, None)
    every = (*positions.EXPERIMENTS, *recurrence.EXPERIMENTS, *memory.EXPERIMENTS)
    assert sum(bool(e.skip(examined)) for e in every) == left_out
    assert not any(e.skip(None) for e in every)
    for experiment in (positions.EXPERIMENTS[0], recurrence.EXPERIMENTS[2]):
        if not experiment.skip(examined):
            experiment.show([experiment.measure(QUICK, 0, examined)])


# ---------------------------------------------------------------------------- memory


def test_only_the_mark_asks_for_memory():
    inputs, targets = Recall(5).fresh(50)
    assert (inputs[:, -1] == 8).all() and (targets[:, -1] == inputs[:, 0]).all()
    assert (inputs[:, :-1] == targets[:, :-1]).all() and inputs[:, :-1].max() == 7


def test_recall_is_learned_far_by_attention_and_near_by_an_lstm():
    evidence = memory.measure_recall(QUICK, 0, None)
    assert verdicts(memory.show_recall([evidence])) == [True, True, True]


def test_neither_short_sight_nor_a_lack_of_recurrence_can_recall(monkeypatch):
    monkeypatch.setattr(memory, "build", short_sighted)
    monkeypatch.setattr(memory, "build_lstm", forgetful)
    evidence = memory.measure_recall(QUICK, 0, None)
    assert verdicts(memory.show_recall([evidence])) == [False, False, True]
    assert max(evidence.accuracy["transformer"]) < 0.3 and max(evidence.share["transformer"]) == 0
    learned = dict.fromkeys(evidence.accuracy, (1.0, 1.0))
    assert verdicts(memory.show_recall([replace(evidence, accuracy=learned)])) == [True, True, False]


def test_reversal_is_learned_at_every_distance_by_attention_first():
    evidence = memory.measure_reversal(QUICK, 0, None)
    assert verdicts(memory.show_reversal([evidence])) == [True, True]
    n, other = evidence.parameters["transformer"], evidence.parameters["LSTM"]
    assert other == pytest.approx(n, rel=0.02)
    equal = dict.fromkeys(evidence.accuracy, evidence.accuracy["transformer"])
    assert verdicts(memory.show_reversal([replace(evidence, accuracy=equal)])) == [True, False]


@pytest.mark.slow
def test_a_transformer_that_does_not_see_far_does_not_reverse(monkeypatch):
    monkeypatch.setattr(memory, "build", short_sighted)
    monkeypatch.setattr(memory, "build_lstm", lambda config, seed: forgetful(LSTMConfig(10, 4, 4), seed))
    evidence = memory.measure_reversal(QUICK, 0, None)
    assert verdicts(memory.show_reversal([evidence])) == [False, True]
    near, far = evidence.accuracy["transformer"][0], evidence.accuracy["transformer"][-1]
    assert near > 0.9 > 0.5 > far
