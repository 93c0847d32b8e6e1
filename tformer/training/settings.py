"""Which configuration a training has: from a preset and layers of settings, or around what a run or a model
directory fixes already.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tformer.config import Config
from tformer.device import decide_compile, decide_precision
from tformer.errors import RequestError
from tformer.fast.kernels import decide_kernels
from tformer.layers import CORPORA_PRESETS, GPU_PRESETS, Layer, merge, preset_layer
from tformer.run.pretrained import Pretrained, configure, recipe
from tformer.run.record import ANOTHER_RUN, Record
from tformer.training.further import further_layer

OF_A_LIST = "list"  # the preset of lists
# On --resume these may change: a checkpoint is as good under others. Rates follow from the first two.
OF_THE_RATE = ("steps", "lr")
MAY_CHANGE = (
    *OF_THE_RATE,
    *("eval_every", "checkpoint_every", "log_every", "keep", "keep_checkpoints", "patience"),
    *("recompute", "micro_batch_size", "shard"),
)
# What leaves a setting open: it was settled when the run began.
SETTLED = {
    "vocab_size": 0,
    "n_kv_heads": 0,
    "d_mlp": 0,
    "precision": "auto",
    "compile": "auto",
    "kernels": "auto",
    "window": 0,
    "documents": "auto",
    "val_split": "auto",
}


class OtherRunError(RequestError):
    """Settings ask for another run than the one that goes on.

    `others` are, of each, what it is in that run and who says what.
    """

    others: Sequence[tuple[str, str]] = ()


def other_run(others: Sequence[tuple[str, str]], beside: Sequence[str] = ()) -> OtherRunError:
    """The error that lists them; `beside` tells what else is not as it was, in words."""
    (what, found), *more = others
    told = [found, *(f"{is_there}, {said}" for is_there, said in more), *beside]
    out = f"leave {'them' if more else 'it'} out" + " and put the rest back" * bool(beside)
    error = OtherRunError(what, "; ".join(told), f"{out} to continue, or {ANOTHER_RUN}")
    error.others = others
    return error


def default_preset(sources: Sequence[str], device: torch.device, on_gpu: bool) -> str:
    """The preset of DATA; on a GPU the larger one, where there is one and nothing else is asked for."""
    name = CORPORA_PRESETS.get(sources[0] if len(sources) == 1 else "", "text")
    return GPU_PRESETS.get(name, name) if on_gpu and device.type == "cuda" else name


def training_config(
    default: str,
    preset: Layer | None,
    layers: Sequence[Layer],
    recorded: Record,
    pretrained: Pretrained | None,
) -> Config:
    """The configuration that a preset and the layers make; around its own of a run that is resumed, and
    around the architecture and tokenizer of a model that is trained further.

    `preset` is the one that was asked for, `default` the name of what is taken otherwise. Raises RequestError
    where the settings contradict each other, or the run or model that is there.
    """
    if pretrained and (preset or default == "reversal"):
        return configure(pretrained, [recipe(preset or preset_layer(default)), *layers])
    if pretrained:
        return configure(pretrained, [further_layer(pretrained.model.d_model), *layers])
    if recorded.is_empty:
        return merge([preset or preset_layer(default), *layers])
    if preset and recorded.init_from:
        preset = recipe(preset)
    elif preset and recorded.preset == OF_A_LIST:
        preset = _settled_by_length(preset)
    return resume_config(recorded, [*([preset] if preset else []), *layers])


def _settled_by_length(preset: Layer) -> Layer:
    """The preset of lists without its dropout: whether there is any followed from the text, once."""
    model = {name: value for name, value in preset.values.get("model", {}).items() if name != "dropout"}
    return Layer(preset.source, preset.values | {"model": model})


def resume_config(recorded: Record, explicit: Sequence[Layer]) -> Config:
    """The configuration of a run that goes on: its own, with what may change taken from `explicit`.

    A run whose compiler failed may be told to compile: it tries again. Raises RequestError naming every
    setting that asks for another run.
    """
    own = {section: dict(recorded.settings.get(section, {})) for section in Config.model_fields}
    asked = {  # of several that say something, the last one counts
        (section, name): (value, layer.source)
        for layer in explicit
        for section, values in layer.values.items()
        for name, value in values.items()
    }
    others = []
    for (section, name), (value, source) in asked.items():
        before = own[section].get(name)
        again = name == "compile" and value == "on" and recorded.compile_failed is not None
        if section == "train" and (name in MAY_CHANGE or again):
            own[section][name] = value
        elif value != before and (name not in SETTLED or value != SETTLED[name]):
            others.append((f"{section}.{name} is {before!r} in this run", f"{source} says {value!r}"))
    if others:
        raise other_run(others)
    return merge([Layer("tformer.yaml", own)])


def kept_settings(config: Config) -> dict[str, dict[str, Any]]:
    """What a run keeps from its beginning to its end, by section."""
    kept = config.model_dump()
    for name in (*MAY_CHANGE, "compile"):
        del kept["train"][name]
    return kept


def decide(config: Config, device: torch.device, vocab_size: int) -> Config:
    """Everything that `auto` leaves open, settled once: it is recorded, and obeyed on resume."""
    model_vocab = config.model.vocab_size or vocab_size
    if model_vocab < vocab_size:
        raise RequestError(f"model.vocab_size {model_vocab}", f"the tokenizer has {vocab_size} ids")
    config = config.updated("model", vocab_size=model_vocab)
    if config.train.kernels == "blocks" and config.train.compile == "on":
        raise RequestError(
            "train.kernels=blocks cannot be compiled", "found train.compile=on", "leave one out"
        )
    compiled = decide_compile(config.train.compile, device) and config.train.kernels != "blocks"
    return config.updated(
        "train",
        precision=decide_precision(config.train.precision, device),
        compile="on" if compiled else "off",
        kernels=decide_kernels(config.train.kernels, device, compiled),
    )
