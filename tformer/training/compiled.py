"""A model's forward, compiled and tried before the first step: a compiler that fails costs no run.

`torch.compile` compiles when it is first called, and again at the first backward pass; whether this machine
can (it takes a C++ compiler, and Triton on CUDA) shows only then. So the very batch of the next step goes
forward and back once, and nothing of it is kept.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tformer.config import TrainConfig
from tformer.device import autocast, random_numbers_kept, to_device
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.ranks import BY_ITSELF, Ranks
from tformer.text.data import Batches


class CompileError(Exception):
    """The compiler failed; what it said, in one line."""


def compile_forward(
    model: nn.Module,
    batches: Batches,
    train: TrainConfig,
    step: int,
    ranks: Ranks = BY_ITSELF,
    compile: Callable[..., Any] | None = None,
) -> Callable[[Tensor], Tensor]:
    """The forward of `model`, compiled, after a pass forward and back on (a micro batch of) the step's batch,
    or of what a process has of it.

    Steps have batches of that shape; another would be compiled anew. Weights, gradients (there are none yet)
    and random numbers are afterwards as they were before. Raises CompileError where compiling fails; a device
    without memory for the batch raises its own error.
    """
    device = next(model.parameters()).device
    micro = train.micro_batch_size or train.batch_size
    batch, own = batches.batch(step, train.batch_size), ranks.share(train.batch_size)
    inputs, targets = (to_device(a[own], device)[:micro] for a in batch)
    try:
        # What a compiler advises (other precisions, larger devices) is not for whoever trains.
        with warnings.catch_warnings(), random_numbers_kept(device):
            warnings.simplefilter("ignore")
            forward: Callable[[Tensor], Tensor] = (compile or torch.compile)(model)
            model.train()
            with autocast(train.precision, device):
                logits = forward(inputs)
            cross_entropy(logits, targets).sum().backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each part of the compiler has its own
        raise CompileError(_said_by(error)) from error
    finally:
        model.zero_grad(set_to_none=True)
    return forward


def compile_blocks(model: Transformer) -> Transformer:
    """Have each block compiled by itself, when it is first called; the same model.

    So a sharded one is: what puts the weights of a block together stays outside.
    """
    for block in model.blocks:
        block.forward = torch.compile(block.forward)
    return model


def _said_by(error: BaseException) -> str:
    """The first line of what an error says; of the error inside, where the compiler has wrapped one."""
    inner = getattr(error, "inner_exception", None) or error
    lines = str(inner).strip().splitlines()
    name = type(inner).__name__
    if not lines:
        return name
    return lines[0] if name in lines[0] else f"{name}: {lines[0]}"
