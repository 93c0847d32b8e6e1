"""Blocks whose activations are computed again in the backward pass in place of being kept (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost").

What a block is given is kept, and no more: memory for one more forward pass, a third of a step's products.
Losses and gradients are the same ones to the bit, dropout included.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tformer.fast.dropout import Masks
from tformer.model import Block, Transformer


def recompute_blocks(model: Transformer, streams: list[Masks]) -> None:
    """Have every block compute its activations again; `streams` are those that dropout draws from.

    Without gradients, and where a cache is filled, blocks stay as they are.
    """
    for block in model.blocks:
        assert isinstance(block, Block)
        block.forward = _recomputed(block, streams)  # type: ignore[method-assign]


def _recomputed(block: Block, streams: list[Masks]) -> Any:
    forward = block.forward
    # A compiler follows PyTorch's own random numbers alone, and has no `streams` to begin with.
    more: dict[str, Any] = {"context_fn": lambda: _same_bits(streams)} if streams else {}

    def again(x: Tensor, mask: Tensor, rotation: Any = None, cache: Any = None) -> Tensor:
        if cache is not None or not torch.is_grad_enabled():
            return forward(x, mask, rotation, cache)
        out: Tensor = checkpoint(forward, x, mask, rotation, use_reentrant=False, **more)
        return out

    return again


def _same_bits(streams: list[Masks]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first time nothing; around the second the streams stand where they stood before it."""
    before = [masks.bits.state for masks in streams]
    return nullcontext(), _standing_at(streams, before)


@contextmanager
def _standing_at(streams: list[Masks], states: list[Any]) -> Iterator[None]:
    after = [masks.bits.state for masks in streams]
    for masks, state in zip(streams, states, strict=True):
        masks.bits.state = state
    try:
        yield
    finally:
        for masks, state in zip(streams, after, strict=True):
            masks.bits.state = state
