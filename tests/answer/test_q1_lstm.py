"""The LSTM of question 1 is what its equations say, of the size that is asked for."""

import pytest
import torch

from tformer.answer.lab import n_parameters
from tformer.answer.q1_recurrence.lstm import LSTMConfig, as_large_as, build_lstm, size


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
