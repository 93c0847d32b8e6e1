"""Question 5: dependence is the Jacobian's, a triangle under the mask, and what breaks it is seen."""

import numpy as np
import pytest
import torch

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer import model as room
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import reaching
from tformer.answer.q5_mask import triangle
from tformer.model import CausalSelfAttention, attention

NO_LATER = "With the mask no logit depends on a later token"
ITS_OWN = "With the mask each depends on its own token"
EVERY_LATER = "Without it every logit depends on every later token"
TOO_FAR = "One diagonal too far reaches 2 ahead: one more with each block"


def measured(*seeds):
    return triangle.show_jacobian(Seeds(triangle.measure_jacobian(QUICK, seed, None) for seed in seeds))


def test_dependence_is_the_jacobian_of_autograd():
    model = random_model(vocab_size=9, n_ctx=5, d_model=8).double()
    ids = torch.randint(9, (1, 5))
    dependence = triangle.dependence(model, ids, seed=3)
    table = model.embed(ids).detach()

    def logits(x):
        x = x + model.position
        for block in model.blocks:
            x = block(x, room.causal_mask(5, 5)[None, None])
        return model.unembed(model.norm_final(x))

    jacobian = torch.autograd.functional.jacobian(logits, table)[0, :, :, 0]  # (t, V, s, C)
    direction = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.einsum("tvsc,v->tsc", jacobian, direction).norm(dim=-1)
    np.testing.assert_allclose(dependence, expected.numpy(), rtol=1e-9, atol=1e-15)


def test_the_triangle_and_what_breaks_it(monkeypatch):
    assert verdicts(measured(5, 6)) == dict.fromkeys((NO_LATER, ITS_OWN, EVERY_LATER, TOO_FAR), True)
    monkeypatch.setitem(triangle.MASKS, triangle.NONE, attention)
    monkeypatch.setitem(triangle.MASKS, triangle.FAR, attention)
    monkeypatch.setattr(room, "causal_mask", lambda n, m, device=None: torch.ones(n, m, dtype=torch.bool))
    assert refuted(measured(5)) == {NO_LATER, TOO_FAR}, "all are open now"
    monkeypatch.setitem(triangle.MASKS, triangle.NONE, reaching(1))
    assert EVERY_LATER in refuted(measured(5))


def test_a_position_that_ignores_its_token_is_no_proof_of_causality(monkeypatch):
    blind = np.tril(np.ones((12, 12)), -1)
    blind[0, 0] = 1
    monkeypatch.setattr(triangle, "dependence", lambda model, ids, seed: blind)
    assert ITS_OWN in refuted(measured(0))


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined_and_left_as_it_was(changes):
    model = tiny_model(**changes)
    finding = triangle.show_jacobian(Seeds([triangle.measure_jacobian(QUICK, 0, subject(model))]))
    assert verdicts(finding) == dict.fromkeys((NO_LATER, ITS_OWN, EVERY_LATER, TOO_FAR), True)
    for block in model.blocks:
        assert type(block.attn) is CausalSelfAttention and block.attn.formula is None
