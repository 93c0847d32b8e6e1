"""Functions of (q, k, mask) that give attention weights: the usual one and seven others.

Shapes are those of `tformer.model.attention`: q is (batch, head, query, d_head), k (batch, head, key,
d_head), the mask broadcasts to (batch, head, query, key) and is True where a query may look. Each
returns weights (batch, head, query, key) that are ≥ 0, exactly 0 where the mask hides, and sum to 1
over the keys. Scores are scaled so that independent q and k of variance 1 give scores of variance
about 1, except where a missing scale is the point.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.config import ModelConfig
from tformer.model import Transformer
from tformer.watch import attentions_of

Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]

# ---------------------------------------------------------------------------- formulas


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """A hidden score is -inf before the softmax, as in `attention`."""
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def scaled_dot(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q · k / √d_head), `attention`'s own (Vaswani et al. 2017, section 3.2.1)."""
    return masked_softmax(q @ k.mT / math.sqrt(q.shape[-1]), mask)


def unscaled_dot(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q · k) (Luong et al. 2015, section 3.1, "dot")."""
    return masked_softmax(q @ k.mT, mask)


def cosine(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(cos(q, k) / τ), τ = 1/√d_head as in nanochat's QK-norm (Henry et al. 2020)."""
    return masked_softmax(math.sqrt(q.shape[-1]) * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, mask)


def squared_distance(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(-‖q - k‖² / 2σ²), σ² = √d_head: a Gaussian kernel, normalised over the keys.

    ‖q‖² is the same for all keys, so the softmax cancels it; no pair needs a difference of its own.
    """
    scores = (q @ k.mT - k.square().sum(-1)[..., None, :] / 2) / math.sqrt(q.shape[-1])
    return masked_softmax(scores, mask)


def features(x: Tensor) -> Tensor:
    """φ(x) = elu(x) + 1, above 0 (Katharopoulos et al. 2020, section 3.2.1)."""
    return F.elu(x) + 1


def linear_kernel(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """φ(q) · φ(k) over its sum over the keys: no exponential of a pair."""
    similar = (features(q) @ features(k).mT).masked_fill(~mask, 0.0)
    return similar / similar.sum(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`linear_kernel` under the causal mask, times v, without any (query, key) matrix.

    The state after s positions is Σ φ(k_s) v_sᵀ and Σ φ(k_s): an RNN, here by cumulative sums
    (Katharopoulos et al. 2020, section 3.4). As many queries as keys.
    """
    q, k = features(q), features(k)
    state = (k[..., :, None] * v[..., None, :]).cumsum(-3)  # (B, H, T, K, V)
    total = (q * k.cumsum(-2)).sum(-1, keepdim=True)
    return (q[..., None, :] @ state)[..., 0, :] / total.clamp_min(torch.finfo(q.dtype).tiny)


def hard_maximum(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """All weight on the key of the largest score. The gradient is *not* this function's, which is 0
    almost everywhere, but the softmax's: a straight-through estimate (Bengio et al. 2013, section 4).
    """
    soft = scaled_dot(q, k, mask)
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


class Bilinear(nn.Module):
    """softmax(q W kᵀ / √d_head), a W for each head (Luong et al. 2015, section 3.1, "general")."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.d_head
        self.w = nn.Parameter(torch.randn(config.n_heads, d, d) * d**-0.5)

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return scaled_dot(q @ self.w, k, mask)


class Additive(nn.Module):
    """softmax(w · tanh(q W₁ + k W₂)), hidden width d_head (Bahdanau et al. 2015, appendix A.1.2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.d_head
        self.w_1 = nn.Parameter(torch.randn(config.n_heads, d, d) * d**-0.5)
        self.w_2 = nn.Parameter(torch.randn(config.n_heads, d, d) * d**-0.5)
        self.w = nn.Parameter(torch.randn(config.n_heads, d, 1) * d**-0.5)

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.tanh((q @ self.w_1)[..., :, None, :] + (k @ self.w_2)[..., None, :, :])
        return masked_softmax((hidden @ self.w[:, None])[..., 0], mask)


# ---------------------------------------------------------------------------- in the model's place

SCORES: dict[str, Callable[[ModelConfig], Weigh]] = {
    "scaled dot": lambda config: scaled_dot,
    "unscaled dot": lambda config: unscaled_dot,
    "bilinear": Bilinear,
    "additive": Additive,
    "cosine": lambda config: cosine,
    "squared distance": lambda config: squared_distance,
    "linear kernel": lambda config: linear_kernel,
    "hard maximum": lambda config: hard_maximum,
}


class Weighed(nn.Module):
    """A formula of attention made of a score function: what `watch` puts in the place of `attention`."""

    def __init__(self, weigh: Weigh):
        super().__init__()
        self.weigh = weigh

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Output (batch, head, query, d_head) and weights; nothing is dropped."""
        weights = self.weigh(q, k, mask)
        return weights @ v, weights


def with_scores(name: str) -> Callable[[Transformer], None]:
    """For `build`: puts the named function into every block; what it learns is drawn after the rest."""

    def replace(model: Transformer) -> None:
        for attn in attentions_of(model):
            attn.formula = Weighed(SCORES[name](model.config))

    return replace
