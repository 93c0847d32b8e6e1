"""One more token of one sequence, on a CPU in float32: `Transformer.forward` with a cache, by numpy.

A step of decoding multiplies every matrix by one vector, which is bound by how fast the weights come from
memory. The library that numpy brings does it up to four times as fast as the one that PyTorch brings, where
the processor is not Intel's, and an operation of numpy begins in a microsecond. Weights and cache are the
model's own memory, seen as arrays. Several rows are PyTorch's, and of one row PyTorch computes what it does
with one thread: two libraries that both keep threads for their work wait for each other.

Letters as in model.py: H query heads, G key heads, K d_head, C d_model, S cached positions with the new one.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tformer.device import one_thread
from tformer.kv_cache import KVCache
from tformer.model import Block, Transformer, rotary_angles
from tformer.watch import is_plain

Array = np.ndarray[Any, np.dtype[np.float32]]
Map = tuple[Array, Array | None]  # weight and bias
Scaling = tuple[Array | None, Array | None]  # scale and shift of a norm, where it has them


def can_decode(model: Transformer, cache: KVCache) -> bool:
    """Whether `Decoder` computes what the model would: float32 on a CPU, one row, its own formulas."""
    weight = model.embed.weight
    one_row = cache.keys.shape[1] == 1 and cache.padding is None
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return one_row and plain and is_plain(model)


class Decoder:
    """Called as the model is, with one id after those that a cache holds."""

    def __init__(self, model: Transformer, cache: KVCache):
        c = self.config = model.config
        self.cache = cache
        self.keys, self.values = cache.keys[:, 0].numpy(), cache.values[:, 0].numpy()  # (layer, G, room, K)
        self.table, self.unembed = _array(model.embed.weight), _array(model.unembed.weight)
        self.position = None if model.position is None else _array(model.position)
        self.norm_final = _scaling(model.norm_final)
        self.blocks = [_parts(block) for block in model.blocks]
        if c.positions == "rotary":
            angles = rotary_angles(torch.arange(self.keys.shape[2]), c.d_head, c.rope_theta)
            self.cos, self.sin = (x.numpy() for x in angles)  # (room, K/2)

    @one_thread()  # of PyTorch's, so that none of them waits at work where numpy's want to work
    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (1, 1, V) after `ids` (1, 1), which is appended to the cache."""
        c = self.config
        assert cache is self.cache and ids.shape == (1, 1)
        x = self.table[int(ids[0, 0])]  # (C,)
        if self.position is not None:
            x = x + self.position[cache.length]
        if c.norm_embed:
            x = _rms(x, c.norm_eps)
        for i, (norm_1, qkv, out, norm_2, up, down) in enumerate(self.blocks):
            x = x + _map(out, self._attend(i, _map(qkv, self._norm(x, norm_1))))
            x = x + _map(down, self._activate(_map(up, self._norm(x, norm_2))))
        cache.length += 1
        logits = torch.from_numpy(self.unembed @ self._norm(x, self.norm_final))
        if cap := c.logit_softcap:
            logits = cap * torch.tanh(logits / cap)
        return logits[None, None]

    def _attend(self, layer: int, projected: Array) -> Array:
        """From queries, keys and values of the new position, ((H + 2 G) K,), what is seen, (H K,)."""
        c, at = self.config, self.cache.length
        heads = projected.reshape(-1, c.d_head)
        turned = heads[: c.n_heads + c.n_kv_heads]  # queries and keys
        if c.positions == "rotary":
            cos, sin, half = self.cos[at], self.sin[at], c.d_head // 2
            a, b = turned[:, :half], turned[:, half:]
            turned = np.concatenate((a * cos + b * sin, b * cos - a * sin), axis=1)
        if c.qk_norm:
            turned = _rms(turned, c.norm_eps)
        self.keys[layer, :, at] = turned[c.n_heads :]
        self.values[layer, :, at] = heads[c.n_heads + c.n_kv_heads :]
        keys, values = self.keys[layer, :, : at + 1], self.values[layer, :, : at + 1]  # (G, S, K)
        q = turned[: c.n_heads].reshape(c.n_kv_heads, -1, c.d_head)  # (G, H/G, K)
        scores = (q * np.float32(c.d_head**-0.5)) @ keys.swapaxes(1, 2)  # (G, H/G, S)
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= np.add.reduce(weights, axis=-1, keepdims=True)
        seen: Array = (weights @ values).reshape(-1)
        return seen

    def _norm(self, x: Array, scaling: Scaling) -> Array:
        """The norm before a linear map."""
        c = self.config
        if c.norm == "rms":
            return _rms(x, c.norm_eps)
        x = _rms(x - np.add.reduce(x) * np.float32(1 / len(x)), c.norm_eps)
        scale, shift = scaling
        if scale is not None:
            x *= scale
        if shift is not None:
            x += shift
        return x

    def _activate(self, u: Array) -> Array:
        kind = self.config.activation
        if kind in ("relu", "relu2"):
            u = np.maximum(u, np.float32(0), out=u)
            return u if kind == "relu" else u * u
        if kind == "gelu":
            return torch.nn.functional.gelu(torch.from_numpy(u)).numpy()
        part = np.tanh(np.float32(math.sqrt(2 / math.pi)) * (u + np.float32(0.044715) * u * u * u))
        part += 1
        part *= u
        part *= np.float32(0.5)
        return part


def _rms(x: Array, eps: float) -> Array:
    """`model.rms_norm`."""
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) * np.float32(1 / x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps))


def _map(linear: Map, x: Array) -> Array:
    weight, bias = linear
    y: Array = weight @ x
    if bias is not None:
        y += bias
    return y


def _parts(block: nn.Module) -> tuple[Scaling, Map, Map, Scaling, Map, Map]:
    """Of attention, then of the MLP: the norm before, the map in and the map out."""
    assert isinstance(block, Block)
    attention = _scaling(block.norm_1), _linear(block.attn.qkv), _linear(block.attn.out)
    return *attention, _scaling(block.norm_2), _linear(block.mlp.up), _linear(block.mlp.down)


def _linear(module: nn.Module) -> Map:
    assert isinstance(module, nn.Linear)
    return _array(module.weight), None if module.bias is None else _array(module.bias)


def _scaling(norm: nn.Module) -> Scaling:
    scale, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return None if scale is None else _array(scale), None if shift is None else _array(shift)


def _array(parameter: Tensor) -> Array:
    return parameter.detach().numpy()
