"""Logits and gradients equal transformers' on drawn configurations, and a mistake in any detail shows.

Weights are large (standard deviation 0.1 and more), norms and biases random: nothing hides behind a zero
or a one. gpt2 is compared in float64; nanochat's norms go through float32 in transformers.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import needs_nanochat
from tformer import model as model_module
from tformer.config import ModelConfig
from tformer.model import (
    Block,
    CausalSelfAttention,
    Transformer,
    causal_mask,
    rms_norm,
    rotary_angles,
    rotate,
)
from tformer.run import huggingface

transformers = pytest.importorskip("transformers")

TOLERANCE = {"gpt2": 1e-9, "nanochat": 1e-5}  # of the largest number compared
PREFIX = {"gpt2": "transformer.", "nanochat": ""}


def random_model(config: ModelConfig, seed: int, std: float) -> Transformer:
    """A model in float64 whose every weight, norm and bias is a random number that float32 has too."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.double().eval()


def oracle(model: Transformer) -> torch.nn.Module:
    """transformers' model with the same weights, through the layout that a run directory has."""
    config = model.config
    if config.family == "nanochat":
        needs_nanochat()
    values = huggingface.to_hf_config(config) | {"attn_implementation": "sdpa"}
    if config.family == "gpt2":
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values))
    else:
        theirs = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**values))
    tensors = huggingface.to_hf(config, model.state_dict())
    if config.family == "gpt2" and config.tied:
        tensors = {PREFIX["gpt2"] + name: tensor for name, tensor in tensors.items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if config.tied else [])
    return theirs.double().eval()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest number; infinite where either is not a number."""
    worst = (found - expected).abs().max().item() / max(expected.abs().max().item(), 1e-3)
    return worst if math.isfinite(worst) else math.inf


def differences(config: ModelConfig, seed: int = 0, std: float = 0.3) -> dict[str, float]:
    """How far logits, and the gradient of each parameter, are from transformers'."""
    model = random_model(config, seed, std)
    theirs = oracle(model)
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(config.vocab_size, (2, config.n_ctx), generator=generator)
    logits, expected = model(ids), theirs(ids).logits
    cotangent = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    found = {"logits": difference(logits, expected)}
    (logits * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}
    mine = huggingface._layout(config, gradients)
    for name, parameter in theirs.named_parameters():
        name = name.removeprefix(PREFIX[config.family])
        absent = name.endswith(".bias") and not config.bias
        fixed = name == "wpe.weight" and config.positions != "learned"
        if not absent and not fixed:
            found[name] = difference(mine[name], parameter.grad)
    learned = len(list(model.parameters())) + (2 * config.n_layers if config.family == "nanochat" else 0)
    assert len(found) == 1 + learned, "every parameter has been compared"
    return found


def assert_equal(config: ModelConfig, seed: int = 0, std: float = 0.3) -> None:
    """Logits and gradients are transformers'."""
    wrong = {k: v for k, v in differences(config, seed, std).items() if v > TOLERANCE[config.family]}
    assert not wrong, wrong


# ---------------------------------------------------------------------------- drawn configurations

SHAPE = {
    "n_layers": st.integers(1, 3),
    "n_heads": st.sampled_from([1, 2, 3, 4]),
    "n_ctx": st.integers(2, 12),
    "vocab_size": st.integers(2, 40),
    "d_mlp": st.integers(1, 40),
    "tied": st.booleans(),
    "activation": st.sampled_from(["gelu_new", "gelu", "relu", "relu2"]),
}
GPT2 = st.fixed_dictionaries(
    SHAPE
    | {
        "d_head": st.integers(1, 9),
        "bias": st.booleans(),
        "norm_eps": st.sampled_from([1e-5, 1e-2]),
        "positions": st.sampled_from(["learned", "sinusoidal", "none"]),
    }
)
NANOCHAT = st.fixed_dictionaries(
    SHAPE
    | {
        "d_head": st.sampled_from([2, 4, 6, 8, 16]),
        "groups": st.integers(1, 4),
        "norm_eps": st.sampled_from([1e-6, 1e-2]),
        "rope_theta": st.sampled_from([10000.0, 50.0]),
        "logit_softcap": st.sampled_from([0.0, 15.0, 2.0]),
    }
)


def config_of(family: str, drawn: dict[str, object]) -> ModelConfig:
    """A drawn dictionary as a configuration: widths are whole heads, key heads divide query heads."""
    values = dict(drawn)
    values["d_model"] = values["n_heads"] * values.pop("d_head")
    if "groups" in values:
        groups = values.pop("groups")
        values["n_kv_heads"] = values["n_heads"] // math.gcd(groups, values["n_heads"])
    return ModelConfig.model_validate({"family": family} | values)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn=GPT2, seed=st.integers(0, 2**20), std=st.floats(0.1, 0.6))
def test_gpt2_equals_transformers_in_float64(drawn, seed, std):
    assert_equal(config_of("gpt2", drawn), seed, std)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn=NANOCHAT, seed=st.integers(0, 2**20), std=st.floats(0.1, 0.6))
def test_nanochat_equals_transformers(drawn, seed, std):
    assert_equal(config_of("nanochat", drawn), seed, std)


# ---------------------------------------------------------------------------- mistakes, each of which shows


def interleaved(x, cos, sin):
    """Rotary pairs (x[2i], x[2i + 1]), as in the paper, for nanochat's halves."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.stack((a * cos + b * sin, b * cos - a * sin), -1).flatten(-2)


def unscaled(q, k, v, mask=None, dropout=0.0):
    """Attention without 1/√d_k."""
    weights = (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)
    return weights @ v, weights


def strict_mask(n_query, n_key, device=None):
    """A query sees only what is before it (the first one itself, or nothing at all)."""
    mask = causal_mask(n_query, n_key).tril(n_key - n_query - 1)
    mask[0, 0] = True
    return mask


def lenient_mask(n_query, n_key, device=None):
    """A query sees the token that it predicts."""
    return torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query + 1)


def post_norm(self, x, mask, rotation=None, cache=None):
    """Norms after the branches, as in 2017."""
    x = self.norm_1(x + self.attn(x, mask, rotation, cache))
    return self.norm_2(x + self.mlp(x))


def swapped_heads(self, x, mask, rotation=None, cache=None):
    """Heads joined before positions: a transpose forgotten."""
    c = self.config
    heads = self.qkv(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2)
    q, k, v = heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=1)
    output, _ = model_module.attention(q, k, v, mask)
    return self.out(output.reshape(x.shape))


def all_but_the_square_one(config, name):
    """Conv1D's transposition, forgotten where no shape tells."""
    return huggingface_is_conv1d(config, name) and not name.endswith("attn.out.weight")


huggingface_is_conv1d = huggingface._is_conv1d
GPT2_CONFIG = {"n_layers": 2, "n_heads": 3, "d_head": 6, "n_ctx": 9, "vocab_size": 17}
NANOCHAT_CONFIG = GPT2_CONFIG | {"n_heads": 4, "groups": 2}
MISTAKES = {
    "a square projection transposed": ("gpt2", huggingface, "_is_conv1d", all_but_the_square_one),
    "erf for tanh": ("gpt2", model_module, "gelu_new", F.gelu),
    "tanh for erf": ("gpt2-erf", model_module, "gelu", model_module.gelu_new),
    "no square root of d_k in gpt2": ("gpt2", model_module, "attention", unscaled),
    "no square root of d_k in nanochat": ("nanochat", model_module, "attention", unscaled),
    "a mask that hides the query itself": ("gpt2", model_module, "causal_mask", strict_mask),
    "a mask that shows the target": ("nanochat", model_module, "causal_mask", lenient_mask),
    "norms after the branches": ("gpt2", Block, "forward", post_norm),
    "heads and positions confused": ("gpt2", CausalSelfAttention, "forward", swapped_heads),
    "rotary pairs interleaved": ("nanochat", model_module, "rotate", interleaved),
    "rotation of the other sign": ("nanochat", model_module, "rotate", lambda x, c, s: rotate(x, c, -s)),
    "no rotation": ("nanochat", model_module, "rotate", lambda x, c, s: x),
    "no norms": ("nanochat", model_module, "rms_norm", lambda x, eps: x),
    "relu for its square": ("nanochat", model_module, "relu2", F.relu),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen_in_the_comparison(monkeypatch, mistake):
    kind, place, name, wrong = MISTAKES[mistake]
    family = kind.removesuffix("-erf")
    drawn = dict(GPT2_CONFIG if family == "gpt2" else NANOCHAT_CONFIG)
    if kind == "gpt2-erf":
        drawn["activation"] = "gelu"
    config = config_of(family, drawn)
    assert_equal(config)
    if place is model_module and name in ("gelu_new", "gelu", "relu2"):
        monkeypatch.setitem(model_module.ACTIVATIONS, name, wrong)
    else:
        monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(config)


def test_key_heads_tiled_for_repeated_are_seen(monkeypatch):
    config = config_of("nanochat", NANOCHAT_CONFIG)
    assert_equal(config)
    monkeypatch.setattr(
        torch.Tensor, "repeat_interleave", lambda x, n, dim: torch.cat([x] * n, dim=dim)
    )  # heads 0 1 0 1 for 0 0 1 1
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(config)


@pytest.mark.parametrize("key", ["norm_eps", "rope_theta", "logit_softcap"])
def test_a_constant_that_is_not_passed_on_is_seen(monkeypatch, key):
    config = config_of("nanochat", NANOCHAT_CONFIG | {"norm_eps": 1e-2, "rope_theta": 50.0})
    assert_equal(config)
    other = config.model_copy(update={key: {"norm_eps": 1e-6, "rope_theta": 1e4, "logit_softcap": 14.0}[key]})
    written = huggingface.to_hf_config(other)
    monkeypatch.setattr(huggingface, "to_hf_config", lambda c: written)
    with pytest.raises(AssertionError, match="logits"):
        assert_equal(config)


def test_the_order_of_norm_and_rotation_is_the_one_mistake_that_cannot_show():
    """A rotation keeps lengths and the norm has no weights, so either order is the same function."""
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    cos, sin = (t[None, None] for t in rotary_angles(torch.arange(7), 8, 10000.0))
    assert torch.allclose(rms_norm(rotate(x, cos, sin), 1e-6), rotate(rms_norm(x, 1e-6), cos, sin), atol=1e-6)
    weights = torch.rand(8, dtype=torch.float64)  # with weights, as in other models, it would not be
    assert not torch.allclose(
        weights * rms_norm(rotate(x, cos, sin), 1e-6), rotate(weights * rms_norm(x, 1e-6), cos, sin), atol=0.1
    )
