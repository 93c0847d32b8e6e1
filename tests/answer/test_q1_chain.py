"""Question 1, chain: each claim holds, and fails where its mechanism is broken."""

from dataclasses import replace

import torch
from torch import nn

from tests.answer.subjects import forgetful, short_sighted, subject
from tests.answer.verdicts import refuted, shown, verdicts
from tests.conftest import tiny_model
from tformer.answer.experiment import QUICK
from tformer.answer.q1_recurrence import chain
from tformer.answer.q1_recurrence.chain import longest_chain, reach
from tformer.kv_cache import KVCache

NOTHING_ADDED = "A token more adds nothing to the chain of a transformer"
LENGTHENED = "A token more lengthens that of an LSTM"
NOT_FARTHER = "Through attention, 64 tokens are not farther than 1 (ratio of gradients)"
VANISHES = "Through an LSTM as torch initialises it, the gradient vanishes"
NO_LAW = "That is no law: through one whose forget gates start open it does not"

# ---------------------------------------------------------------------------- steps


def test_the_longest_chain_is_counted_over_all_paths():
    x = torch.ones(3, requires_grad=True)
    y = x.tanh().tanh().tanh()
    assert longest_chain(y) == 4  # and the leaf
    assert longest_chain(x.exp() + y) == 5
    assert longest_chain((x + y) * (x - y).tanh()) == 7


def test_only_an_lstms_chain_grows():
    evidence = chain.measure_steps(QUICK, 0, None)
    assert verdicts(shown(chain.show_steps, evidence)) == {NOTHING_ADDED: True, LENGTHENED: True}
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
    monkeypatch.setattr(chain, "build_lstm", forgetful)
    monkeypatch.setattr(chain, "step_ms", lambda *args: 1.0)
    looping = replace(subject(), model=Looping(tiny_model()))
    evidence = chain.measure_steps(QUICK, 0, looping)
    assert refuted(shown(chain.show_steps, evidence)) == {NOTHING_ADDED, LENGTHENED}


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
    evidence = chain.measure_reach(QUICK, 0, subject())
    assert verdicts(shown(chain.show_reach, evidence)) == {NOT_FARTHER: True, VANISHES: True, NO_LAW: True}
    assert len(evidence.shares["the run"]) == 16


def test_short_sight_and_other_gates_change_the_verdicts_on_reach(monkeypatch):
    monkeypatch.setattr(chain, "build", short_sighted)
    evidence = chain.measure_reach(QUICK, 0, None, forget_biases={chain.CLOSED: 4.0, chain.OPEN: 0.0})
    assert refuted(shown(chain.show_reach, evidence)) == {NOT_FARTHER, VANISHES, NO_LAW}
