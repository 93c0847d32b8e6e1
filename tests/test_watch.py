"""What is watched is what happens, in this model alone, and nothing is left of it afterwards."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import tiny_model
from tformer import model as room
from tformer import watch
from tformer.kv_cache import KVCache
from tformer.model import Block, CausalSelfAttention, attention, causal_mask

IDS = torch.arange(18).view(2, 9) % 23


def everything(q, k, v, mask=None, dropout=0.0):
    """Attention without its mask."""
    return attention(q, k, v)


class Average(nn.Module):
    """Attends to all keys alike, however large its one parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, q, k, v, mask, dropout=0.0):
        return attention(q * self.scale, k, v, mask)


class Doubled(Block):
    """Both branches count twice."""

    def forward(self, x, *rest):
        return x + 2 * (super().forward(x, *rest) - x)


def state_of(model):
    """All that a watch could leave: hooks, formulas, methods and classes of every part."""
    return [
        (type(m), dict(m._forward_hooks), dict(m._forward_pre_hooks), getattr(m, "formula", None))
        for m in model.modules()
    ]


WATCHES = {
    "attention": lambda model: watch.watching_attention(model, lambda call: None),
    "calls of attention": watch.attention_calls,
    "calls of modules": lambda model: watch.module_calls([*model.blocks, model.embed]),
    "a cut": watch.cut_at_embedding,
    "without heads": lambda model: watch.without_heads(model, [(0, 1), (1, 0)]),
    "a formula": lambda model: watch.with_formula(model, lambda *args: everything(*args)),
    "a formula with parameters": lambda model: watch.with_formula(model, Average()),
}
each_watch = pytest.mark.parametrize("kind", WATCHES.values(), ids=WATCHES.keys())


# ---------------------------------------------------------------------------- nothing is left


@each_watch
def test_nothing_is_left_in_the_model_after_the_block(kind):
    model = tiny_model()
    before, logits = state_of(model), model(IDS)
    with kind(model):
        assert state_of(model) != before
        model(IDS)
    assert state_of(model) == before
    assert torch.equal(model(IDS), logits)


@each_watch
def test_nothing_is_left_where_the_forward_breaks_off(kind):
    model = tiny_model()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"), kind(model):
        model(IDS)
        raise RuntimeError("in the middle")
    assert state_of(model) == before


@each_watch
def test_a_watch_inside_another_of_its_kind_leaves_the_outer_one_in_place(kind):
    model = tiny_model()
    before = state_of(model)
    with kind(model):
        outer = state_of(model)
        with kind(model):
            assert state_of(model) != outer
        assert state_of(model) == outer
    assert state_of(model) == before


@each_watch
def test_another_model_is_not_touched(kind):
    model, other = tiny_model(), tiny_model(seed=1)
    before, logits = state_of(other), other(IDS)
    with kind(model):
        assert state_of(other) == before
        assert torch.equal(other(IDS), logits)


@pytest.mark.parametrize("name", ["attention", "calls of attention", "calls of modules", "a cut"])
def test_looking_moves_no_logit_and_no_gradient_by_a_bit(model, name):
    def gradients():
        model.zero_grad()
        logits = model(IDS)
        logits.square().sum().backward()
        return [
            logits,
            *(p.grad for n, p in model.named_parameters() if n != "embed.weight" or name != "a cut"),
        ]

    expected = gradients()
    with WATCHES[name](model):
        found = gradients()
    tied = name == "a cut" and model.config.tied  # the table's gradient is that of the unembedding alone
    for one, other in zip(found[: len(found) - tied], expected[: len(expected) - tied], strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------------- what is seen


def test_calls_of_attention_hold_what_the_formula_gives_for_what_it_was_given(model):
    c = model.config
    with watch.attention_calls(model) as calls:
        model(IDS)
        model(IDS)
    assert [call.layer for call in calls] == [0, 1, 0, 1]
    for call in calls:
        assert call.weights.shape == (2, c.n_heads, 9, 9) and call.output.shape == (2, c.n_heads, 9, c.d_head)
        output, weights = call.formula(call.q, call.k, call.v, call.mask)
        assert torch.equal(output, call.output) and torch.equal(weights, call.weights)
        expected = F.scaled_dot_product_attention(call.q, call.k, call.v, causal_mask(9, 9))
        assert torch.allclose(call.output, expected, atol=1e-5)
        assert not call.weights.requires_grad


def test_calls_through_the_cache_have_all_keys_and_the_new_queries(model):
    cache = KVCache(model.config, 2, model.embed.weight)
    with watch.attention_calls(model) as calls:
        model(IDS[:, :6], cache)
        model(IDS[:, 6:], cache)
    assert [(call.q.shape[2], call.k.shape[2]) for call in calls] == [(6, 6)] * 2 + [(3, 9)] * 2


def test_who_watches_gets_the_tensors_of_the_forward_with_their_gradients():
    model, seen = tiny_model(), []
    with watch.watching_attention(model, seen.append):
        logits = model(IDS)
    gradients = torch.autograd.grad(logits.square().sum(), [call.q for call in seen])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_two_watches_of_one_model_see_the_same_calls():
    model = tiny_model()
    with watch.attention_calls(model) as outer, watch.attention_calls(model) as inner:
        model(IDS)
    assert len(outer) == len(inner) == 2
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(outer, inner, strict=True))


def test_two_models_at_once_do_not_see_each_other():
    one, other = tiny_model(), tiny_model(seed=1, n_layers=3)
    with watch.attention_calls(one) as ones, watch.attention_calls(other) as others:
        one(IDS)
        other(IDS)
    assert (len(ones), len(others)) == (2, 3)


def test_an_attention_that_blocks_share_is_watched_once():
    model = tiny_model()
    model.blocks[1].attn = model.blocks[0].attn
    with watch.attention_calls(model) as calls:
        model(IDS)
    assert [call.layer for call in calls] == [0, 0], "two calls of one attention"


def test_a_formula_that_a_test_plants_in_the_module_is_seen_as_what_it_is(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(room, "attention", everything)
    with watch.attention_calls(model) as calls:
        model(IDS)
    assert (calls[0].weights.triu(1) > 0).any()
    assert calls[0].formula is everything


def test_an_attention_with_a_way_of_its_own_is_not_seen():
    class Own(CausalSelfAttention):
        def attend(self, q, k, v, mask):
            return attention(q, k, v, mask)[0]

    model = watch.put_attention(tiny_model(), Own)
    with watch.attention_calls(model) as calls:
        model(IDS)
    assert calls == []


def test_the_stream_is_what_the_blocks_are_given_and_return(model):
    with watch.module_calls(model.blocks) as calls, watch.module_calls([model.norm_final]) as final:
        logits = model(IDS)
    assert [call.module for call in calls] == list(model.blocks)
    assert torch.equal(calls[1].x, calls[0].output)
    assert torch.equal(final[0].x, calls[-1].output)
    assert torch.equal(model.logits(final[0].output), logits)


def test_a_module_is_seen_at_every_call_and_listened_to_once():
    model = tiny_model()
    mlp = model.blocks[0].mlp
    model.blocks[1].mlp = mlp
    with watch.module_calls([block.mlp for block in model.blocks]) as calls:
        model(IDS)
    assert [call.module for call in calls] == [mlp, mlp]


def test_gradients_go_to_the_cut_and_no_further():
    model = tiny_model(tied=False)
    with watch.cut_at_embedding(model) as leaves:
        logits = model(IDS)
    (gradient,) = torch.autograd.grad(logits[:, 4].square().sum(), leaves, retain_graph=True)
    assert (gradient.abs().sum(-1) > 0).tolist() == [[t <= 4 for t in range(9)]] * 2
    (table,) = torch.autograd.grad(logits.sum(), model.embed.weight, allow_unused=True)
    assert table is None


# ---------------------------------------------------------------------------- what is replaced


@pytest.mark.parametrize("mean", [False, True])
def test_a_head_that_is_taken_out_gives_zeros_or_its_mean(mean):
    model = tiny_model()
    width = model.config.d_head
    out = [block.attn.out for block in model.blocks]
    with watch.module_calls(out) as whole:
        model(IDS)
    with watch.without_heads(model, [(0, 1)], mean), watch.module_calls(out) as calls:
        model(IDS)
    head = whole[0].x[..., width:]
    assert torch.equal(calls[0].x[..., :width], whole[0].x[..., :width]), "the other one stays"
    expected = head.mean(0, keepdim=True).expand_as(head) if mean else torch.zeros_like(head)
    assert torch.equal(calls[0].x[..., width:], expected)
    assert not torch.equal(calls[1].x, whole[1].x), "what comes after sees the difference"


def test_a_formula_in_one_layer_is_in_that_layer_alone():
    model = tiny_model()
    with watch.with_formula(model, everything, layers=[1]), watch.attention_calls(model) as calls:
        model(IDS)
    assert [bool((call.weights.triu(1) > 0).any()) for call in calls] == [False, True]


def test_a_formula_that_is_put_in_stays_and_learns():
    model = watch.put_formula(tiny_model(), Average())
    assert isinstance(model.blocks[0].attn.formula, Average)
    with watch.attention_calls(model) as calls:
        model(IDS).square().sum().backward()
    uniform = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    assert all(torch.allclose(call.weights, uniform) for call in calls)
    scales = [p for name, p in model.named_parameters() if name.endswith("scale")]
    assert scales and all(p.grad is not None for p in scales)
    other = watch.put_formula(model, everything)
    assert not any(name.endswith("scale") for name, _ in other.named_parameters())


def test_formulas_of_functions_and_of_modules_may_stand_inside_one_another():
    model = tiny_model()
    logits = model(IDS)
    with watch.with_formula(model, Average()):
        averaged = model(IDS)
        with watch.with_formula(model, everything), watch.with_formula(model, attention):
            assert torch.equal(model(IDS), logits)
        assert torch.equal(model(IDS), averaged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("put", [watch.put_attention, watch.put_blocks])
def test_a_part_of_another_class_has_the_weights_the_dtype_and_the_mode_of_the_first(model, put, dtype):
    model.to(dtype).train()

    class Same(CausalSelfAttention if put is watch.put_attention else Block):
        pass

    other = put(copy.deepcopy(model), Same)
    assert other.training and all(module.training for module in other.modules())
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert torch.equal(other(IDS), model(IDS))
    assert sum(isinstance(module, Same) for module in other.modules()) == 2


def test_blocks_of_another_class_compute_what_they_say():
    model = watch.put_blocks(tiny_model(), Doubled)
    with watch.module_calls(model.blocks) as calls:
        model(IDS)
    block = Block(model.config)
    block.load_state_dict(model.blocks[0].state_dict())
    x, mask = calls[0].x, causal_mask(9, 9)[None, None]
    assert torch.allclose(calls[0].output, x + 2 * (block(x, mask) - x), atol=1e-6)


# ---------------------------------------------------------------------------- plain models


def test_a_model_as_it_is_built_is_plain(model):
    assert watch.is_plain(model)


@pytest.mark.parametrize("name", WATCHES)
def test_a_model_that_is_watched_is_not_plain(name):
    model = tiny_model()
    with WATCHES[name](model):
        assert not watch.is_plain(model)
    assert watch.is_plain(model)


def spoil_a_method(model):
    model.blocks[1].attn.attend = model.blocks[0].attn.attend


@pytest.mark.parametrize(
    "change",
    [
        lambda model: watch.put_formula(model, everything),
        lambda model: watch.put_blocks(model, Doubled),
        lambda model: model.blocks[0].mlp.up.register_forward_hook(lambda module, args, output: None),
        spoil_a_method,
    ],
    ids=["a formula", "blocks", "a hook of somebody's", "a method"],
)
def test_a_model_with_another_part_is_not_plain(change):
    model = tiny_model()
    change(model)
    assert not watch.is_plain(model)


# ---------------------------------------------------------------------------- compiled models

# In processes of their own: the shape checks of these tests cannot be compiled.
COMPILED = """
import torch
from tformer import watch
from tformer.config import ModelConfig
from tformer.model import Transformer

def tiny():
    values = {"vocab_size": 23, "n_ctx": 16, "n_layers": 2, "n_heads": 2, "d_model": 16}
    model = Transformer(ModelConfig.model_validate(values)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model

torch.manual_seed(0)
model, ids = tiny(), torch.randint(23, (2, 9))
logits = model(ids)
"""
LOOK = """
def look(forward):
    with (
        watch.attention_calls(model) as calls,
        watch.module_calls(model.blocks) as parts,
        watch.cut_at_embedding(model) as leaves,
    ):
        found = forward(ids)
    assert [call.layer for call in calls] == [0, 1], calls
    assert len(parts) == 2 and len(leaves) == 1, (parts, leaves)
    assert torch.allclose(calls[1].weights.sum(-1), torch.ones(2, 2, 9))
    (gradient,) = torch.autograd.grad(found[:, 4].sum(), leaves)
    assert (gradient.abs().sum((0, 2)) > 0).tolist() == [t <= 4 for t in range(9)]
    assert torch.allclose(found, logits, atol=1e-5)
    found = forward(ids)
    assert len(calls) == 2 and len(parts) == 2 and len(leaves) == 1, "and nothing after the block"
    assert torch.allclose(found, logits, atol=1e-5)
"""


def in_a_process(script):
    """Runs COMPILED and this."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED + script],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_looking_loads_no_compiler_and_what_is_compiled_is_seen_and_forgotten_with_what_is_put_in_it():
    in_a_process(f"""{LOOK}
import sys
look(model)
assert "torch._dynamo" not in sys.modules
look(lambda ids: torch.compile(model, backend="eager")(ids))
torch._dynamo.reset()
compiled = torch.compile(model, backend="aot_eager")
look(compiled)
compiled(ids)
look(compiled)
another = torch.compile(tiny(), backend="aot_eager")
with watch.attention_calls(another) as calls:
    another(ids)
assert len(calls) == 2, "given compiled"
assert watch.is_plain(another)

from tformer.model import attention
everything = lambda q, k, v, mask=None, dropout=0.0: attention(q, k, v)
with watch.with_formula(model, everything):
    expected = model(ids)
    assert torch.allclose(compiled(ids), expected, atol=1e-5)
assert torch.allclose(compiled(ids), logits, atol=1e-5)
assert not torch.allclose(expected, logits, atol=1e-2)
watch.put_formula(model, everything)
assert torch.allclose(compiled(ids), expected, atol=1e-5), "for good, too"
assert not watch.is_plain(compiled)
""")
