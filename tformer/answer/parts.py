"""The parts that experiments exchange in a model: formulas, attentions, blocks, MLPs, weights to start from.

They are put in by `tformer.watch`, or here where that has no word for it: whatever changes a model
returns it. Knows nothing of questions or claims.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.model import (
    MLP,
    Block,
    CausalSelfAttention,
    Formula,
    Rotation,
    Transformer,
    attention,
    rotary_angles,
)
from tformer.watch import blocks_of


def copy_of(model: Transformer) -> Transformer:
    """Its weights in a model of their own, to put other parts into."""
    other = Transformer(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


# ---------------------------------------------------------------------------- attentions: positions


class Timeless(CausalSelfAttention):
    """Queries and keys are never turned."""

    def forward(self, x: Tensor, mask: Tensor, rotation: Rotation | None = None, *rest: Any) -> Tensor:
        return super().forward(x, mask, None, *rest)


class Rotary(CausalSelfAttention):
    """Queries and keys are turned, in whatever model this is put: only nanochat's layout has it built in."""

    def forward(self, x: Tensor, mask: Tensor, rotation: Rotation | None = None, *rest: Any) -> Tensor:
        positions = torch.arange(x.shape[1])[None]
        cos, sin = rotary_angles(positions, self.config.d_head, self.config.rope_theta)
        return super().forward(x, mask, (cos[:, None], sin[:, None]), *rest)


class Unmasked(Timeless):
    """Queries and keys are never turned, and every query sees every key: a bag of words."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v)[0]


def shrink_positions(model: Transformer) -> Transformer:
    """Sinusoids as small as the embeddings, where they would drown the tokens at first.

    Vaswani et al. do it the other way, and multiply the embeddings by √d_model (section 3.4).
    """
    model.position = model.position * (0.02 / 0.5**0.5)  # 0.02 is theirs, √½ a sinusoid's root mean square
    return model


# ---------------------------------------------------------------------------- attentions: masks


def unmasked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`attention` without its mask: a query sees every key."""
    return attention(q, k, v, None, dropout)


def reaching(ahead: int) -> Formula:
    """`attention` with a mask of its own: a query sees up to `ahead` keys after itself; 0 would be right."""

    def formula(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        n_query, n_key = q.shape[-2], k.shape[-2]
        seen = torch.ones(n_query, n_key, dtype=torch.bool, device=q.device).tril(n_key - n_query + ahead)
        return attention(q, k, v, seen, dropout)

    return formula


def zeroed_after(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Hidden weights set to 0 after the softmax, whose denominator has seen them."""
    weights = attention(q, k, v)[1]
    if mask is not None:
        weights = weights * mask
    return F.dropout(weights, dropout) @ v, weights


def adding(value: float) -> Formula:
    """`attention`, but with `value` added to hidden scores instead of -inf put in their place."""

    def formula(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + value * ~mask).softmax(dim=-1)
        return F.dropout(weights, dropout) @ v, weights

    return formula


# ---------------------------------------------------------------------------- blocks


class NoAttentionSkip(Block):
    """x becomes what attention says of it; the MLP still adds."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        x = self.drop(self.attn(self.norm_1(x), mask, *rest))
        return x + self.drop(self.mlp(self.norm_2(x)))


class NoMLPSkip(Block):
    """Attention adds; then x becomes what the MLP makes of it."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        x = x + self.drop(self.attn(self.norm_1(x), mask, *rest))
        return self.drop(self.mlp(self.norm_2(x)))


class NoSkips(Block):
    """Neither adds: x becomes what attention says, and that what the MLP makes of it."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        x = self.drop(self.attn(self.norm_1(x), mask, *rest))
        return self.drop(self.mlp(self.norm_2(x)))


class AttentionAlone(Block):
    """Attention adds; no MLP at all."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        return x + self.drop(self.attn(self.norm_1(x), mask, *rest))


class AttentionAloneNoSkip(Block):
    """No MLP and no skip: weighted averages of weighted averages."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        return self.drop(self.attn(self.norm_1(x), mask, *rest))


BOTH, NEITHER = "both skips", "no skips"
SKIP_VARIANTS: dict[str, type[Block]] = {
    BOTH: Block,
    "none at attention": NoAttentionSkip,
    "none at the MLP": NoMLPSkip,
    NEITHER: NoSkips,
}


def without_norms(model: Transformer) -> Transformer:
    """Take the norms out of the blocks; the final one stays."""
    for block in blocks_of(model):
        block.norm_1, block.norm_2 = nn.Identity(), nn.Identity()
    return model


# ---------------------------------------------------------------------------- MLPs


def with_one_mlp(model: Transformer, d_mlp: int) -> Transformer:
    """Replace the MLPs of all blocks by a single one of this width, as the Universal Transformer does."""
    config = model.config.model_validate(model.config.model_dump() | {"d_mlp": d_mlp})
    shared = MLP(config)
    with torch.no_grad():  # as Transformer.init_weights draws them
        shared.up.weight.normal_(std=config.d_model**-0.5)
        shared.down.weight.zero_()
        for bias in (shared.up.bias, shared.down.bias):
            if bias is not None:
                bias.zero_()
    for block in blocks_of(model):
        block.mlp = shared
    return model


def same_start(model: Transformer) -> Transformer:
    """Give every block the weights of the first one's MLP, as copies."""
    first, *others = blocks_of(model)
    for block in others:
        block.mlp.load_state_dict(first.mlp.state_dict())
    return model


MLPS: dict[str, Callable[[Transformer], Transformer]] = {
    "separate": lambda model: model,
    "same start": same_start,
    "shared": lambda model: with_one_mlp(model, model.config.d_mlp),
    "shared, wide": lambda model: with_one_mlp(model, model.config.n_layers * model.config.d_mlp),
}


def with_mlps(model: Transformer, variant: str) -> Transformer:
    """The model with its MLPs as the variant, one of `MLPS`, says."""
    return MLPS[variant](model)


def only_mlps_learn(model: Transformer) -> Transformer:
    """All else keeps its random start, drawn large enough to tell tokens apart; attention adds nothing."""
    with torch.no_grad():
        model.embed.weight.normal_()
        model.unembed.weight.normal_(std=model.config.d_model**-0.5)
    model.requires_grad_(False)
    for block in blocks_of(model):
        block.mlp.requires_grad_(True)
    return model


@contextmanager
def exchanged(model: Transformer, i: int, j: int) -> Iterator[None]:
    """Inside, blocks i and j have each other's MLP."""
    a, b = blocks_of(model)[i], blocks_of(model)[j]
    a.mlp, b.mlp = b.mlp, a.mlp
    try:
        yield
    finally:
        a.mlp, b.mlp = b.mlp, a.mlp


# ---------------------------------------------------------------------------- starts


@torch.no_grad()
def draw_matrix(matrix: Tensor) -> None:
    """normal(0, 1/√d_in), as tformer draws those that it does not start at 0; shape (d_out, d_in)."""
    matrix.normal_(std=matrix.shape[1] ** -0.5)


@torch.no_grad()
def start_random(model: Transformer) -> Transformer:
    """out and down normal(0, 1/√d_in), as the other matrices.

    tformer starts them at 0, so that a block is the identity: a fresh model hands nothing from position
    to position, would pass any test of what depends on what, and without its skips is the map to 0.
    """
    for block in blocks_of(model):
        for matrix in (block.attn.out.weight, block.mlp.down.weight):
            draw_matrix(matrix)
    return model


@torch.no_grad()
def start_gpt2(model: Transformer) -> Transformer:
    """0.02 for all, out and down divided by √(2 · n_layers) (Radford et al. 2019, section 2.3)."""
    for block in blocks_of(model):
        for matrix in (block.attn.qkv.weight, block.mlp.up.weight):
            matrix.normal_(std=0.02)
        for matrix in (block.attn.out.weight, block.mlp.down.weight):
            matrix.normal_(std=0.02 / math.sqrt(2 * model.config.n_layers))
    return model


@torch.no_grad()
def start_orthogonal(model: Transformer) -> Transformer:
    """Every matrix of the blocks orthogonal: no direction is lost in any of them."""
    for block in blocks_of(model):
        for linear in (block.attn.qkv, block.attn.out, block.mlp.up, block.mlp.down):
            nn.init.orthogonal_(linear.weight)
    return model


SHARPNESS = 2.0  # of a copy: a token's score with itself is its square · √d_head, 16 at d_head 16


@torch.no_grad()
def start_copying(model: Transformer) -> Transformer:
    """Weights that do what a skip does: each sublayer of a gpt2 model starts nearly as a copy of its input.

    Queries equal keys, so that a position looks at what is like itself; position embeddings are doubled,
    so that it is not taken for others with the same token; values and `out` are the identity; up is
    (I, -I) and down its transpose, since gelu(x) - gelu(-x) = x. For attention that keeps to itself see
    He et al. 2023, "Deep Transformers without Shortcuts"; for the mirrored MLP Balduzzi et al. 2017,
    "The Shattered Gradients Problem", section 4.
    """
    c = model.config
    assert c.family == "gpt2" and c.n_kv_heads == c.n_heads and c.d_mlp >= 2 * c.d_model
    assert model.position is not None
    d, one = c.d_model, torch.eye(c.d_model)
    model.position.mul_(2)
    for block in blocks_of(model):
        turned = nn.init.orthogonal_(torch.empty(d, d)) * SHARPNESS
        block.attn.qkv.weight.copy_(torch.cat((turned, turned, one)))
        block.attn.out.weight.copy_(one)
        block.mlp.up.weight[: 2 * d] = torch.cat((one, -one))
        block.mlp.down.weight.zero_()
        block.mlp.down.weight[:, : 2 * d] = torch.cat((one, -one), dim=1)
    return model
