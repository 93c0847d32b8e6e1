"""Causal attention for training on a CPU, forward and backward: `model.attention`, faster for three reasons.

Queries go in blocks, so that most of what the mask hides is not computed; windows go in groups small enough
that a block of weights stays in the cache from its scores to its product; and the backward pass uses what
the forward pass kept, without copies.

Letters as in model.py: B windows, T positions, H heads, K d_head.
"""

from functools import lru_cache

import torch
from torch import Tensor

from tformer.fast.dropout import Masks

QUERIES_AT_ONCE = 64  # queries at a time
SCORES_AT_ONCE = 1 << 22  # weights at a time, at most, unless one window has more: 8 MB in bf16


@lru_cache(maxsize=8)
def _hidden(n: int, total: int, dtype: torch.dtype) -> Tensor:
    """0 where the last n of `total` positions may look, -inf after them: (n, total), added to scores."""
    return torch.full((n, total), -torch.inf, dtype=dtype).triu(total - n + 1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, p: float, masks: Masks
) -> tuple[Tensor, list[Tensor]]:
    """softmax(mask(q kᵀ · scale)) v of (B, H, T, K), with dropout p on the weights, as (B, T, H, K).

    And what the backward pass needs beside that. The three are contiguous, with as many heads each.
    """
    b, h, t, _ = q.shape
    out = torch.empty(b, t, h, v.shape[3], dtype=v.dtype)
    kept: list[Tensor] = []
    for windows, start, stop in _blocks(b, h, t):
        hidden = _hidden(stop - start, stop, q.dtype)
        some_q, some_k, some_v = (x[windows].flatten(0, 1) for x in (q, k, v))
        scores = torch.baddbmm(hidden, some_q[:, start:stop], some_k[:, :stop].mT, alpha=scale)
        weights = scores.softmax(-1)
        kept.append(weights)
        if p:
            kept.append(masks.draw(tuple(weights.shape), p, weights.dtype))
            weights = weights * kept[-1]
        seen = torch.bmm(weights, some_v[:, :stop])
        out[windows, start:stop] = seen.unflatten(0, (-1, h)).transpose(1, 2)
    return out, kept


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, p: float, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, (B, H, T, K) each, from that of what `attend` gave."""
    b, h, t, _ = q.shape
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    left = iter(kept)
    for windows, start, stop in _blocks(b, h, t):
        some_q, some_k, some_v, to_q, to_k, to_v = (x[windows].flatten(0, 1) for x in (q, k, v, dq, dk, dv))
        g = grad[windows, start:stop].transpose(1, 2).flatten(0, 1)
        weights = next(left)
        mask = next(left) if p else None
        dropped = weights if mask is None else weights * mask
        to_v[:, :stop].baddbmm_(dropped.mT, g)
        dw = torch.bmm(g, some_v[:, :stop].mT)
        if mask is not None:
            dw.mul_(mask)
        ds = torch._softmax_backward_data(dw, weights, -1, weights.dtype)
        to_q[:, start:stop].baddbmm_(ds, some_k[:, :stop], beta=0, alpha=scale)
        to_k[:, :stop].baddbmm_(ds.mT, some_q[:, start:stop], alpha=scale)
    return dq, dk, dv


def _blocks(b: int, h: int, t: int) -> list[tuple[slice, int, int]]:
    """Groups of windows and blocks of queries, each as (windows, first query, end of the block)."""
    group = max(1, SCORES_AT_ONCE // (QUERIES_AT_ONCE * t * h))
    return [
        (slice(i, min(i + group, b)), start, min(start + QUERIES_AT_ONCE, t))
        for i in range(0, b, group)
        for start in range(0, t, QUERIES_AT_ONCE)
    ]
