"""The model that a time has room for: size, windows and recipe, of `--minutes` where nothing says which.

The rule, fitted to what `examples/benchmarks/LOG.md` has under "The model by the time": the largest of
some shapes of which the time lets every parameter of the blocks learn from so many tokens. A short text
holds that down, and what is read many times gets dropout.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tformer.config import MOST_STEPS, Config, ModelConfig
from tformer.counted import counted
from tformer.device import random_numbers_kept
from tformer.fast.kernels import put_parts
from tformer.free_memory import free_bytes
from tformer.layers import Layer
from tformer.model import Transformer
from tformer.run.huggingface import empty_model
from tformer.text.data import Windows
from tformer.training.budget import Clock, time_of_step
from tformer.training.costs import flops_per_token, parameters_by_part
from tformer.training.fit import Learner
from tformer.training.further import window_for
from tformer.training.memory import refuse_larger
from tformer.training.optim import Optimizers

SHAPES = (  # width and blocks, from small to large
    *((64, 2), (128, 3), (128, 4), (192, 4), (192, 5), (256, 5), (256, 6), (320, 6)),
    *((384, 6), (384, 8), (512, 8), (640, 10), (768, 12)),
)
HEAD = 64  # the width of a head
PROBE = 128, 4  # the model that is timed
TOKENS_A_PARAMETER = 2.0  # of the blocks: at least so many are learned from
PARAMETERS_A_TOKEN = 8.0  # of the training text: at most so many in the blocks
TOKENS_A_STEP = 2048
WINDOW, LONG_WINDOW, LONG_FROM = 128, 256, 256  # inputs; the long one of characters, from this width on
DROPOUT_BY_PASSES = ((7, 0.0), (16, 0.1))  # up to so many over the text go with so much dropout,
MOST_DROPOUT = 0.2  # and more of them with this
MUON_LR = {"nanochat": 1e-2, "gpt2": 5e-3}  # the rate of Muon, at most
LR_TIMES_WIDTH = 1.536  # of a model that is wide: the rate is in proportion
ADAMW_LR, ADAMW_LR_TIMES_WIDTH = 1e-3, 0.128  # the same two of AdamW
SCHEDULE = {
    "warmup_steps": 20,
    "decay": "linear",
    "decay_fraction": 0.9,
    "lr_final": 0.0,
    "weight_decay": 0.1,
}
SHAPE_SETTINGS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_mlp", "n_ctx")
JUDGING = 0.05  # of the time, for evaluations before the last one
MOST_EVALUATIONS = 10
SAVE_EVERY = 300.0  # seconds
PROBING = 0.01  # of the time, for steps of the model that is timed
FORWARD = 1 / 3  # of the FLOPs of a step: an evaluation has no backward pass


@dataclass(frozen=True)
class Room:
    """What a training has: seconds for steps and evaluations, FLOPs a second, and a text in tokens.

    `kind` is the tokenizer's; `n_train` and `n_val` count the tokens of the two parts of the text.
    """

    seconds: float
    flops: float
    kind: str
    n_train: int
    n_val: int


IsOpen = Callable[[str, str], bool]
"""Whether a person leaves a setting (section, name) open."""


def start_layer(given: Sequence[Layer]) -> Layer:
    """A small model and batch that what a person has given agrees with, in the place of the preset's."""
    values: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "train": {}}
    for layer in given:
        for section, kept in values.items():
            named = layer.values.get(section, {}).items()
            kept |= {name: value for name, value in named if type(value) is int and value > 0}
    model, data = values["model"], values["data"]
    n_kv_heads = model.get("n_kv_heads", 1)
    width = model.get("d_model") or _multiple(HEAD, 2 * model.get("n_heads", n_kv_heads))
    shape = {
        "d_model": width,
        "n_heads": model.get("n_kv_heads") or _heads(width, 1),
        "n_ctx": max(WINDOW, data.get("window", 0), data.get("stride", 0)),
    }
    batch_size = values["train"].get("micro_batch_size", TOKENS_A_STEP // WINDOW)
    return Layer("the rule of --minutes", {"model": shape, "train": {"batch_size": batch_size}})


def config_for(
    room: Room, config: Config, is_open: IsOpen, has_memory: Callable[[Config], bool] = lambda config: True
) -> Config:
    """The configuration with the model and the recipe that the rule has for so much room.

    What a person has given stays. `config.model.vocab_size` is settled. Of shapes that the memory has no
    room for a smaller one is taken, where there is one.
    """
    found: list[Config] = []
    for shape in SHAPES:
        larger = _of_shape(shape, room, config, is_open)
        n_blocks = _block_parameters(larger.model)
        has_time = tokens_within(room, larger) >= TOKENS_A_PARAMETER * n_blocks
        if found and not (has_time and n_blocks <= PARAMETERS_A_TOKEN * room.n_train):
            break
        found.append(larger)
    recipes = (_with_recipe(room, one, is_open) for one in reversed(found))
    smallest = _with_recipe(room, found[0], is_open)
    return next((recipe for recipe in recipes if has_memory(recipe)), smallest)


def tokens_within(room: Room, config: Config) -> float:
    """How many tokens a model learns from in the time that its evaluations leave."""
    left = room.seconds * (1 - JUDGING) - _evaluation_seconds(room, config)
    return max(0.0, left * room.flops / _flops_per_token(config))


def _flops_per_token(config: Config) -> int:
    return flops_per_token(config.model, config.data.window or config.model.n_ctx)


def _evaluation_seconds(room: Room, config: Config) -> float:
    return FORWARD * _flops_per_token(config) * room.n_val / room.flops


@lru_cache(maxsize=64)
def _block_parameters(config: ModelConfig) -> int:
    parts = parameters_by_part(empty_model(config))
    return parts["attention"] + parts["MLPs"]


def _of_shape(shape: tuple[int, int], room: Room, config: Config, is_open: IsOpen) -> Config:
    """The configuration with a width and so many blocks, what goes with them, and the window of the text."""
    own = config.model
    asked = {name: None if is_open("model", name) else getattr(own, name) for name in SHAPE_SETTINGS}
    n_kv_heads = asked["n_kv_heads"] or 1
    width = asked["d_model"] or _multiple(shape[0], 2 * (asked["n_heads"] or n_kv_heads))
    longest = LONG_WINDOW if room.kind == "char" and width >= LONG_FROM else WINDOW
    window = window_for(longest, room.n_train, torch.device("cpu"))
    found = {
        "n_layers": shape[1],
        "d_model": width,
        "n_heads": n_kv_heads if asked["n_kv_heads"] and own.family == "gpt2" else _heads(width, n_kv_heads),
        "n_kv_heads": 0,
        "d_mlp": 0,
        "n_ctx": max(window, config.data.window, config.data.stride),
    }
    return config.updated("model", **{k: v for k, v in found.items() if not asked[k]})


def _multiple(width: int, of: int) -> int:
    return -(-width // of) * of


def _heads(width: int, n_kv_heads: int) -> int:
    """How many heads: they divide the width evenly, and are as near as can be to HEAD wide."""
    fitting = [n for n in range(n_kv_heads, width + 1, n_kv_heads) if width % (2 * n) == 0]
    return min(fitting, key=lambda n: abs(width / n - HEAD), default=n_kv_heads)


def _with_recipe(room: Room, config: Config, is_open: IsOpen) -> Config:
    """How a model of this shape is trained in the time."""
    model, window = config.model, config.data.window or config.model.n_ctx
    tokens = tokens_within(room, config)
    if is_open("model", "dropout"):
        passes = tokens / room.n_train
        dropout = next((share for most, share in DROPOUT_BY_PASSES if passes <= most), MOST_DROPOUT)
        config = config.updated("model", dropout=dropout)
    batch_size = config.train.batch_size
    if is_open("train", "batch_size"):
        at_once = 1 if is_open("train", "micro_batch_size") else config.train.micro_batch_size or 1
        batch_size = at_once * max(1, TOKENS_A_STEP // (window * at_once))
    steps = min(MOST_STEPS, max(1, round(tokens / (batch_size * window))))
    judged = min(MOST_EVALUATIONS, int(JUDGING * room.seconds / max(_evaluation_seconds(room, config), 1e-9)))
    recipe: dict[str, Any] = {
        "batch_size": batch_size,
        "eval_every": -(-steps // (judged + 1)) if judged else 0,
        "checkpoint_every": math.ceil(steps * SAVE_EVERY / room.seconds) if room.seconds > SAVE_EVERY else 0,
    }
    rate = min(MUON_LR[model.family], LR_TIMES_WIDTH / model.d_model)
    if config.train.optimizer == "adamw":
        rate = min(ADAMW_LR, ADAMW_LR_TIMES_WIDTH / model.d_model)
    recipe |= SCHEDULE | {"lr": round(rate, 6)}
    return config.updated("train", **{k: v for k, v in recipe.items() if is_open("train", k)})


def describe(config: Config) -> str:
    """For a person: which model it is."""
    model, train = config.model, config.train
    window = config.data.window or model.n_ctx
    return (
        f"the time has room for {counted(model.n_layers, 'layer')}, {model.d_model} wide, windows of "
        f"{window}, {train.batch_size} a step, dropout {model.dropout:g}, rate {train.lr:.2g} "
        "(--preset NAME or --set KEY=VALUE: one of yours)"
    )


# ---------------------------------------------------------------------------- the machine


def measured_flops(config: Config, device: torch.device, seconds: float, clock: Clock) -> float:
    """FLOPs a second of training here, by about so many seconds of steps of a small model.

    Precision and kernels of `config` are settled; torch's random numbers are afterwards what they were.
    """
    plain = config.updated("data", window=0, stride=0).updated("model", dropout=0.0)
    room = Room(seconds, 1.0, "bpe", 4 * TOKENS_A_STEP, 0)
    probe = _of_shape(PROBE, room, plain, lambda section, name: True)
    ids = np.arange(TOKENS_A_STEP + 1) % probe.model.vocab_size
    train = config.train.model_copy(update={"batch_size": TOKENS_A_STEP // WINDOW, "micro_batch_size": 0})
    refuse_larger(probe.model_copy(update={"train": train}), free_bytes(device))
    with random_numbers_kept(device):
        model = Transformer(probe.model).to(device)
        put_parts(model, train, device)
        learner = Learner(model, Optimizers(model, train))
        step = time_of_step(learner, Windows(ids, WINDOW), train, seconds, clock)
    return flops_per_token(probe.model, WINDOW) * TOKENS_A_STEP / step
