"""The keys and values of positions seen before, kept so that a new token costs one position and not all.

Shapes are those inside attention: (batch, head, position, d_head), with the key heads alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tformer.config import ModelConfig


@dataclass(frozen=True)
class LayerCache:
    """One layer of a `KVCache`, which its attention appends to: `length` positions are there."""

    keys: Float[Tensor, "batch kv_head room d_head"]
    values: Float[Tensor, "batch kv_head room d_head"]
    length: int

    def extend(
        self, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head all d_head"], Float[Tensor, "batch kv_head all d_head"]]:
        """Append new positions, in place; return keys and values of the whole past and present."""
        end = self.length + k.shape[-2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """Keys and values of the positions seen so far, (layer, batch, kv_head, room, d_head), and how many.

    There is `room` for n_ctx positions, or for as many as are asked for. `padding[b]` positions at the start
    of row b stand for nothing: prompts of different lengths are padded on the left so that all of them end at
    the same position. dtype and device are those of `like`.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        like: Tensor,
        padding: Int[Tensor, " batch"] | None = None,
        room: int | None = None,
    ):
        room = config.n_ctx if room is None else min(room, config.n_ctx)
        shape = (config.n_layers, batch, config.n_kv_heads, room, config.d_head)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.padding = padding
        self.length = 0

    def repeat(self, one: "KVCache") -> None:
        """Take what a cache of one row holds, in every row."""
        self.keys[:, :, :, : one.length] = one.keys[:, :, :, : one.length]
        self.values[:, :, :, : one.length] = one.values[:, :, :, : one.length]
        self.length = one.length

    def layer(self, i: int) -> LayerCache:
        """The part of one layer, as of now."""
        return LayerCache(self.keys[i], self.values[i], self.length)
