"""Where each head looks: the weights of one forward pass, and the heads that carry the reversal.

Knows nothing of files or terminals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tformer.loss import check_finite
from tformer.model import Transformer
from tformer.text.data import Reversal
from tformer.watch import attention_calls

WEIGHTS_AT_ONCE = 1 << 25  # numbers held by one forward pass
CARRIES = 0.5  # the share of its attention by which a head is said to carry the reversal


@torch.inference_mode()
def attention_weights(
    model: Transformer, ids: Int[Tensor, "batch position"]
) -> Float[Tensor, "layer batch head query key"]:
    """The attention weights of every layer and head on `ids`; each row sums to 1 over its past.

    Raises TformerError where they are not finite.
    """
    model.eval()
    with attention_calls(model) as calls:
        model(ids)
    weights = torch.stack([call.weights for call in calls])
    check_finite(weights, "attention weights", "shown")
    return weights


def head_maps(model: Transformer, ids: Sequence[int]) -> np.ndarray:
    """The attention weights on one sequence, to draw: shape (layer, head, query, key), float32."""
    device = next(model.parameters()).device
    return attention_weights(model, torch.tensor([ids], device=device))[:, 0].float().cpu().numpy()


# ---------------------------------------------------------------------------- the reversal


@dataclass(frozen=True)
class HeadShare:
    """How much of a head's attention lies where the answer is. Layers and heads count from 1."""

    layer: int
    head: int
    share: float  # mean over the queries of the second half
    by_query: list[float]  # one for each of those queries


@dataclass(frozen=True)
class Mirror:
    """The heads on the reversal task, the best first; `uniform` is a head that looks everywhere alike."""

    heads: list[HeadShare]
    uniform: float
    n: int

    @property
    def carriers(self) -> list[HeadShare]:
        """Heads with at least half of their attention where the answer is."""
        return [head for head in self.heads if head.share >= CARRIES]


def mirrored(length: int) -> list[tuple[int, int]]:
    """(query, source) of each input whose target is determined, counted from 0.

    A sequence s of 2·length tokens reads the same backwards: s[p] = s[2·length - 1 - p]. The query at
    input i predicts s[i + 1], which stood at 2·length - 2 - i already. From i = length - 1 on, that is
    not later than the query itself: an anti-diagonal.

    >>> mirrored(3)
    [(2, 2), (3, 1), (4, 0)]
    """
    return [(i, 2 * length - 2 - i) for i in range(length - 1, 2 * length - 1)]


def mirror(model: Transformer, task: Reversal, n: int = 200, index: int = 1) -> Mirror:
    """The share of each head's attention on the mirrored source, mean over `n` fresh sequences."""
    c = model.config
    device = next(model.parameters()).device
    inputs = torch.from_numpy(np.ascontiguousarray(task.fresh(n, index)[0])).to(device)
    queries, sources = (list(side) for side in zip(*mirrored(task.length), strict=True))
    at_once = max(1, WEIGHTS_AT_ONCE // (c.n_layers * c.n_heads * task.n_ctx**2))
    total = torch.zeros(c.n_layers, c.n_heads, task.length, dtype=torch.float64)
    for some in inputs.split(at_once):
        weights = attention_weights(model, some)[..., queries, sources]  # (L, B, H, query)
        total += weights.cpu().double().sum(1)
    shares = (total / n).tolist()
    heads = [
        HeadShare(layer + 1, head + 1, sum(by_query) / task.length, by_query)
        for layer, of_layer in enumerate(shares)
        for head, by_query in enumerate(of_layer)
    ]
    uniform = sum(1 / (query + 1) for query in queries) / task.length
    return Mirror(sorted(heads, key=lambda head: -head.share), uniform, n)
