"""The tensors of a real forward pass, caught where the attention block hands them to its formula."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor

from tformer.kv_cache import KVCache
from tformer.model import CausalSelfAttention, Transformer


@dataclass(frozen=True)
class Call:
    """What one attention block was given and gave: x before the projections, and all of `attend`."""

    x: Tensor  # (batch, position, d_model)
    q: Tensor  # (batch, head, query, d_head)
    k: Tensor  # (batch, head, key, d_head)
    v: Tensor
    mask: Tensor  # (batch or 1, 1, query, key)
    output: Tensor  # (batch, head, query, d_head)


def attentions(model: Transformer) -> list[CausalSelfAttention]:
    """The attention of each block."""
    return [cast(CausalSelfAttention, block.attn) for block in model.blocks]


@contextmanager
def recorded(model: Transformer) -> Iterator[list[Call]]:
    """Every call of `attend` inside the block, layer after layer, forward after forward."""
    calls: list[Call] = []
    with ExitStack() as undo:
        for attn in attentions(model):
            _record(attn, calls, undo)
        yield calls


def _record(attn: CausalSelfAttention, calls: list[Call], undo: ExitStack) -> None:
    inputs: list[Tensor] = []
    hook = attn.qkv.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    undo.callback(hook.remove)
    attend = attn.attend

    def recording(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        output = attend(q, k, v, mask)
        calls.append(Call(*(t.detach() for t in (inputs.pop(), q, k, v, mask, output))))
        return output

    undo.enter_context(patch.object(attn, "attend", recording))


@torch.no_grad()
def calls_of(model: Transformer, ids: Tensor) -> list[Call]:
    """Of one forward of `ids`, one call a layer."""
    with recorded(model) as calls:
        model.eval()(ids)
    return calls


@torch.no_grad()
def cached_calls_of(model: Transformer, ids: Tensor) -> tuple[list[Call], list[tuple[Tensor, Tensor]]]:
    """Of the last position alone, the others being in the cache; and each layer's keys and values there."""
    cache = KVCache(model.config, len(ids), model.embed.weight)
    model.eval()(ids[:, :-1], cache)
    with recorded(model) as calls:
        model(ids[:, -1:], cache)
    n = cache.length
    return calls, [(k[:, :, :n], v[:, :, :n]) for k, v in zip(cache.keys, cache.values, strict=True)]


@contextmanager
def grown_vocabulary(model: Transformer, by: int) -> Iterator[None]:
    """The same model with `by` more tokens, which nothing uses, inside the block."""
    tables = (model.embed, model.unembed)
    before = [table.weight for table in tables]
    for table, weight in zip(tables, before, strict=True):
        table.weight = torch.nn.Parameter(torch.cat((weight.detach(), weight.detach()[:1].expand(by, -1))))
    try:
        yield
    finally:
        for table, weight in zip(tables, before, strict=True):
            table.weight = weight
