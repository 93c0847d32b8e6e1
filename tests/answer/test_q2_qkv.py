"""Question 2: the experiments run, agree with arithmetic; each claim fails where its mechanism is broken."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.conftest import needs_nanochat, tiny_model
from tformer.answer import trace
from tformer.answer.claims import QUICK
from tformer.answer.lab import build, load_subject, tiny
from tformer.answer.q2_qkv import alternatives, qkv, score_cost, scores, sharpness
from tformer.kv_cache import LayerCache
from tformer.model import attention
from tformer.text.data import Reversal


def verdicts(finding):
    return [claim.passed for claim in finding.claims]


def test_slugs_are_unique_and_the_budget_has_seeds():
    assert [e.slug for e in qkv.EXPERIMENTS] == ["shapes", "scale", "kin", "trained", "cost"]
    assert all(e.seeds[0] >= 2 for e in qkv.EXPERIMENTS)


# ---------------------------------------------------------------------------- the trace


def test_what_is_recorded_is_what_attention_saw():
    model = tiny_model()
    ids = torch.arange(10)[None]
    calls = trace.calls_of(model, ids)
    assert len(calls) == model.config.n_layers
    for call in calls:
        assert torch.equal(attention(call.q, call.k, call.v, call.mask)[0], call.output)
    assert "attend" not in vars(model.blocks[0].attn) and not model.blocks[0].attn.qkv._forward_hooks


def test_a_grown_vocabulary_changes_no_logit_and_is_undone():
    model = tiny_model(tied=True)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids)
        with trace.grown_vocabulary(model, 5):
            assert torch.equal(model(ids)[..., :23], before) and model(ids).shape[-1] == 28
        assert torch.equal(model(ids), before)
    assert model.unembed.weight is model.embed.weight


@pytest.mark.parametrize("kind", [{}, {"family": "nanochat", "n_heads": 4, "n_kv_heads": 2}], ids=str)
def test_shapes_are_those_of_the_configuration(kind):
    model = tiny_model(**kind)
    c = model.config
    found = qkv.trace(model, torch.arange(24).view(2, 12) % 23, "it")
    assert found.whole["Q"] == found.whole["K"] == found.whole["V"] == (2, c.n_heads, 12, c.d_head)
    assert found.whole["weights"] == (2, c.n_heads, 12, 12)
    assert found.step["Q"] == found.step["output"] == (2, c.n_heads, 1, c.d_head)
    assert found.step["weights"] == (2, c.n_heads, 1, 12)
    assert found.cached["K"] == found.cached["V"] == (2, c.n_kv_heads, 12, c.d_head)
    assert found.different_key_heads == c.n_kv_heads
    assert found.calls == 4 * c.n_layers and found.moved == 0


def test_shapes_hold_here():
    assert verdicts(qkv.show_shapes([qkv.measure_shapes(QUICK, 0, None)])) == [True] * 4


def test_an_output_of_another_width_is_irregular():
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 4, 6, 8), "V": (2, 4, 6, 3), "weights": (2, 4, 5, 6)}
    assert qkv.is_regular(shapes | {"output": (2, 4, 5, 3)})
    assert not qkv.is_regular(shapes | {"output": (2, 4, 5, 8)})
    assert not qkv.is_regular(shapes | {"output": (2, 4, 5, 3), "K": (2, 4, 6, 7)})
    assert not qkv.is_regular(shapes | {"output": (2, 4, 5, 3), "V": (2, 4, 5, 3)})


class Nowhere(torch.nn.Module):
    """Takes an output of any shape, and adds nothing."""

    def __init__(self, d_model):
        super().__init__()
        self.d_model = d_model

    def forward(self, x):
        return x.new_zeros(*x.shape[:2], self.d_model)


def broken_shapes(monkeypatch, attend):
    """Verdicts on models with another `attend`."""

    def broken(config, seed):
        model = build(config, seed)
        for attn in trace.attentions(model):
            attn.attend, attn.out = attend, Nowhere(config.d_model)
        return model

    monkeypatch.setattr(qkv, "build", broken)
    return verdicts(qkv.show_shapes([qkv.measure_shapes(QUICK, 0, None)]))


def test_a_narrower_output_refutes_the_shapes(monkeypatch):
    def narrow(q, k, v, mask):
        return attention(q, k, v[..., :-1], mask)[0]

    assert not broken_shapes(monkeypatch, narrow)[0]


def test_a_width_that_follows_the_positions_refutes_n(monkeypatch):
    def padded(q, k, v, mask):
        return torch.cat((attention(q, k, v, mask)[0], torch.zeros(*q.shape[:3], k.shape[2])), dim=-1)

    assert not broken_shapes(monkeypatch, padded)[1]


def test_a_cache_that_forgets_refutes_the_step(monkeypatch):
    extend = LayerCache.extend

    def forgetful(self, k, v):
        keys, values = extend(self, k, v)
        return keys * 0 if k.shape[2] == 1 else keys, values

    monkeypatch.setattr(LayerCache, "extend", forgetful)
    assert verdicts(qkv.show_shapes([qkv.measure_shapes(QUICK, 0, None)])) == [True, True, True, False]


def test_an_attention_that_takes_any_widths_refutes_the_rule(monkeypatch):
    evidence = qkv.measure_shapes(QUICK, 0, None)

    def lenient(q, k, v, mask=None):
        width = min(q.shape[-1], k.shape[-1])
        return attention(q[..., :width], k[..., :width], v, mask)

    monkeypatch.setattr(qkv, "attention", lenient)
    _, possible, wrong = qkv.combinations()
    assert possible == 16
    assert not verdicts(qkv.show_shapes([replace(evidence, wrong=wrong)]))[2]


# ---------------------------------------------------------------------------- √d_k


@cache
def scale_evidence():
    return sharpness.measure_scale(QUICK, 0, None)


def test_scale_holds_here():
    assert verdicts(sharpness.show_scale([scale_evidence()])) == [True] * 4


def test_sharpness_is_what_autograd_says():
    call = trace.calls_of(build(tiny(vocab_size=9, n_ctx=6, d_model=16), 0), torch.arange(6)[None])[0]
    found = sharpness.sharpness(call, 0)
    q, k = (t.double()[0] for t in (call.q, call.k))
    norms, variances, entropies = [], [], []
    for h in range(len(q)):
        for i in range(3, 6):
            dots = k[h, : i + 1] @ q[h, i]
            variances.append(float(dots.var()))
            s = dots / math.sqrt(q.shape[-1])
            norms.append(float(torch.autograd.functional.jacobian(lambda s: s.softmax(0), s).norm()))
            entropies.append(float(torch.distributions.Categorical(logits=s).entropy()) / math.log(i + 1))
    assert found.variance == pytest.approx(sum(variances) / len(variances))
    assert found.jacobian[0] == pytest.approx(float(torch.tensor(norms).double().median()))
    assert found.entropy[0] == pytest.approx(sum(entropies) / len(entropies))


def test_without_the_scale_in_attention_its_claims_fail(monkeypatch):
    def unscaled(q, k, v, mask=None):
        return attention(q * math.sqrt(q.shape[-1]), k, v, mask)

    monkeypatch.setattr(sharpness, "attention", unscaled)
    assert not verdicts(sharpness.show_scale([sharpness.measure_scale(QUICK, 0, None)]))[1]


def test_queries_and_keys_whose_variance_shrinks_with_the_width_refute_the_rest(monkeypatch):
    def shrunk(config, seed):
        model = build(config, seed)
        with torch.no_grad():
            model.blocks[0].attn.qkv.weight.mul_(config.d_head**-0.25)  # q · k / √d_k less by √d_k
        return model

    monkeypatch.setattr(sharpness, "build", shrunk)
    assert verdicts(sharpness.show_scale([sharpness.measure_scale(QUICK, 0, None)])) == [
        False,
        True,
        False,
        False,
    ]


# ---------------------------------------------------------------------------- kin


def test_kin_hold_here():
    finding = alternatives.show_kin([alternatives.measure_kin(QUICK, 0, None)])
    assert verdicts(finding) == [True] * 3
    assert len(finding.tables[0].rows) == 8


@pytest.mark.parametrize("name", ["cosine", "squared_distance", "linear_attention"])
def test_another_formula_is_no_kin(monkeypatch, name):
    monkeypatch.setattr(
        scores, name, lambda q, k, last: last if last.dtype == q.dtype else scores.scaled_dot(q, k, last)
    )
    assert not verdicts(alternatives.show_kin([alternatives.measure_kin(QUICK, 0, None)]))[0]


def test_a_score_without_the_mask_gives_no_weights(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES, "cosine", lambda config: lambda q, k, mask: scores.cosine(q, k, mask | True)
    )
    assert verdicts(alternatives.show_kin([alternatives.measure_kin(QUICK, 0, None)])) == [True, False, True]


def test_weights_that_are_no_numbers_refute(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES,
        "linear kernel",
        lambda config: lambda q, k, mask: 0 * scores.scaled_dot(q, k, mask) / 0,
    )
    assert verdicts(alternatives.show_kin([alternatives.measure_kin(QUICK, 0, None)])) == [True, False, True]


def test_a_soft_maximum_has_a_gradient_of_its_own(monkeypatch):
    monkeypatch.setattr(scores, "hard_maximum", scores.scaled_dot)
    monkeypatch.setitem(scores.SCORES, "hard maximum", lambda config: scores.scaled_dot)
    assert not verdicts(alternatives.show_kin([alternatives.measure_kin(QUICK, 0, None)]))[2]


# ---------------------------------------------------------------------------- head to head


def short(budget_steps=60):
    """The experiment, shorter: an easier task, and two of the eight."""
    task = Reversal(3, 4, 0)
    config = tiny(vocab_size=4, n_ctx=task.n_ctx, n_layers=1, n_heads=1, d_model=32)
    found = {}
    for name in ("scaled dot", "additive"):
        model = build(config, 0, scores.with_scores(name))
        found[name] = alternatives.train_one(model, task, budget_steps, 0)
    return found


def all_eight(found):
    """Evidence for eight of what was trained for two."""
    by_score = {name: found.get(name, found["scaled dot"]) for name in scores.SCORES}
    return alternatives.TrainedEvidence(3, 4, 32, len(found["additive"].losses), by_score)


def test_training_learns_and_counts():
    found = short()
    assert verdicts(alternatives.show_trained([all_eight(found)])) == [True, True]
    assert found["scaled dot"].learned == 0 and found["additive"].learned == 2 * 32 * 32 + 32
    assert found["additive"].kept > found["scaled dot"].kept
    assert 0.5 < found["scaled dot"].mirror <= 1
    assert len(found["scaled dot"].losses) == 60 >= found["scaled dot"].steps
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in found["scaled dot"].map)


def test_scores_that_look_nowhere_do_not_learn(monkeypatch):
    def blind(q, k, mask):
        return scores.scaled_dot(0 * q, k, mask)

    monkeypatch.setitem(scores.SCORES, "additive", lambda config: blind)
    # The last symbol repeats the one before it, so the mean of three still tells something.
    task = Reversal(6, 8, 0)
    model = build(tiny(vocab_size=8, n_ctx=11, n_layers=1, n_heads=1), 0, scores.with_scores("additive"))
    blinded = alternatives.train_one(model, task, 120, 0)
    assert blinded.steps == 120
    evidence = alternatives.TrainedEvidence(6, 8, 64, 120, dict.fromkeys(scores.SCORES, blinded))
    assert verdicts(alternatives.show_trained([evidence])) == [False, True]


def test_a_score_without_the_mask_sees_the_future(monkeypatch):
    monkeypatch.setitem(
        scores.SCORES, "additive", lambda config: lambda q, k, mask: scores.scaled_dot(q, k, mask | True)
    )
    assert verdicts(alternatives.show_trained([all_eight(short(120))]))[1] is False


def test_steps_are_counted_to_nine_tenths():
    assert alternatives.first_below([3.0, 2.0, 1.0, 1.0, 1.0, 1.0], 1.0) == 5
    assert alternatives.first_below([3.0, 2.0, 2.0, 2.0], 1.0) == 4
    task = Reversal(6, 8)
    floor = 5 / 11 * math.log(8)  # five of eleven targets are fresh randomness
    assert alternatives.nine_tenths(task) == pytest.approx(floor + 0.1 * (math.log(8) - floor))


# ---------------------------------------------------------------------------- cost


@cache
def cost_evidence():
    return score_cost.measure_cost(QUICK, 0, None)


def test_cost_holds_here_and_is_arithmetic():
    evidence = cost_evidence()
    assert verdicts(score_cost.show_cost([evidence])) == [True] * 4
    n, d = evidence.lengths[-1], evidence.d_head
    assert evidence.kept["scaled dot"][-1] == 4 * (3 * n * d + n * n) + n * n  # q, k, v, weights; ~mask
    assert evidence.kept[score_cost.SUMS][-1] >= 4 * n * d * d


def test_a_matrix_for_sums_and_no_matrix_for_the_dot_refute_the_growth():
    evidence = cost_evidence()
    kept = evidence.kept | {
        score_cost.SUMS: evidence.kept["linear kernel"],
        "scaled dot": evidence.kept[score_cost.FUSED],
    }
    assert verdicts(score_cost.show_cost([replace(evidence, kept=kept)]))[:2] == [False, False]


def test_an_additive_that_is_a_dot_product_costs_no_more(monkeypatch):
    class Dot(scores.Additive):
        def forward(self, q, k, mask):
            return scores.scaled_dot(q, k, mask)

    monkeypatch.setattr(score_cost, "Additive", Dot)
    assert verdicts(score_cost.show_cost([score_cost.measure_cost(QUICK, 0, None)]))[2:] == [False, False]


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
    shapes = qkv.measure_shapes(QUICK, 0, subject)
    assert len(shapes.traces) == 1 and shapes.traces[0].cached["K"][1] == key_heads
    assert shapes.traces[0].different_key_heads == key_heads
    assert verdicts(qkv.show_shapes([shapes])) == [True] * 4
    scale = sharpness.measure_scale(QUICK, 0, subject)
    assert list(scale.run) == ["fresh, as wide", "layer 1", "layer 2"]
    assert all(verdicts(sharpness.show_scale([scale])))
    kin = alternatives.measure_kin(QUICK, 0, subject)
    assert any(name.startswith("bilinear") for name in kin.identities) == (kind == "gpt2")
    assert verdicts(alternatives.show_kin([kin])) == [True] * 3


def test_a_context_of_one_position_is_left_out_with_a_reason(tmp_path):
    subject = type("Run", (), {"model": tiny_model(n_ctx=1)})()
    assert "single position" in qkv.EXPERIMENTS[0].skip(subject)
    assert qkv.EXPERIMENTS[0].skip(None) is None
