"""What the experiments on heads use: tasks that need looking back, removing heads, where heads look."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from tformer.answer.parts import blocks_of
from tformer.answer.tasks import Stream
from tformer.model import Transformer
from tformer.text.data import rng

Head = tuple[int, int]  # layer and head, from 0

# ---------------------------------------------------------------------------- removing heads


@contextmanager
def without_heads(model: Transformer, heads: Collection[Head], mean: bool = False) -> Iterator[None]:
    """Inside, these heads give nothing to the output projection: zeros, or their mean over the batch."""

    d_head = model.config.d_head

    def hook_of(layer: int) -> Any:
        gone = torch.zeros(model.config.n_heads, d_head, dtype=torch.bool)
        gone[[head for at, head in heads if at == layer]] = True

        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0]
            return (torch.where(gone.flatten(), x.mean(0, keepdim=True) if mean else torch.zeros(()), x),)

        return hook

    with ExitStack() as stack:
        for layer in {layer for layer, _ in heads}:
            out = blocks_of(model)[layer].attn.out
            stack.callback(out.register_forward_pre_hook(hook_of(layer)).remove)
        yield


@contextmanager
def not_looking_back_by(model: Transformer, distance: int, layers: Collection[int]) -> Iterator[None]:
    """Inside, no query of these layers may look at the token `distance` before it (knock-out of one path)."""

    def blind(attend: Any) -> Any:
        def attend_elsewhere(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            n = mask.shape[-1]
            hidden = torch.ones(n, n, dtype=torch.bool).diag().diag_embed(-distance)[:n, :n]
            return attend(q, k, v, mask & ~hidden)

        return attend_elsewhere

    with ExitStack() as stack:
        for layer in layers:
            attn = blocks_of(model)[layer].attn
            stack.enter_context(patch.object(attn, "attend", blind(attn.attend)))
        yield


# ---------------------------------------------------------------------------- where heads look


@dataclass(frozen=True)
class HeadScores:
    """Of one head: the mean weight that its queries give to certain keys. Layer and head count from 1."""

    layer: int
    head: int
    previous: float  # the token before; queries from the second position on
    repeated: float  # tokens that followed an earlier copy of the query's; queries that have a copy
    first: float  # the first token; queries from the second position on
    previous_most: float  # share of those queries whose largest weight is on the token before
    repeated_most: float


def targets_of(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, query, key) of bool: the token before; what followed an earlier copy; the first token."""
    n = ids.shape[1]
    past = torch.ones(n, n, dtype=torch.bool).tril(-1)
    before = torch.eye(n, dtype=torch.bool).roll(-1, 1).tril(-1).expand(len(ids), n, n)
    same = (ids[:, :, None] == ids[:, None, :]) & past  # an earlier copy
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    first = torch.zeros_like(past)
    first[1:, 0] = True
    return before, followed, first.expand(len(ids), n, n)


def head_scores(weights: Tensor, ids: Tensor) -> list[HeadScores]:
    """Scores of every head from its weights, (layer, batch, head, query, key), on ids."""
    found = targets_of(ids)
    means, most = [], []
    for target in found:
        queries = target.any(-1)  # (batch, query)
        n = queries.sum().clamp(min=1)
        target_weights = (weights * target[:, None]).sum(-1)  # (L, B, H, T)
        means.append((target_weights * queries[:, None]).sum((1, 3)) / n)
        place = weights.argmax(-1, keepdim=True)
        hit = target[None, :, None].expand_as(weights).gather(-1, place)[..., 0]
        most.append((hit * queries[:, None]).sum((1, 3)) / n)
    columns = [*means, most[0], most[1]]  # as the fields of HeadScores, each (layer, head)
    return [
        HeadScores(layer + 1, head + 1, *[float(c[layer, head]) for c in columns])
        for layer in range(weights.shape[0])
        for head in range(weights.shape[2])
    ]


def looking_everywhere(ids: Tensor) -> HeadScores:
    """The scores of a head that gives all it may see the same weight."""
    n = ids.shape[1]
    weights = torch.ones(n, n).tril()
    weights = (weights / weights.sum(-1, keepdim=True)).expand(1, len(ids), 1, n, n)
    return head_scores(weights, ids)[0]


def random_repeats(vocab_size: int, n: int, length: int, seed: int) -> Tensor:
    """`n` sequences of `length` random ids that are followed by the same again, (n, 2 · length)."""
    half = rng(seed, Stream.REPEATS_FRESH, 1).integers(vocab_size, size=(n, length))
    return torch.from_numpy(np.concatenate((half, half), axis=1))


def best(scores: Sequence[HeadScores], field: str) -> HeadScores:
    """The head with the highest score of a kind."""
    return max(scores, key=lambda s: float(getattr(s, field)))
