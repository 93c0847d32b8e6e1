"""What a training costs, by formula: parameters, FLOPs, memory, disk, communication; nothing is measured.

The formulas, with their sources, are in examples/guide/costs.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from tformer.config import Config, ModelConfig
from tformer.errors import RequestError
from tformer.model import Transformer
from tformer.run.huggingface import empty_model, to_hf
from tformer.run.tensors import safetensors_header
from tformer.training.memory import judging_bytes, step_bytes
from tformer.training.optim import Optimizers

FLOAT = 4  # bytes of a weight, a gradient, a moment: float32, whatever the products are made in
UTILISATION = 0.4  # of an accelerator's peak: what good training code of this kind reaches
OPTIMAL = 20  # tokens a parameter (Hoffmann et al. 2022, "Chinchilla")


@dataclass(frozen=True)
class Accelerator:
    """A GPU, by its maker's data sheet."""

    flops: float  # a second, dense, bf16 on tensor cores; where it has no bf16, fp32
    fp32: float  # a second, without tensor cores
    memory: float  # bytes
    link: float  # bytes a second that one GPU sends to others of its machine, and as many that it is sent


ACCELERATORS = {
    "t4": Accelerator(8.1e12, 8.1e12, 16e9, 16e9),
    "l4": Accelerator(121e12, 30.3e12, 24e9, 32e9),
    "rtx4090": Accelerator(165e12, 82.6e12, 24e9, 32e9),
    "a100": Accelerator(312e12, 19.5e12, 80e9, 300e9),
    "h100": Accelerator(989e12, 67e12, 80e9, 450e9),
    "h200": Accelerator(989e12, 67e12, 141e9, 450e9),
    "b200": Accelerator(2250e12, 75e12, 180e9, 900e9),
}


def find_accelerator(name: str) -> Accelerator:
    """An accelerator by its name. Raises RequestError listing those that are known."""
    if name.lower() not in ACCELERATORS:
        raise RequestError(f"no accelerator {name!r} is known", "there is " + ", ".join(ACCELERATORS))
    return ACCELERATORS[name.lower()]


# ---------------------------------------------------------------------------- parameters and FLOPs


def parameters_by_part(model: Transformer) -> dict[str, int]:
    """How many parameters each kind of part has; a tied table counts once, as the embedding."""
    kinds = {"embed": "embeddings", "position": "positions", "unembed": "unembedding"}
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        inner = {"attn": "attention", "mlp": "MLPs"}.get(words[2], "norms") if len(words) > 3 else "norms"
        part = kinds.get(words[0], inner)
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


FORWARD_TWICE = 4 / 3  # forward, forward again and back (twice as much), against forward and back


@lru_cache(maxsize=64)  # a model is laid out to be counted
def flops_per_token(config: ModelConfig, window: int) -> int:
    """Of a forward and a backward pass: 6 N + 12 · n_layers · n_heads · d_head · window.

    N is every parameter but tables that are only looked up (Chowdhery et al. 2022, "PaLM", appendix B);
    the same as nanoGPT's `estimate_mfu`. The causal mask saves nothing in this count.
    """
    parts = parameters_by_part(empty_model(config))
    n = sum(parts.values()) - parts.get("positions", 0) - (0 if config.tied else parts["embeddings"])
    return 6 * n + 12 * config.n_layers * config.n_heads * config.d_head * window


# ---------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training, on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of the windows that go at a time; in an evaluation at least its logits

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def sharded(self, n: int, at_once: bool = True) -> "Memory":
        """On each of n devices that hold an nth of the weights and moments, and of the gradients.

        Of windows that do not go at once the gradients are whole until the last of them.
        """
        weights, optimizer, gradients = (-(-b // n) for b in (self.weights, self.optimizer, self.gradients))
        return Memory(weights, gradients if at_once else self.gradients, optimizer, self.activations)


def training_memory(config: Config, at_once: int) -> Memory:
    """With so many windows at a time on the device."""
    model = empty_model(config.model)
    weights = FLOAT * model.n_parameters
    optimizer = FLOAT * sum(map(math.prod, optimizer_shapes(config, model).values()))
    window = step_bytes(config)[1]
    return Memory(weights, weights, optimizer, max(at_once * window, judging_bytes(config.model.vocab_size)))


def gathered_bytes(model: Transformer) -> int:
    """What is whole of a sharded model at a time: all but the blocks, and two of those, one of them ahead."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    blocks = sum(n for name, n in sizes.items() if name.startswith("blocks."))
    return FLOAT * (
        sum(sizes.values()) - blocks + blocks * min(2, model.config.n_layers) // model.config.n_layers
    )


def optimizer_shapes(config: Config, model: Transformer) -> Mapping[str, torch.Size]:
    """The shapes of the optimizer's state, by name."""
    return Optimizers(model, config.train).state_shapes()


# ---------------------------------------------------------------------------- disk


def safetensors_bytes(shapes: Mapping[str, Sequence[int]], sealed: bool = False) -> int:
    """The size of a file of float32 tensors, to the byte: its header and the numbers."""
    header, _ = safetensors_header({name: (torch.float32, shape) for name, shape in shapes.items()}, sealed)
    return len(header) + FLOAT * sum(map(math.prod, shapes.values()))


@dataclass(frozen=True)
class Disk:
    """Bytes of the tensors on disk; text files beside them take some kilobytes."""

    weights: int  # model.safetensors
    checkpoint: int  # the same and optimizer.safetensors
    checkpoints: int  # how many are left at the end, at most
    ids: int = 0  # of a long text, beside the checkpoints

    @property
    def total(self) -> int:
        """At the end of a run."""
        return self.weights + self.checkpoints * self.checkpoint + self.ids


def disk_of(config: Config, ids: int = 0) -> Disk:
    """What a run leaves, with so many bytes of files of ids."""
    train, model = config.train, empty_model(config.model)
    shapes = {name: t.shape for name, t in to_hf(config.model, model.state_dict()).items()}
    weights = safetensors_bytes(shapes, sealed=True)
    optimizer = safetensors_bytes(optimizer_shapes(config, model))
    saves = -(-train.steps // train.checkpoint_every) if train.checkpoint_every else 1
    best = train.keep == "best" and 0 < train.eval_every < train.steps  # which may be an older one
    return Disk(weights, weights + optimizer, min(saves, train.keep_checkpoints + best), ids)


# ---------------------------------------------------------------------------- accelerators


@dataclass(frozen=True)
class OnAccelerator:
    """A run on so many accelerators of one kind."""

    name: str
    gpus: int
    sharded: bool
    windows_at_once: int  # on each; 0: not even one fits
    memory: int  # bytes on each
    sent: int  # bytes that each sends in a step, and as many that it is sent
    computing_per_step: float  # seconds
    communication_per_step: float  # seconds, which pass while it computes
    seconds: float  # of all steps

    @property
    def has_room(self) -> bool:
        """Whether its memory is enough."""
        return self.windows_at_once > 0


def on_accelerator(
    config: Config,
    name: str,
    gpus: int = 1,
    sharded: bool = False,
    utilisation: float = UTILISATION,
    precision: str = "auto",
) -> OnAccelerator:
    """What the run comes to there, at a share of its peak for the precision that is asked for.

    A step takes as long as computing, or as communicating where that is longer: they overlap. Raises
    RequestError where the windows of a step cannot be shared out.
    """
    config = config.updated("train", kernels="sdpa")  # what a GPU has
    kind, train = find_accelerator(name), config.train
    if train.batch_size % gpus:
        raise RequestError(
            f"train.batch_size {train.batch_size} over {gpus} processes",
            "expected a number that they divide",
            f"--batch-size {max(1, round(train.batch_size / gpus)) * gpus}",
        )
    each, peak = train.batch_size // gpus, kind.fp32 if precision == "fp32" else kind.flops
    one = training_memory(config, 1)
    parted, window = sharded and gpus > 1, step_bytes(config)[1]
    beside = gathered_bytes(empty_model(config.model)) if parted else 0
    # Of a sharded model the first process has a whole copy at an evaluation.
    judging = judging_bytes(config.model.vocab_size) + (one.weights if parted else 0)

    def held(n: int) -> int:
        state = one.sharded(gpus, n == each) if parted else one
        return state.weights + state.gradients + state.optimizer + max(n * window + beside, judging)

    most = min(each, train.micro_batch_size or each)
    rooms = [n for n in range(1, most + 1) if each % n == 0]
    at_once = max((n for n in rooms if held(n) <= kind.memory), default=0)
    length = config.data.window or config.model.n_ctx
    computing = flops_per_token(config.model, length) * each * length / (peak * utilisation)
    if train.recompute:
        computing *= FORWARD_TWICE
    sent = bytes_sent(one.weights, gpus, sharded, each // (at_once or 1))
    communication = sent / kind.link
    seconds = train.steps * max(computing, communication)
    return OnAccelerator(
        name.lower(), gpus, sharded, at_once, held(at_once or 1), sent, computing, communication, seconds
    )


def bytes_sent(weights: int, gpus: int, sharded: bool, micro_batches: int = 1) -> int:
    """Bytes that each process sends in a step, by ring algorithms.

    Whole: gradients are reduced and given to all, 2 (n - 1)/n of them, once a step. Sharded: the weights are
    all-gathered for the forward and the backward pass of every micro-batch, the gradients reduce-scattered
    once.
    """
    rounds = 2 * micro_batches + 1 if sharded else 2
    return rounds * weights * (gpus - 1) // gpus
