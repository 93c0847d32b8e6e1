"""Where heads look: the weight that each gives to certain tokens, and a look that is forbidden."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tformer.model import Formula, Transformer, attention
from tformer.watch import attentions_of, with_formula

PlaceKind = Literal["previous", "repeated", "first"]  # of tokens that a query may look at


class Looks(NamedTuple):
    """Where a query may look, each (batch, query, key) of bool."""

    previous: Tensor  # the token before
    repeated: Tensor  # what followed an earlier copy of the query's own token
    first: Tensor  # the first token


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

    def on(self, kind: PlaceKind) -> float:
        """The weight on tokens of this kind."""
        return float(getattr(self, kind))


def looks_of(ids: Tensor) -> Looks:
    """The places of each kind for every query of `ids`, (batch, position)."""
    n = ids.shape[1]
    past = torch.ones(n, n, dtype=torch.bool).tril(-1)
    before = torch.eye(n, dtype=torch.bool).roll(-1, 1).tril(-1).expand(len(ids), n, n)
    same = (ids[:, :, None] == ids[:, None, :]) & past  # an earlier copy
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    first = torch.zeros_like(past)
    first[1:, 0] = True
    return Looks(before, followed, first.expand(len(ids), n, n))


def head_scores(weights: Tensor, ids: Tensor) -> list[HeadScores]:
    """Scores of every head from its weights, (layer, batch, head, query, key), on ids."""
    looks = looks_of(ids)
    largest = weights.argmax(-1, keepdim=True)

    def mean(by_query: Tensor, look: Tensor) -> Tensor:
        """Over the queries that have such a place: (L, B, H, T) to (L, H)."""
        queries = look.any(-1)  # (B, T)
        return (by_query * queries[:, None]).sum((1, 3)) / queries.sum().clamp(min=1)

    def weight(look: Tensor) -> Tensor:
        return mean((weights * look[:, None]).sum(-1), look)

    def share_of_largest(look: Tensor) -> Tensor:
        return mean(look[None, :, None].expand_as(weights).gather(-1, largest)[..., 0], look)

    by_field = {
        "previous": weight(looks.previous),
        "repeated": weight(looks.repeated),
        "first": weight(looks.first),
        "previous_most": share_of_largest(looks.previous),
        "repeated_most": share_of_largest(looks.repeated),
    }
    return [
        HeadScores(layer + 1, head + 1, **{name: float(x[layer, head]) for name, x in by_field.items()})
        for layer in range(weights.shape[0])
        for head in range(weights.shape[2])
    ]


def looking_everywhere(ids: Tensor) -> HeadScores:
    """The scores of a head that gives all it may see the same weight."""
    n = ids.shape[1]
    weights = torch.ones(n, n).tril()
    weights = (weights / weights.sum(-1, keepdim=True)).expand(1, len(ids), 1, n, n)
    return head_scores(weights, ids)[0]


def strongest(scores: Sequence[HeadScores], kind: PlaceKind) -> HeadScores:
    """The head that gives most weight to tokens of a kind."""
    return max(scores, key=lambda head: head.on(kind))


@contextmanager
def not_looking_back_by(model: Transformer, distance: int, layers: Collection[int]) -> Iterator[None]:
    """Inside, no query of these layers may look at the token `distance` before it (knock-out of one path)."""

    def blind(formula: Formula) -> Formula:
        def elsewhere(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0
        ) -> tuple[Tensor, Tensor]:
            n = mask.shape[-1]
            hidden = torch.ones(n, n, dtype=torch.bool).tril(-distance).triu(-distance)
            return formula(q, k, v, mask & ~hidden, dropout)

        return elsewhere

    attentions = attentions_of(model)
    with ExitStack() as undo:
        for layer in layers:
            blinded = blind(attentions[layer].formula or attention)
            undo.enter_context(with_formula(model, blinded, [layer]))
        yield
