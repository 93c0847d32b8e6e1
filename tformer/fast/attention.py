"""Causal attention for training on a CPU: `model.attention` and its gradient as one autograd function.

The same formula as the reference, on three shorter ways. Queries go in blocks, so that of what the mask hides
most is not computed; heads go in groups small enough that a block of weights stays in the cache from its
scores to its product; and the gradient uses again what the forward pass has left, with no copies between.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tformer.fast.dropout import Masks

QUERIES_AT_ONCE = 64  # queries at a time
SCORES_AT_ONCE = 1 << 22  # weights at a time, at most: 8 MB in bf16


@lru_cache(maxsize=8)
def _hidden(n: int, total: int, dtype: torch.dtype) -> Tensor:
    """0 where the last n of `total` positions may look, -inf after them: (n, total), added to scores."""
    return torch.full((n, total), -torch.inf, dtype=dtype).triu(total - n + 1)


class CausalAttention(torch.autograd.Function):
    """softmax(mask(q kᵀ · scale)) v, with dropout on the weights; (head, position, d_head) each."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float, masks: Masks) -> Tensor:
        n, t, width = q.shape
        scale = 1.0 / math.sqrt(width)
        out = torch.empty(n, t, v.shape[2], dtype=v.dtype)
        saved: list[Tensor] = []
        for heads, start, stop in _blocks(n, t):
            hidden = _hidden(stop - start, stop, q.dtype)
            keys = k[heads, :stop].transpose(1, 2)
            weights = torch.baddbmm(hidden, q[heads, start:stop], keys, alpha=scale).softmax(-1)
            saved.append(weights)
            if p:
                mask = masks.draw(tuple(weights.shape), p, weights.dtype)
                saved.append(mask)
                weights = weights * mask
            out[heads, start:stop] = torch.bmm(weights, v[heads, :stop])
        ctx.save_for_backward(q, k, v, *saved)
        ctx.p, ctx.scale = p, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        n, t, _ = q.shape
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        left = iter(saved)
        for heads, start, stop in _blocks(n, t):
            weights, g = next(left), grad[heads, start:stop]
            mask = next(left) if ctx.p else None
            kept = weights if mask is None else weights * mask
            dv[heads, :stop].baddbmm_(kept.transpose(1, 2), g)
            dw = torch.bmm(g, v[heads, :stop].transpose(1, 2))
            if mask is not None:
                dw.mul_(mask)
            ds = torch._softmax_backward_data(dw, weights, -1, weights.dtype)
            dq[heads, start:stop] = torch.bmm(ds, k[heads, :stop]).mul_(ctx.scale)
            dk[heads, :stop].baddbmm_(ds.transpose(1, 2), q[heads, start:stop], alpha=ctx.scale)
        return dq, dk, dv, None, None


def _blocks(n: int, t: int) -> list[tuple[slice, int, int]]:
    """Groups of heads and blocks of queries, each as (heads, first query, end of the block)."""
    group = max(1, SCORES_AT_ONCE // (QUERIES_AT_ONCE * t))
    return [
        (slice(i, min(i + group, n)), start, min(start + QUERIES_AT_ONCE, t))
        for i in range(0, n, group)
        for start in range(0, t, QUERIES_AT_ONCE)
    ]
