"""Blocks with a skip taken out, weights to start them fairly, and what is read off them.

A variant is a `Block` whose forward is another; weights, names and shapes stay. Knows nothing of claims.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from tformer.loss import cross_entropy
from tformer.model import Block, Transformer

# ---------------------------------------------------------------------------- variants


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
    """Neither adds."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        x = self.drop(self.attn(self.norm_1(x), mask, *rest))
        return self.drop(self.mlp(self.norm_2(x)))


class AttentionAlone(Block):
    """No MLP at all."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        return x + self.drop(self.attn(self.norm_1(x), mask, *rest))


class AttentionAloneNoSkip(Block):
    """Weighted averages of weighted averages."""

    def forward(self, x: Tensor, mask: Tensor, *rest: object) -> Tensor:
        return self.drop(self.attn(self.norm_1(x), mask, *rest))


BOTH, NEITHER = "both skips", "no skips"
VARIANTS: dict[str, type[Block]] = {
    BOTH: Block,
    "none at attention": NoAttentionSkip,
    "none at the MLP": NoMLPSkip,
    NEITHER: NoSkips,
}


def blocks_of(model: Transformer) -> list[Block]:
    """In order."""
    return [cast(Block, block) for block in model.blocks]


def copy_of(model: Transformer) -> Transformer:
    """Its weights in a model of their own, to put other parts into."""
    other = Transformer(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


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


# ---------------------------------------------------------------------------- starts


@torch.no_grad()
def start_random(model: Transformer) -> Transformer:
    """out and down normal(0, 1/√d_in), as the other matrices.

    tformer starts them at 0, so that a block is the identity: without its skip it would be the map to 0.
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


def gradients(model: Transformer, inputs: Tensor, targets: Tensor) -> tuple[list[float], list[float]]:
    """Norm of the loss's gradient in each block: of all its weights, and of queries' and keys' alone."""
    model.zero_grad(set_to_none=True)
    cross_entropy(model(inputs), targets).mean().backward()
    whole, looking = [], []
    for block in blocks_of(model):
        found = [p.grad.norm() for p in block.parameters() if p.grad is not None]
        whole.append(float(torch.stack(found).norm()))
        of_projection = block.attn.qkv.weight.grad
        assert of_projection is not None
        looking.append(float(of_projection[: sum(block.attn.qkv_rows[:2])].norm()))
    model.zero_grad(set_to_none=True)
    return whole, looking
