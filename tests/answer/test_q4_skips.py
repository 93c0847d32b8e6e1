"""Question 4: what the variants are, and that each claim falls where its mechanism is taken away."""

import math
from dataclasses import replace

import pytest
import torch

from tests.conftest import FAMILIES, tiny_model
from tformer.answer import parts as blocks
from tformer.answer.claims import QUICK
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import BOTH, NEITHER, VARIANTS
from tformer.answer.q4_skips import gradients, skips, stream
from tformer.answer.q4_skips.experiments import EXPERIMENTS
from tformer.loss import cross_entropy
from tformer.model import Block, causal_mask


def verdicts(finding):
    return [claim.passed for claim in finding.claims]


def random_model(kind=Block, **changes):
    settings = {"vocab_size": 8, "n_ctx": 6, "d_model": 32, "n_heads": 2} | changes
    return blocks.with_blocks(build(tiny(**settings), 0, blocks.start_random), kind)


# ---------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_adds_only_where_it_has_a_skip(name):
    block = random_model(VARIANTS[name]).blocks[0]
    x, mask = torch.randn(2, 6, 32), causal_mask(6, 6)[None, None]
    after = block.attn(block.norm_1(x), mask) + (x if name in (BOTH, "none at the MLP") else 0)
    expected = block.mlp(block.norm_2(after)) + (after if name in (BOTH, "none at attention") else 0)
    torch.testing.assert_close(block(x, mask), expected)


def test_variants_have_the_weights_of_the_model():
    one, two = random_model(), random_model(blocks.NoSkips)
    assert all(isinstance(block, blocks.NoSkips) for block in two.blocks)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_copying_start_copies():
    model = blocks.start_copying(random_model())
    x = torch.randn(2, 6, 32)
    for block in model.blocks:
        torch.testing.assert_close(block.mlp(x), x, msg="gelu(x) - gelu(-x) = x")
        copied = block.attn(block.norm_1(x), causal_mask(6, 6)[None, None])
        assert torch.nn.functional.cosine_similarity(copied, block.norm_1(x), dim=-1).min() > 0.9


def test_measures_of_likeness_by_arithmetic():
    alike, different = torch.ones(1, 4, 4), torch.eye(4)[None]
    found = [(blocks.apart(x), blocks.similarity(x), blocks.effective_rank(x)) for x in (alike, different)]
    assert found[0] == pytest.approx((0, 1, 1), abs=1e-6)
    assert found[1] == pytest.approx((math.sqrt(3 / 4), 0, 4), abs=1e-6)


def test_gradients_are_those_of_autograd():
    model, ids = random_model(), torch.randint(8, (3, 6))
    whole, looking = gradients.gradients(model, ids[:, :-1], ids[:, 1:])
    loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()
    for i, block in enumerate(model.blocks):
        found = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True)
        assert whole[i] == pytest.approx(float(torch.cat([g.flatten() for g in found]).norm()), rel=1e-4)
        (of_projection,) = torch.autograd.grad(loss, block.attn.qkv.weight, retain_graph=True)
        assert looking[i] == pytest.approx(float(of_projection[:64].norm()), rel=1e-4)


def test_streams_begin_with_the_embedding_and_leave_no_hook():
    model, ids = random_model(), torch.randint(8, (2, 6))
    found = blocks.streams(model, ids)
    assert len(found) == 3
    torch.testing.assert_close(found[0], model.embed(ids) + model.position[:6])
    torch.testing.assert_close(model.unembed(model.norm_final(found[-1])), model(ids))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_only_a_stream_with_skips_is_a_sum():
    ids = torch.randint(8, (2, 6))
    assert blocks.sum_error(random_model(), ids) < 1e-6
    assert blocks.sum_error(random_model(blocks.NoMLPSkip), ids) > 0.1


# ---------------------------------------------------------------------------- claims hold and fall


def swapped(monkeypatch):
    """The variant with both skips has none, and the other way round."""
    monkeypatch.setitem(stream.VARIANTS, BOTH, blocks.NoSkips)
    monkeypatch.setitem(stream.VARIANTS, NEITHER, Block)


def test_positions_become_alike_without_skips_alone(monkeypatch):
    assert verdicts(stream.show_collapse([stream.measure_collapse(QUICK, 5, None)])) == [True] * 3
    swapped(monkeypatch)
    monkeypatch.setattr(stream, "AttentionAloneNoSkip", blocks.AttentionAlone)
    assert verdicts(stream.show_collapse([stream.measure_collapse(QUICK, 5, None)])) == [False] * 3


def test_gradients_of_queries_need_skips_and_their_size_norms(monkeypatch):
    assert verdicts(stream.show_gradients([stream.measure_gradients(QUICK, 5, None)])) == [True] * 4
    swapped(monkeypatch)
    monkeypatch.setattr(stream, "without_norms", lambda model: model)
    found = verdicts(stream.show_gradients([stream.measure_gradients(QUICK, 5, None)]))
    assert found == [False, True, False, False], "with both skips and norms nothing vanishes"
    monkeypatch.setitem(stream.VARIANTS, NEITHER, blocks.NoSkips)
    monkeypatch.setattr(
        stream, "with_blocks", lambda m, kind: blocks.without_norms(blocks.with_blocks(m, kind))
    )
    assert not verdicts(stream.show_gradients([stream.measure_gradients(QUICK, 5, None)]))[1]


def test_the_lens_reads_a_stream_with_skips_alone(monkeypatch):
    assert verdicts(stream.show_lens([stream.measure_lens(QUICK, 5, None)])) == [True] * 3
    swapped(monkeypatch)
    assert verdicts(stream.show_lens([stream.measure_lens(QUICK, 5, None)])) == [False] * 3


@pytest.fixture(scope="module")
def trained():
    return skips.measure_training(QUICK, 5, None)


def test_deep_models_need_both_skips_or_a_copying_start(trained):
    assert verdicts(skips.show_training([trained])) == [True] * 4


def test_claims_of_training_fall_with_what_was_trained(trained):
    """Evidence is exchanged, since training is the cost."""

    def with_second_half(depth, variant, value):
        changed = [
            replace(t, second_half=value) if (t.depth, t.variant) == (depth, variant) else t
            for t in trained.trained
        ]
        return verdicts(skips.show_training([trained, replace(trained, trained=changed)]))

    deep = trained.at(8, NEITHER).second_half
    assert with_second_half(2, NEITHER, deep) == [False, True, True, True]
    assert with_second_half(8, BOTH, deep) == [True, False, True, True]
    for name in VARIANTS.keys() - {BOTH}:
        assert with_second_half(8, name, 1.0) == [True, True, False, True]
    assert with_second_half(8, skips.COPY, deep) == [True, True, True, False]


def test_a_training_that_diverges_is_counted_with_what_it_had(monkeypatch):
    def diverging(*args, **settings):
        raise skips.TformerError("training diverged")

    monkeypatch.setattr(skips, "train", diverging)
    task = skips.Reversal(4, 8)
    found = skips.train_one(2, NEITHER, blocks.NoSkips, blocks.start_random, task, 20, 0, 1e-3)
    assert found.losses == [] and found.second_half < 0.5 and len(found.whole) == 2


# ---------------------------------------------------------------------------- the run of --run


@pytest.mark.parametrize("changes", FAMILIES[::3], ids=["gpt2", "nanochat-gqa"])
def test_a_run_of_either_family_is_examined(tmp_path, changes):
    model = tiny_model(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    subject = Subject(tmp_path, model, None, None, None)
    collapsed = stream.show_collapse([stream.measure_collapse(QUICK, s, subject) for s in (0, 1)])
    assert {stream.RUN, stream.RUN_CUT} <= {row[0] for row in collapsed.tables[0].rows}
    graded = stream.show_gradients([stream.measure_gradients(QUICK, 0, subject)])
    assert stream.RUN in {row[0] for row in graded.tables[0].rows}
    read = stream.show_lens([stream.measure_lens(QUICK, 0, subject)])
    assert verdicts(read) == [True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "a run is left as it was"


def test_the_lens_at_the_end_reads_the_model_itself(model):
    ids = torch.randint(23, (4, 9))
    losses, right = stream.lens(model, ids[:, :-1], ids[:, 1:], 2)
    logits = model(ids[:, :-1]).detach()
    assert losses[-1] == pytest.approx(float(cross_entropy(logits, ids[:, 1:])[:, 2:].mean()), rel=1e-5)
    assert right[-1] == pytest.approx(float((logits.argmax(-1) == ids[:, 1:])[:, 2:].float().mean()))


def test_a_run_of_two_positions_is_left_out_with_a_reason(tmp_path):
    small = Subject(tmp_path, tiny_model(n_ctx=2), None, None, None)
    of_runs = [e for e in EXPERIMENTS if e.slug != "trained"]
    assert all("2 positions" in e.skip(small) for e in of_runs)
    assert not any(e.skip(None) for e in EXPERIMENTS)
