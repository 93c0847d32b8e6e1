"""Question 2, shapes: they are the configuration's; each claim fails where its mechanism is broken."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.answer.verdicts import refuted, shown, verdicts
from tests.conftest import needs_nanochat, tiny_model
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, calls_of, load_subject
from tformer.answer.q2_qkv import alternatives, scale, shapes
from tformer.answer.q2_qkv.experiments import EXPERIMENTS
from tformer.kv_cache import LayerCache
from tformer.model import attention
from tformer.watch import attentions_of, put_formula

ONE_WIDTH = "In every traced call Q and K have one width, K and V one length"
POSITIONS = (
    "n is positions, not vocabulary: with fewer positions just the query and key axes change, with 7 more "
    "tokens no axis does"
)
EXISTS = "Attention exists just where Q and K share d_k and K and V their length; V's width is free"
ONE_QUERY = "One query on cached keys gives what the last of all queries gives"
ALL_HOLD = dict.fromkeys((ONE_WIDTH, POSITIONS, EXISTS, ONE_QUERY), True)


def test_slugs_are_unique_and_the_effort_has_seeds():
    assert [e.slug for e in EXPERIMENTS] == ["shapes", "scale", "kin", "trained", "cost"]
    assert all(e.quick_seeds >= 2 for e in EXPERIMENTS)


# ---------------------------------------------------------------------------- the trace


def test_what_is_recorded_is_what_attention_saw():
    model = tiny_model()
    ids = torch.arange(10)[None]
    calls = calls_of(model, ids)
    assert len(calls) == model.config.n_layers
    for call in calls:
        assert torch.equal(attention(call.q, call.k, call.v, call.mask)[0], call.output)
    assert model.blocks[0].attn.formula is None


def test_a_grown_vocabulary_changes_no_logit_and_is_undone():
    model = tiny_model(tied=True)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids)
        with shapes.grown_vocabulary(model, 5):
            assert torch.equal(model(ids)[..., :23], before) and model(ids).shape[-1] == 28
        assert torch.equal(model(ids), before)
    assert model.unembed.weight is model.embed.weight


@pytest.mark.parametrize("kind", [{}, {"family": "nanochat", "n_heads": 4, "n_kv_heads": 2}], ids=str)
def test_shapes_are_those_of_the_configuration(kind):
    model = tiny_model(**kind)
    c = model.config
    found = shapes.trace(model, torch.arange(24).view(2, 12) % 23, "it")
    assert found.whole["Q"] == found.whole["K"] == found.whole["V"] == (2, c.n_heads, 12, c.d_head)
    assert found.whole["weights"] == (2, c.n_heads, 12, 12)
    assert found.step["Q"] == found.step["output"] == (2, c.n_heads, 1, c.d_head)
    assert found.step["weights"] == (2, c.n_heads, 1, 12)
    assert found.cached["K"] == found.cached["V"] == (2, c.n_kv_heads, 12, c.d_head)
    assert found.different_key_heads == c.n_kv_heads
    assert found.calls == 4 * c.n_layers and found.moved == 0


def test_shapes_hold_here():
    assert verdicts(shown(shapes.show_shapes, shapes.measure_shapes(QUICK, 0, None))) == ALL_HOLD


def test_an_output_of_another_width_is_irregular():
    found = {"Q": (2, 4, 5, 8), "K": (2, 4, 6, 8), "V": (2, 4, 6, 3), "weights": (2, 4, 5, 6)}
    assert shapes.is_regular(found | {"output": (2, 4, 5, 3)})
    assert not shapes.is_regular(found | {"output": (2, 4, 5, 8)})
    assert not shapes.is_regular(found | {"output": (2, 4, 5, 3), "K": (2, 4, 6, 7)})
    assert not shapes.is_regular(found | {"output": (2, 4, 5, 3), "V": (2, 4, 5, 3)})


class Nowhere(torch.nn.Module):
    """Takes an output of any shape, and adds nothing."""

    def __init__(self, d_model):
        super().__init__()
        self.d_model = d_model

    def forward(self, x):
        return x.new_zeros(*x.shape[:2], self.d_model)


def refuted_by(monkeypatch, formula):
    """The claims that models refute whose formula gives outputs of another shape than it should."""

    def unchecked(attn, q, k, v, mask):
        return attn.formula(q, k, v, mask, 0.0)[0]

    def broken(config, seed):
        model = build(config, seed)
        for attn in attentions_of(model):
            attn.attend, attn.out = partial(unchecked, attn), Nowhere(config.d_model)
        return put_formula(model, formula)

    monkeypatch.setattr(shapes, "build", broken)
    return refuted(shown(shapes.show_shapes, shapes.measure_shapes(QUICK, 0, None)))


def test_a_narrower_output_refutes_the_shapes(monkeypatch):
    def narrow(q, k, v, mask, dropout):
        return attention(q, k, v[..., :-1], mask)

    assert ONE_WIDTH in refuted_by(monkeypatch, narrow)


def test_a_width_that_follows_the_positions_refutes_n(monkeypatch):
    def padded(q, k, v, mask, dropout):
        output, weights = attention(q, k, v, mask)
        return torch.cat((output, torch.zeros(*q.shape[:3], k.shape[2])), dim=-1), weights

    assert POSITIONS in refuted_by(monkeypatch, padded)


def test_a_cache_that_forgets_refutes_the_step(monkeypatch):
    extend = LayerCache.extend

    def forgetful(self, k, v):
        keys, values = extend(self, k, v)
        return keys * 0 if k.shape[2] == 1 else keys, values

    monkeypatch.setattr(LayerCache, "extend", forgetful)
    assert refuted(shown(shapes.show_shapes, shapes.measure_shapes(QUICK, 0, None))) == {ONE_QUERY}


def test_an_attention_that_takes_any_widths_refutes_the_rule():
    evidence = shapes.measure_shapes(QUICK, 0, None)

    def lenient(q, k, v, mask=None):
        width = min(q.shape[-1], k.shape[-1])
        return attention(q[..., :width], k[..., :width], v, mask)

    _, possible, wrong = shapes.combinations(lenient)
    assert possible == 16
    assert EXISTS in refuted(shown(shapes.show_shapes, replace(evidence, wrong=wrong)))


# ---------------------------------------------------------------------------- runs of others


@pytest.mark.parametrize("kind", ["gpt2", "nanochat"])
def test_directories_that_transformers_saved_are_examined(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_positions=12, n_embd=8, n_layer=2, n_head=2, **ends)
        theirs, key_heads = transformers.GPT2LMHeadModel(config), 2
    else:
        needs_nanochat()
        config = transformers.NanoChatConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=12,
            pad_token_id=0,
            **ends,
        )
        theirs, key_heads = transformers.NanoChatForCausalLM(config), 1
    theirs.save_pretrained(tmp_path)
    subject = load_subject(tmp_path)
    traced = shapes.measure_shapes(QUICK, 0, subject)
    assert len(traced.traces) == 1 and traced.traces[0].cached["K"][1] == key_heads
    assert traced.traces[0].different_key_heads == key_heads
    assert verdicts(shown(shapes.show_shapes, traced)) == ALL_HOLD
    sharpness = scale.measure_scale(QUICK, 0, subject)
    assert list(sharpness.run) == ["fresh, as wide", "layer 1", "layer 2"]
    assert list(verdicts(shown(scale.show_scale, sharpness)).values()) == [True] * 4
    kin = alternatives.measure_kin(QUICK, 0, subject)
    assert any(name.startswith("bilinear") for name in kin.identities) == (kind == "gpt2")
    assert list(verdicts(shown(alternatives.show_kin, kin)).values()) == [True] * 3


def test_a_context_of_one_position_is_left_out_with_a_reason(tmp_path):
    subject = type("Run", (), {"model": tiny_model(n_ctx=1)})()
    experiment = next(e for e in EXPERIMENTS if e.slug == "shapes")
    assert "1 position," in experiment.skip(subject)
    assert experiment.skip(None) is None
