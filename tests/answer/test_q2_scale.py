"""Question 2, scale: agrees with arithmetic; each claim fails where its mechanism is broken."""

import math
from functools import cache

import pytest
import torch

from tests.answer.verdicts import refuted, shown, verdicts
from tformer.answer.experiment import QUICK
from tformer.answer.lab import build, calls_of, tiny
from tformer.answer.q2_qkv import scale
from tformer.model import attention

GROWS = "On fresh modules the variance of q · k grows as d_k (distance of the exponent from 1)"
STAYS_HIGH = "With 1/√d_k the entropy of the weights stays high at every d_k"
ONE_HOT = "Without it the weights come close to one-hot: little entropy is left at d_k = 256"
LESS_GRADIENT = "Without it the median query has less gradient at its scores (ratio, d_k = 256)"


@cache
def scale_evidence():
    return scale.measure_scale(QUICK, 0, None)


def test_scale_holds_here():
    holds = dict.fromkeys((GROWS, STAYS_HIGH, ONE_HOT, LESS_GRADIENT), True)
    assert verdicts(shown(scale.show_scale, scale_evidence())) == holds


def test_sharpness_is_what_autograd_says():
    call = calls_of(build(tiny(vocab_size=9, n_ctx=6, d_model=16), 0), torch.arange(6)[None])[0]
    found = scale.sharpness(call, 0)
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


def test_without_the_scale_in_attention_its_claims_fail():
    def unscaled(q, k, v, mask=None):
        return attention(q * math.sqrt(q.shape[-1]), k, v, mask)

    evidence = scale.measure_scale(QUICK, 0, None, formula=unscaled)
    assert STAYS_HIGH in refuted(shown(scale.show_scale, evidence))


def test_queries_and_keys_whose_variance_shrinks_with_the_width_refute_the_rest(monkeypatch):
    def shrunk(config, seed):
        model = build(config, seed)
        with torch.no_grad():
            model.blocks[0].attn.qkv.weight.mul_(config.d_head**-0.25)  # q · k / √d_k less by √d_k
        return model

    monkeypatch.setattr(scale, "build", shrunk)
    evidence = scale.measure_scale(QUICK, 0, None)
    assert refuted(shown(scale.show_scale, evidence)) == {GROWS, ONE_HOT, LESS_GRADIENT}
