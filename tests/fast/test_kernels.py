"""The fast parts compute what the formulas of model.py compute: values, gradients, causality, randomness."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import tiny_config
from tformer import watch
from tformer.cli import app
from tformer.fast import attention as blocks
from tformer.fast.attention import QUERIES_AT_ONCE, attend, attend_backward
from tformer.fast.dropout import MaskedDropout, Masks
from tformer.fast.kernels import attach, decide_kernels, dropout_streams, sdpa
from tformer.model import CausalSelfAttention, Transformer, attention, causal_mask
from tformer.run.loaded import load_run

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
TRAIN = ["train", "hamlet.txt", "--device", "cpu", "--batch-size", "4", "--set", "train.log_every=1"]
MODEL = ["model.n_layers=2", "model.n_heads=2", "model.d_model=16", "model.n_ctx=16", "model.dropout=0.2"]
TINY = [*TRAIN, *(part for setting in MODEL for part in ("--set", setting))]


class Written(Masks):
    """Masks that are remembered."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def draw(self, shape, p, dtype):
        self.drawn.append(super().draw(shape, p, dtype))
        return self.drawn[-1]


def inputs(t, windows=3, heads=2, width=4, dtype=torch.float64):
    torch.manual_seed(t)
    return [torch.randn(windows, heads, t, width, dtype=dtype) for _ in range(3)]


def in_one(masks, b, h, t):
    """The masks of all blocks of `attend` as one of (B, H, T, T)."""
    whole = torch.ones(b, h, t, t, dtype=torch.float64)
    for mask, (windows, start, stop) in zip(masks, blocks._blocks(b, h, t), strict=True):
        whole[windows, :, start:stop, :stop] = mask.unflatten(0, (-1, h))
    return whole


@pytest.mark.parametrize("group", [1, 1 << 22], ids=["window by window", "all windows"])
@pytest.mark.parametrize("t", [1, 2, QUERIES_AT_ONCE, QUERIES_AT_ONCE + 1, 2 * QUERIES_AT_ONCE + 5])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_in_blocks_is_the_formula_and_so_is_its_gradient(monkeypatch, t, p, group):
    monkeypatch.setattr(blocks, "SCORES_AT_ONCE", group)
    masks, (q, k, v) = Written(), inputs(t)
    out, kept = attend(q, k, v, 0.5, p, masks)  # 0.5 is 1 / √d_head
    upstream = torch.randn_like(out)
    found = attend_backward(upstream, q, k, v, 0.5, p, kept)
    wanted = [x.requires_grad_() for x in (q, k, v)]
    weights = attention(q, k, v, causal_mask(t, t))[1]
    weights = weights * in_one(masks.drawn, 3, 2, t) if p else weights
    formula = (weights @ v).transpose(1, 2)
    assert torch.allclose(out, formula, atol=1e-12) and bool(masks.drawn) == bool(p)
    for mine, theirs in zip(found, torch.autograd.grad(formula, wanted, upstream), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_no_output_of_a_block_depends_on_what_comes_after():
    q, k, v = inputs(2 * QUERIES_AT_ONCE + 3, dtype=torch.float32)
    before, _ = attend(q, k, v, 0.5, 0.0, Masks())
    at = QUERIES_AT_ONCE + 7
    for tensor in (q, k, v):
        tensor[:, :, at:] += 100.0
    after, _ = attend(q, k, v, 0.5, 0.0, Masks())
    assert torch.equal(before[:, :at], after[:, :at]) and not torch.equal(before[:, at:], after[:, at:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_is_zero_or_the_scale_as_often_as_it_should_be(dtype):
    masks, n, p = Masks(), 200_003, 0.2
    mask = masks.draw((n,), p, dtype)
    zero, scale = mask.unique().tolist()
    assert mask.dtype == dtype and zero == 0 and scale == pytest.approx(1.25, abs=1e-5)
    assert abs((mask == 0).double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)
    again = mask != masks.draw((n,), p, dtype)  # another mask: they differ where either alone is 0
    assert abs(again.double().mean().item() - 2 * p * (1 - p)) < 0.01
    masks.begin(0)
    assert torch.equal(mask, masks.draw((n,), p, dtype))
    masks.begin(1)
    assert not torch.equal(mask, masks.draw((n,), p, dtype))
    assert masks.draw((3, 5), 0.0, dtype).eq(1).all()


def test_dropout_by_masks_is_of_training_alone_and_its_gradient_has_the_mask():
    x = torch.randn(64, 64, requires_grad=True)
    layer = MaskedDropout(0.5, Masks())
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, x * x.grad) and set(x.grad.unique().tolist()) == {0.0, 2.0}
    assert layer.eval()(x) is x and MaskedDropout(0.0, Masks())(x) is x


MODELS = [
    {"family": "gpt2"},
    {"family": "gpt2", "bias": False, "activation": "gelu", "positions": "none", "tied": False},
    {"family": "gpt2", "activation": "relu", "positions": "sinusoidal"},
    {"family": "nanochat"},
    {"family": "nanochat", "n_kv_heads": 1, "activation": "gelu_new", "d_mlp": 24},
]


def a_model(settings, dtype, dropout=0.0):
    torch.manual_seed(0)
    model = Transformer(tiny_config(**{"n_ctx": 80, "n_heads": 2, "dropout": dropout} | settings))
    for parameter in model.parameters():  # projections start at zero: nothing would be seen through them
        parameter.data.normal_(std=0.3)
    return model.to(dtype).train()


def loss_and_gradients(model, bf16=False):
    torch.manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (3, 80))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(ids)
    loss = logits.double().log_softmax(-1)[..., 0].mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kernels", ["blocks", "sdpa"])
@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_model_has_the_same_loss_and_gradients(settings, kernels):
    exact = a_model(settings, torch.float64)
    fast = copy.deepcopy(exact)
    attach(fast, kernels, CPU)
    loss, gradients = loss_and_gradients(exact)
    found, found_gradients = loss_and_gradients(fast)
    assert found == pytest.approx(loss, abs=1e-12) and distance(found_gradients, gradients) < 1e-12
    ids = torch.randint(fast.config.vocab_size, (3, 80))
    assert torch.equal(exact.eval()(ids), fast.eval()(ids)), "only training differs"


@pytest.mark.parametrize("kernels", ["blocks", "sdpa"])
@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_it_is_as_near_to_the_exact_numbers_as_the_formula_is(settings, kernels, bf16):
    loss, gradients = loss_and_gradients(a_model(settings, torch.float64))
    model = a_model(settings, torch.float32)
    fast = copy.deepcopy(model)
    attach(fast, kernels, CPU)
    formula, formula_gradients = loss_and_gradients(model, bf16)
    found, found_gradients = loss_and_gradients(fast, bf16)
    step = 2**-8 if bf16 else 2**-23
    assert abs(found - loss) < abs(formula - loss) + step
    assert distance(found_gradients, gradients) < 1.25 * distance(formula_gradients, gradients) + step / 8


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_dropout_falls_on_attention_weights_and_branches_and_nowhere_else(settings, monkeypatch):
    """The formulas of model.py, with the masks that were drawn, have the same loss and gradients."""
    model = a_model(settings, torch.float64, dropout=0.3)
    fast, p = copy.deepcopy(model), 0.3
    attach(fast, "blocks", CPU)
    drawn = Written()
    for module in fast.modules():
        if isinstance(module, MaskedDropout):
            module.masks = drawn
    monkeypatch.setattr(fast.blocks[0].fast, "masks", drawn)
    loss, gradients = loss_and_gradients(fast)
    left = iter(drawn.drawn)

    def formula(q, k, v, mask, dropout):
        b, h, t, _ = q.shape
        assert dropout == p
        weights = attention(q, k, v, mask)[1]
        of_blocks = [next(left) for _ in blocks._blocks(b, h, t)]
        return (weights * in_one(of_blocks, b, h, t)) @ v, weights

    def drop(x):
        return x * next(left)

    model.drop.forward = drop
    for block in model.blocks:
        block.attn.formula, block.drop.forward = formula, drop
    expected, expected_gradients = loss_and_gradients(model)
    assert next(left, None) is None, "as many masks"
    assert loss == pytest.approx(expected, abs=1e-12) and distance(gradients, expected_gradients) < 1e-12


def test_a_formula_that_is_looked_at_is_the_reference():
    model = Transformer(tiny_config(n_ctx=8)).train()
    attach(model, "blocks", CPU)
    seen = []
    model.blocks[0].attn.formula = lambda *args: seen.append(1) or attention(*args)
    model(torch.zeros(1, 8, dtype=torch.long))
    assert seen == [1]


class Halved(CausalSelfAttention):
    """Attention that gives half as much."""

    def forward(self, *given: object) -> torch.Tensor:
        return super().forward(*given) / 2


def test_an_attention_of_somebodys_own_is_trained_by_its_own_forward():
    ids = torch.arange(8)[None]
    model = Transformer(tiny_config(n_ctx=8)).train()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.out.weight.normal_()
    plain = model(ids)
    attach(model, "blocks", CPU)
    assert torch.allclose(model(ids), plain, atol=1e-5)
    watch.put_attention(model, Halved)
    halved = model(ids)
    assert not torch.allclose(halved, plain, atol=1e-4)
    assert torch.allclose(halved, model.eval()(ids), atol=1e-5)


@pytest.mark.parametrize("name", ["norm_1", "attn", "attn.qkv", "mlp", "mlp.down", "drop"])
def test_a_hook_on_any_part_of_a_block_sees_it_in_training(name):
    model = Transformer(tiny_config(n_ctx=8)).train()
    attach(model, "blocks", CPU)
    seen = []
    hook = model.blocks[0].get_submodule(name).register_forward_hook(lambda *call: seen.append(1))
    model(torch.zeros(1, 8, dtype=torch.long))
    assert seen
    hook.remove()
    before = len(seen)
    model(torch.zeros(1, 8, dtype=torch.long))
    assert len(seen) == before


def test_a_copy_of_a_model_has_one_stream_of_its_own():
    model = Transformer(tiny_config(n_ctx=8, dropout=0.3)).train()
    attach(model, "blocks", CPU)
    twin = copy.deepcopy(model)
    assert len(dropout_streams(model)) == len(dropout_streams(twin)) == 1
    assert twin.blocks[0].fast.masks is dropout_streams(twin)[0] is not dropout_streams(model)[0]


@pytest.mark.parametrize(
    "wanted, device, compiled, found",
    [
        ("auto", "cpu", False, "blocks"),
        ("auto", "cpu", True, "reference"),
        ("auto", "cuda", True, "sdpa"),
        ("auto", "cuda", False, "sdpa"),
        ("auto", "mps", False, "reference"),
        ("reference", "cuda", True, "reference"),
        ("sdpa", "cpu", False, "sdpa"),
    ],
)
def test_which_parts_a_device_gets(wanted, device, compiled, found):
    assert decide_kernels(wanted, torch.device(device), compiled) == found


@pytest.mark.parametrize("device, there", [("cuda", sdpa), ("mps", None)])
def test_a_run_begun_on_a_cpu_goes_on_elsewhere_without_them(device, there):
    model = Transformer(tiny_config(n_ctx=8))
    attach(model, "blocks", torch.device(device))
    assert model.blocks[0].fast is None and model.blocks[0].attn.fast is there and not dropout_streams(model)


# ---------------------------------------------------------------------------- through the command


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hamlet.txt").write_text(TEXT)
    return tmp_path


def tformer(*arguments):
    app([str(argument) for argument in arguments], standalone_mode=False)


def losses(run):
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kernels", ["blocks", "sdpa", "reference"])
def test_a_run_has_the_kernels_that_it_says_and_goes_on_with_them_to_the_bit(place, kernels):
    chosen = ["--set", f"train.kernels={kernels}"]
    tformer(*TINY, *chosen, "--steps", 6, "--out", "whole")
    tformer(*TINY, *chosen, "--steps", 6, "--out", "cut", "--set", "train.checkpoint_every=3")
    for later in Path("cut/checkpoints").glob("step-*6"):
        (later / "manifest.json").write_text("{")
    tformer(*TINY, "--steps", 6, "--out", "cut", "--resume")
    assert losses("cut") == losses("whole") and len(losses("cut")) == 6
    assert yaml.safe_load(Path("cut/tformer.yaml").read_text())["train"]["kernels"] == kernels


def test_a_run_of_before_the_setting_goes_on_with_the_formula(place, capsys):
    tformer(*TINY, "--steps", 4, "--out", "run", "--set", "train.kernels=reference")
    values = yaml.safe_load(Path("run/tformer.yaml").read_text())
    del values["train"]["kernels"]
    Path("run/tformer.yaml").write_text(yaml.safe_dump(values))
    tformer(*TINY, "--steps", 6, "--out", "run", "--resume")
    assert load_run(Path("run")).record.settings["train"]["kernels"] == "reference"


def test_blocks_and_a_compiler_are_refused(place):
    from tformer.errors import RequestError

    with pytest.raises(RequestError, match=r"train.kernels=blocks cannot be compiled"):
        tformer(*TINY, "--compile", "--set", "train.kernels=blocks", "--out", "run")
