"""The parts that experiments exchange in a model: attentions, blocks, MLPs, weights to start from.

Whatever puts a part into a model changes that model and returns it; the weights that were there are
kept, by name and shape. Knows nothing of questions or claims.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from tformer.model import (
    MLP,
    Block,
    CausalSelfAttention,
    Rotation,
    Transformer,
    attention,
    rotary_angles,
)


def blocks_of(model: Transformer) -> list[Block]:
    """The blocks from the first to the last, typed as what they are."""
    return [cast(Block, block) for block in model.blocks]


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


def reaching(mask: Tensor, ahead: int) -> Tensor:
    """A mask of the same shape in which a query sees up to `ahead` positions after itself."""
    n_query, n_key = mask.shape[-2:]
    return torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query + ahead)


class Open(CausalSelfAttention):
    """No mask: a query sees every key."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v)[0]


class TooFar(CausalSelfAttention):
    """One diagonal too far: a query sees the next key."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v, reaching(mask, 1))[0]


class TooShort(CausalSelfAttention):
    """One diagonal too short: a query does not see its own key."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, k, v, reaching(mask, -1))[0]


class ZeroedAfter(CausalSelfAttention):
    """Hidden weights set to 0 after the softmax, whose denominator has seen them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (attention(q, k, v)[1] * mask) @ v


def adding_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """`attention`, but with `value` added to hidden scores instead of -inf put in their place."""
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    weights = (scores + value * ~mask).softmax(dim=-1)
    return weights @ v, weights


class Adding(CausalSelfAttention):
    """Attention with a finite mask, that remembers the largest weight of a hidden key in its last call."""

    value = 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        output, weights = adding_attention(q, k, v, mask, self.value)
        self.hidden_weight = float((weights.detach() * ~mask).max())
        return output


@cache
def adding(value: float) -> type[CausalSelfAttention]:
    """The kind of `Adding` that adds this value."""
    return type("Adding", (Adding,), {"value": value})


def with_attention(model: Transformer, kind: type[CausalSelfAttention]) -> Transformer:
    """Put another attention into every block, with the weights of its own."""
    for block in blocks_of(model):
        other = kind(model.config).to(block.attn.qkv.weight.dtype)
        other.load_state_dict(block.attn.state_dict())
        block.attn = other.train(block.training)
    return model


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
VARIANTS: dict[str, type[Block]] = {
    BOTH: Block,
    "none at attention": NoAttentionSkip,
    "none at the MLP": NoMLPSkip,
    NEITHER: NoSkips,
}


def with_blocks(model: Transformer, kind: type[Block]) -> Transformer:
    """Put blocks of another kind into a model, with the weights of its own."""
    for i, block in enumerate(blocks_of(model)):
        other = kind(model.config)
        other.load_state_dict(block.state_dict())
        model.blocks[i] = other.train(block.training)
    return model


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
def start_random(model: Transformer) -> Transformer:
    """out and down normal(0, 1/√d_in), as the other matrices.

    tformer starts them at 0, so that a block is the identity: a fresh model hands nothing from position
    to position, would pass any test of what depends on what, and without its skips is the map to 0.
    """
    for block in blocks_of(model):
        for matrix in (block.attn.out.weight, block.mlp.down.weight):
            matrix.normal_(std=matrix.shape[1] ** -0.5)
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


# ---------------------------------------------------------------------------- the stream


@contextmanager
def _listening(hooks: Sequence[tuple[nn.Module, Callable[[Tensor], object]]]) -> Iterator[None]:
    """While it lasts, each function gets every output of its module."""
    handles = [
        module.register_forward_hook(lambda module, args, output, hear=hear: hear(output))
        for module, hear in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """x before the first block and after each: n_layers + 1 tensors of (batch, position, d_model)."""
    found: list[Tensor] = []
    first = model.blocks[0].register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        with _listening([(block, found.append) for block in blocks_of(model)]):
            model(ids)
    finally:
        first.remove()
    return found


@torch.no_grad()
def sum_error(model: Transformer, ids: Tensor) -> float:
    """How far the last x is from embedding plus all branch outputs, relative to its size."""
    branches: list[Tensor] = []
    parts: list[nn.Module] = [part for block in blocks_of(model) for part in (block.attn, block.mlp)]
    with _listening([(part, branches.append) for part in parts]):
        stream = streams(model, ids)
    total = stream[0] + torch.stack(branches).sum(0)
    return float((total - stream[-1]).norm() / stream[-1].norm())


def similarity(x: Tensor) -> float:
    """Mean cosine of two different positions of a sequence; 1 where all point one way."""
    unit = nn.functional.normalize(x.double(), dim=-1)
    n = x.shape[1]
    return float(((unit @ unit.mT).sum((1, 2)) - n).mean() / (n * (n - 1)))


def apart(x: Tensor) -> float:
    """The share of x's norm that is left after taking off the mean over positions; 0 where all are equal.

    The residual of Dong et al. 2021, section 2, in the Frobenius norm.
    """
    wide = x.double()
    rest = wide - wide.mean(1, keepdim=True)
    return float((rest.flatten(1).norm(dim=1) / wide.flatten(1).norm(dim=1)).mean())


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(x.double())
    shares = values / values.sum(-1, keepdim=True)
    return float(torch.special.entr(shares).sum(-1).exp().mean())
