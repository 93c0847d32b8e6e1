"""Question 4: the gradients are autograd's; their use needs skips, their size norms."""

import pytest
import torch

from tests.answer.subjects import random_model, subject
from tests.answer.verdicts import refuted, verdicts
from tests.conftest import FAMILIES, tiny_model
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import BOTH, NEITHER, NoSkips, without_norms
from tformer.answer.q4_skips import gradients
from tformer.answer.q4_skips.stream import RUN, deep
from tformer.loss import cross_entropy
from tformer.model import Block

VANISHES = "Without skips and norms the gradient vanishes towards block 1"
NORMS_KEEP = "Without skips but with norms it does not: norms alone keep its size"
USELESS = "But without skips, the last block's queries and keys get next to none of it"
USEFUL = "With both skips they get their part"


def measured():
    return gradients.show_gradients(Seeds([gradients.measure_gradients(QUICK, 5, None)]))


def test_gradients_are_those_of_autograd():
    model, ids = random_model(), torch.randint(13, (3, 6))
    norms = gradients.gradient_norms(model, ids[:, :-1], ids[:, 1:])
    loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()
    for i, block in enumerate(model.blocks):
        of_block = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True)
        whole = torch.cat([gradient.flatten() for gradient in of_block]).norm()
        assert norms.whole[i] == pytest.approx(float(whole), rel=1e-4)
        (of_projection,) = torch.autograd.grad(loss, block.attn.qkv.weight, retain_graph=True)
        assert norms.looking[i] == pytest.approx(float(of_projection[:64].norm()), rel=1e-4)


def test_gradients_of_queries_need_skips_and_their_size_norms(monkeypatch):
    assert verdicts(measured()) == dict.fromkeys((VANISHES, NORMS_KEEP, USELESS, USEFUL), True)
    monkeypatch.setitem(gradients.SKIP_VARIANTS, BOTH, NoSkips)
    monkeypatch.setitem(gradients.SKIP_VARIANTS, NEITHER, Block)
    monkeypatch.setattr(gradients, "without_norms", lambda model: model)
    assert refuted(measured()) == {VANISHES, USELESS, USEFUL}, "with both skips and norms nothing vanishes"


def test_without_norms_the_size_is_not_kept(monkeypatch):
    monkeypatch.setattr(gradients, "deep", lambda kind, seed, length: without_norms(deep(kind, seed, length)))
    assert NORMS_KEEP in refuted(measured())


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined_and_left_as_it_was(changes):
    model = tiny_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seeds = Seeds([gradients.measure_gradients(QUICK, 0, subject(model))])
    assert RUN in {row[0] for row in gradients.show_gradients(seeds).tables[0].rows}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
