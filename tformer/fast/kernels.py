"""Puts the fast parts in the place of a model's own, for training alone; its formulas stay what they are.

`train.kernels` says which: `blocks` (both branches of a block, and dropout, on a CPU), `sdpa` (PyTorch's own
attention, whose fused kernels a GPU has), `reference` (the formula as model.py has it). `auto` is settled by
device, once, and recorded: examples/benchmarks/LOG.md has the measurements behind the rule.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.config import TrainConfig
from tformer.fast.branches import Branches
from tformer.fast.dropout import MaskedDropout, Masks
from tformer.fast.recompute import recompute_blocks
from tformer.model import Block, CausalSelfAttention, Transformer


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """PyTorch's attention under its own causal mask."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)


def decide_kernels(wanted: str, device: torch.device, compiled: bool) -> str:
    """`blocks` on a CPU, unless its step is compiled; `sdpa` on CUDA; `reference` elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "sdpa"
    return "blocks" if device.type == "cpu" and not compiled else "reference"


def attach(model: nn.Module, kernels: str, device: torch.device) -> None:
    """Give `model` the parts that `kernels` names.

    A run that was begun on a CPU and goes on elsewhere has no use for `blocks`; on CUDA it gets `sdpa`.
    """
    if kernels == "blocks" and device.type != "cpu":
        kernels = "sdpa" if device.type == "cuda" else "reference"
    if kernels == "reference":
        return
    if kernels == "sdpa":
        for module in model.modules():
            if isinstance(module, CausalSelfAttention):
                module.fast = sdpa
        return
    masks = Masks()
    branches = Branches(masks)
    for module in list(model.modules()):
        if isinstance(module, Block):
            module.fast = branches
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, MaskedDropout(child.p, masks))


def put_parts(model: Transformer, train: TrainConfig, device: torch.device) -> None:
    """Give a model that is to train its kernels for `device`, and blocks that keep little if they are to."""
    attach(model, train.kernels, device)
    if train.recompute:
        recompute_blocks(model, dropout_streams(model))


def dropout_streams(model: nn.Module) -> list[Masks]:
    """The sources of random bits that a step has to begin, beside PyTorch's own."""
    found = {id(m.masks): m.masks for m in model.modules() if isinstance(m, MaskedDropout)}
    return list(found.values())
