"""Names and shapes between `model.py` and the Hugging Face layouts of the two families.

A run directory is a Hugging Face model directory; this file says what that means, in both directions,
and loads any directory of the two families. It knows nothing of training.
"""

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tformer.config import ModelConfig
from tformer.errors import RequestError, short
from tformer.files import read_json
from tformer.model import Transformer, sinusoidal_positions
from tformer.run.lacking import no_model
from tformer.run.retrained import BUFFERS, as_trained, told_of
from tformer.run.tensors import read_model_tensors

# ---------------------------------------------------------------------------- configuration

# Settings that change the mathematics and that model.py has in one form alone: their only value, or
# null or nothing.
FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
    },
    "nanochat": {"attention_bias": False, "partial_rotary_factor": 1.0},
}
FIXED_EVERYWHERE: dict[str, Any] = {"is_causal": True}
ABSENT = ("quantization_config", "per_layer_config", "pruned_heads")  # of any model of transformers
# Other names of the same thing: activations, and the keys that transformers' GPT2Config takes too.
ACTIVATION_NAMES = {
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python": "gelu",
}
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


# Ours, theirs, and what theirs is where config.json leaves it out.
KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "gpt2": {
        "vocab_size": ("vocab_size", 50257),
        "n_ctx": ("n_positions", 1024),
        "n_layers": ("n_layer", 12),
        "n_heads": ("n_head", 12),
        "d_model": ("n_embd", 768),
        "d_mlp": ("n_inner", None),
        "dropout": ("resid_pdrop", 0.1),
        "activation": ("activation_function", "gelu_new"),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tied": ("tie_word_embeddings", True),
    },
    "nanochat": {
        "vocab_size": ("vocab_size", 50304),
        "n_ctx": ("max_position_embeddings", 2048),
        "n_layers": ("num_hidden_layers", 12),
        "n_heads": ("num_attention_heads", 6),
        "n_kv_heads": ("num_key_value_heads", None),
        "d_model": ("hidden_size", 768),
        "d_mlp": ("intermediate_size", 8192),
        "dropout": ("attention_dropout", 0.0),
        "activation": ("hidden_act", "relu2"),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "tied": ("tie_word_embeddings", False),
        "logit_softcap": ("final_logit_softcapping", 15.0),
    },
}
MAY_BE_NULL = {"d_mlp", "n_kv_heads", "logit_softcap"}  # ours is then 0

# The first versions of transformers that read the layouts as they are written.
READ_SINCE = {"gpt2": "4.50.0", "nanochat": "5.0.0"}


def to_hf_config(config: ModelConfig, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """`config.json`. What the layout has no field for (fixed positions, no biases) is under `tformer`.

    `usage` is what it says of tokens, and of dropouts that are not all the same.
    """
    c = config
    common: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "transformers_version": READ_SINCE[c.family],
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": c.tied,
        "use_cache": True,
        "dtype": "float32",
        "tformer": {"positions": c.positions, "bias": c.bias},
    }
    if c.family == "gpt2":
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": c.n_ctx,
            "n_ctx": c.n_ctx,
            "n_embd": c.d_model,
            "n_layer": c.n_layers,
            "n_head": c.n_heads,
            "n_inner": None if c.d_mlp == 4 * c.d_model else c.d_mlp,
            "activation_function": c.activation,
            "layer_norm_epsilon": c.norm_eps,
            "embd_pdrop": c.dropout,
            "attn_pdrop": c.dropout,
            "resid_pdrop": c.dropout,
            **common,
            **(usage or {}),
        }
    return {
        "model_type": "nanochat",
        "architectures": ["NanoChatForCausalLM"],
        "max_position_embeddings": c.n_ctx,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_mlp,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "hidden_act": c.activation,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "final_logit_softcapping": c.logit_softcap or None,
        "attention_bias": False,
        "attention_dropout": c.dropout,
        **common,
        **(usage or {}),
    }


def from_hf_config(values: dict[str, Any], source: str) -> ModelConfig:
    """The architecture that a `config.json` describes.

    gpt2 may set three dropouts; they act in training alone, and `resid_pdrop` is taken for all of them.
    Raises RequestError, naming the setting, for another family or mathematics that `model.py` has not.
    """
    family = values.get("model_type")
    if family not in tuple(FIXED):  # it may be anything, and not hashable
        raise RequestError(f"{source} is of model_type {family!r}", "expected gpt2 or nanochat")
    if family == "gpt2":
        values = values | {GPT2_ALIASES[key]: values[key] for key in GPT2_ALIASES.keys() & values.keys()}
    for key, only in (FIXED[family] | FIXED_EVERYWHERE).items():
        if values.get(key, only) not in (only, None):
            raise RequestError(f"{source} sets {key} to {values[key]!r}", f"tformer has {only!r} alone")
    for key in ABSENT:
        if values.get(key):
            raise RequestError(f"{source} sets {key}", "tformer has no such models", "save it without")
    own = values.get("tformer") or {}
    if not isinstance(own, dict):
        raise RequestError(f"{source} sets tformer to {own!r}", "expected an object")
    names = {key: name for key, (name, _) in KEYS[family].items()}
    found = {key: values.get(name, default) for key, (name, default) in KEYS[family].items()}
    found |= {key: found[key] or 0 for key in MAY_BE_NULL & found.keys()}
    if family == "gpt2":
        found |= {"positions": own.get("positions", "learned"), "bias": own.get("bias", True)}
        names |= {"positions": "tformer.positions", "bias": "tformer.bias"}
    else:
        # transformers 5 writes rope_parameters; 4.x wrote rope_theta and rope_scaling.
        rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
        if not _is_plain_rotary(rope):
            raise RequestError(f"{source} has rotary parameters {rope}", "tformer has rope_type 'default'")
        found["rope_theta"] = rope.get("rope_theta") or values.get("rope_theta") or 10000.0
    found["activation"] = ACTIVATION_NAMES.get(str(found["activation"]), found["activation"])
    try:
        config = ModelConfig.model_validate({"family": family} | found)
    except ValidationError as error:
        raise _as_they_say_it(error, names, source) from None
    if family == "nanochat" and (width := values.get("head_dim")) not in (None, config.d_head):
        raise RequestError(f"{source} sets head_dim to {width}", "tformer has hidden_size / heads")
    return config


def _as_they_say_it(error: ValidationError, names: dict[str, str], source: str) -> RequestError:
    """What is wrong with a configuration, by the names that its file has for ours."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:  # of several values together
        message = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), message)
        return RequestError(f"{source} describes a model that tformer has not", message)
    key = str(first["loc"][0])
    what = f"{source} sets {names.get(key, key)} to {short(repr(first['input']))}"
    return RequestError(what, message.replace("Input should be", "expected"))


def _is_plain_rotary(rope: Any) -> bool:
    """One set of frequencies for all layers, unscaled, over the whole head."""
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return False
    kind = rope.get("rope_type", rope.get("type", "default"))
    return kind == "default" and rope.get("partial_rotary_factor", 1.0) in (1.0, None)


# ---------------------------------------------------------------------------- tensors


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face's name of each tensor of `model.py`, but for q, k and v of nanochat.

    A tied unembedding is left out, and so are positions that nothing learns.
    """
    gpt2 = config.family == "gpt2"
    names = {"embed.weight": "wte.weight" if gpt2 else "model.embed_tokens.weight"}
    if not config.tied:
        names["unembed.weight"] = "lm_head.weight"
    if config.positions == "learned":
        names["position"] = "wpe.weight"
    modules = (
        {
            "norm_1": "ln_1",
            "attn.qkv": "attn.c_attn",
            "attn.out": "attn.c_proj",
            "norm_2": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        if gpt2
        else {"attn.out": "self_attn.o_proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    )
    for i in range(config.n_layers):
        for ours, theirs in modules.items():
            prefix = f"h.{i}" if gpt2 else f"model.layers.{i}"
            names[f"blocks.{i}.{ours}.weight"] = f"{prefix}.{theirs}.weight"
            if config.bias:
                names[f"blocks.{i}.{ours}.bias"] = f"{prefix}.{theirs}.bias"
    if gpt2:
        names["norm_final.weight"] = "ln_f.weight"
        if config.bias:
            names["norm_final.bias"] = "ln_f.bias"
    return names


def _is_conv1d(config: ModelConfig, name: str) -> bool:
    """GPT-2 stores linear maps as (in, out), nn.Linear as (out, in); square ones too."""
    return config.family == "gpt2" and name.endswith(
        ("attn.qkv.weight", "attn.out.weight", "mlp.up.weight", "mlp.down.weight")
    )


def to_hf(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `model.py` state dict in the family's layout: contiguous float32 copies on the CPU.

    Of a model without numbers (on the meta device), the shapes alone.
    """
    layout = _layout(config, state)
    if config.positions == "sinusoidal":
        layout["wpe.weight"] = sinusoidal_positions(config.n_ctx, config.d_model)
    if config.family == "gpt2" and not config.tied:
        # transformers 4 takes names without a prefix for a model without a head, and refuses the head.
        layout = {n if n == "lm_head.weight" else f"transformer.{n}": t for n, t in layout.items()}
    place = "meta" if state["embed.weight"].is_meta else "cpu"
    return {name: t.detach().to(place, torch.float32, copy=True).contiguous() for name, t in layout.items()}


def _layout(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the layout has, on the device of `state`; positions that nothing learns stand there as zeros."""
    out: dict[str, Tensor] = {}
    for ours, theirs in hf_names(config).items():
        tensor = state[ours]
        out[theirs] = tensor.T if _is_conv1d(config, ours) else tensor
    if config.family == "gpt2":
        if config.positions != "learned":
            out["wpe.weight"] = torch.zeros(config.n_ctx, config.d_model, device=state["embed.weight"].device)
        if not config.bias:  # the layout has biases everywhere
            for name in [n for n in out if n.endswith(".weight") and n not in _NO_BIAS]:
                width = out[name].shape[-1]  # (in, out) or (width,)
                out[name.removesuffix("weight") + "bias"] = torch.zeros(
                    width, device=state["embed.weight"].device
                )
    else:
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        for i in range(config.n_layers):
            parts = state[f"blocks.{i}.attn.qkv.weight"].split((d_q, d_kv, d_kv))
            for letter, part in zip("qkv", parts, strict=True):
                out[f"model.layers.{i}.self_attn.{letter}_proj.weight"] = part
    return out


_NO_BIAS = ("wte.weight", "wpe.weight", "lm_head.weight")


def from_hf(config: ModelConfig, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A `model.py` state dict from tensors in the family's layout, as float32.

    Raises RequestError with the names of tensors that are missing, extra or of another shape, for a
    bias or a position table that is not what `config` implies, and for a tied head that is not the
    embedding: transformers 4 takes the embedding, transformers 5 the head.
    """
    given, tensors = tensors, {name.removeprefix("transformer."): t for name, t in tensors.items()}
    if twice := sorted(name for name in tensors if f"transformer.{name}" in given and name in given):
        raise RequestError(f"{source} has a tensor under two names", _some(twice), "save it with one of them")
    buffers = (*BUFFERS, "rotary_emb.inv_freq")
    tensors = {name: t for name, t in tensors.items() if not name.endswith(buffers)}
    copy = tensors.pop("lm_head.weight", None) if config.tied else None
    expected = {name: t.shape for name, t in _layout(config, empty_model(config).state_dict()).items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise RequestError(f"{source} lacks tensors", "missing " + _some(missing))
    if extra := sorted(tensors.keys() - expected.keys()):
        raise RequestError(f"{source} has tensors too many", "unexpected " + _some(extra))
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            found = tuple(tensors[name].shape)
            raise RequestError(f"{source}: {name} is {found}", f"config.json says {tuple(shape)}")
        if not tensors[name].dtype.is_floating_point:
            raise RequestError(f"{source}: {name} is {tensors[name].dtype}", "expected floating point")
        tensors[name] = tensors[name].float()
        if not tensors[name].isfinite().all():
            raise RequestError(f"{source}: {name} holds numbers that are not finite", "expected weights")
    state: dict[str, Tensor] = {}
    for ours, theirs in hf_names(config).items():
        state[ours] = tensors.pop(theirs)
        if _is_conv1d(config, ours):
            state[ours] = state[ours].T.contiguous()
    if config.family == "nanochat":
        for i in range(config.n_layers):
            names = (f"model.layers.{i}.self_attn.{letter}_proj.weight" for letter in "qkv")
            state[f"blocks.{i}.attn.qkv.weight"] = torch.cat([tensors.pop(name) for name in names])
    for name, tensor in tensors.items():  # what the layout has and this model implies
        implied = torch.zeros_like(tensor)
        if name == "wpe.weight" and config.positions == "sinusoidal":
            implied = sinusoidal_positions(config.n_ctx, config.d_model)
        if not torch.allclose(tensor, implied, atol=1e-6):
            raise RequestError(f"{source}: {name} has been changed", "config.json says it is fixed")
    if copy is not None and not torch.equal(copy.float(), state["embed.weight"]):
        advice = "set tie_word_embeddings to false"
        raise RequestError(f"{source}: lm_head.weight is not the embedding", "config.json ties them", advice)
    if config.tied:
        state["unembed.weight"] = state["embed.weight"]
    return state


class _NoDraws(TorchFunctionMode):
    """Skips random initialisation: on the meta device the first draw imports a second of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_model(config: ModelConfig) -> Transformer:
    """The model without numbers: names and shapes alone."""
    with torch.device("meta"), _NoDraws():
        return Transformer(config)


def without_weights(config: ModelConfig) -> Transformer:
    """The real modules, with shapes and no values but those of positions that nothing learns."""
    model = empty_model(config)
    if config.positions == "sinusoidal":
        table = sinusoidal_positions(config.n_ctx, config.d_model)
        model.register_buffer("position", table, persistent=False)
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# ---------------------------------------------------------------------------- files


def load_model(
    folder: Path, device: torch.device | str = "cpu", tensors: dict[str, Tensor] | None = None
) -> Transformer:
    """The model of a run or Hugging Face directory of the two families, in float32, in eval mode.

    `tensors` are other weights than those that lie there, by the names of its layout. Raises RequestError
    saying what is missing, extra or not supported.
    """
    if not (folder / "config.json").exists():
        raise no_model(folder)
    config = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    tensors = read_model_tensors(folder) if tensors is None else tensors
    config = as_trained(config, tensors)
    state = from_hf(config, tensors, str(folder))
    del tensors
    model = without_weights(config)
    model.load_state_dict(state, assign=True, strict=True)
    if config.tied:
        model.unembed.weight = model.embed.weight
    return model.to(device).eval().requires_grad_(True)


def notes_of(folder: Path, model: ModelConfig) -> tuple[str, ...]:
    """What a person should know of a model that was loaded from a directory; nothing of most."""
    said = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    return tuple(f"{folder}: {note}" for note in told_of(said, model))
