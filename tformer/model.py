"""The decoder-only transformer, from positions to logits, in the order in which a course builds it.

Shapes are (batch, position, d_model) outside attention and (batch, head, position, d_head) inside.
The letters of the trailing shape comments: B batch, T positions, S cached and new positions,
H heads, K d_head, C d_model, M d_mlp, V vocabulary.

This file knows nothing of losses, optimizers, files or text, and of architectures nothing but their settings.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tformer.config import ModelConfig
from tformer.kv_cache import KVCache, LayerCache

# ---------------------------------------------------------------------------- 1. positions

Rotation = tuple[Tensor, Tensor]  # cosine and sine, each (B or 1, 1, T, K/2)


def sinusoidal_positions(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """Fixed positions: sin(t / 10000^(2i/d_model)) in column 2i, the cosine in column 2i + 1.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5. An odd width has no last cosine.
    """
    position = torch.arange(n_ctx, dtype=torch.float64)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = position * frequency  # (T, ceil(C / 2))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :d_model].float()


def rotary_angles(
    positions: Int[Tensor, "*batch position"], d_head: int, theta: float
) -> tuple[Float[Tensor, "*batch position half"], Float[Tensor, "*batch position half"]]:
    """Cosine and sine of position · theta^(-2i/d_head), one angle for each pair of features.

    Source: Su et al. 2021, "RoFormer", section 3.2.2.
    """
    exponent = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head
    angle = positions[..., None].float() * (1.0 / theta**exponent)
    return angle.cos(), angle.sin()


def rotate(
    x: Float[Tensor, "batch head position d_head"],
    cos: Float[Tensor, "#batch 1 position half"],
    sin: Float[Tensor, "#batch 1 position half"],
) -> Float[Tensor, "batch head position d_head"]:
    """Turn the pairs (x[i], x[i + d_head/2]) by minus their angle.

    Scores then depend on distance alone: (R_t q)·(R_s k) = q·R_(s-t) k. Pairing halves is GPT-NeoX's layout,
    the sign the opposite of Llama's. Weights trained with another pairing or sign are wrong under this one.
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


# ---------------------------------------------------------------------------- 2. the causal mask


def causal_mask(
    n_query: int, n_key: int, device: torch.device | None = None
) -> Bool[Tensor, "{n_query} {n_key}"]:
    """True where a query may look: at itself and at everything before it, at nothing after.

    The queries are the last `n_query` of the `n_key` positions, so with a cache (n_key > n_query)
    query i stands at position n_key - n_query + i.
    """
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(diagonal=n_key - n_query)


def padded_mask(
    mask: Bool[Tensor, "1 1 query key"], padding: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch 1 query key"]:
    """For each row `mask` without its first `padding[b]` keys, which stand for nothing.

    A query among them would see no key at all: it sees itself, and nobody else sees it.
    """
    n_query, n_key = mask.shape[-2:]
    there = torch.arange(n_key, device=mask.device) >= padding[:, None]  # (B, S)
    itself = torch.eye(n_key, dtype=torch.bool, device=mask.device)[n_key - n_query :]  # (T, S)
    return (mask & there[:, None, None]) | itself


# ---------------------------------------------------------------------------- 3. attention

Formula = Callable[..., tuple[Tensor, Tensor]]  # called and answering as `attention`


def attention(
    q: Float[Tensor, "*batch query d_head"],
    k: Float[Tensor, "*batch key d_head"],
    v: Float[Tensor, "*batch key d_value"],
    mask: Bool[Tensor, "*#batch query key"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "*batch query d_value"], Float[Tensor, "*batch query key"]]:
    """softmax(q kᵀ / √d_head) v, and the weights: each row sums to 1 over the keys it may see.

    A score that the mask hides becomes -inf *before* the softmax, so its weight is exactly 0 at any
    size of score; a large negative number would only make it small. Every query must see some key.
    Source: Vaswani et al. 2017, section 3.2.1.
    """
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)  # q: smaller than the scores
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout) @ v, weights


# ---------------------------------------------------------------------------- 4. the attention block


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention; queries, keys and values come from one projection.

    With fewer key heads, each serves n_heads / n_kv_heads query heads (Ainslie et al. 2023, "GQA").
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.formula: Formula | None = None  # put in `attention`'s place by watch.py, to look or to replace
        self.fast: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None  # for training: fast/
        heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        self.qkv_rows = tuple(n * config.d_head for n in heads)  # queries', keys' and values'
        self.qkv = nn.Linear(config.d_model, sum(self.qkv_rows), bias=config.bias)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=config.bias)

    def forward(
        self,
        x: Float[Tensor, "batch position d_model"],
        mask: Bool[Tensor, "#batch 1 position key"],
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch position d_model"]:
        c = self.config
        heads = self.qkv(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2)  # (B, H + 2 H_kv, T, K)
        q, k, v = heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=1)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if c.qk_norm:  # after the rotation
            q, k = rms_norm(q, c.norm_eps), rms_norm(k, c.norm_eps)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H_kv, S, K)
        if c.n_kv_heads < c.n_heads:
            k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1) for t in (k, v))
        return self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))  # (B, T, C)

    def attend(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch head key d_head"],
        v: Float[Tensor, "batch head key d_head"],
        mask: Bool[Tensor, "#batch 1 query key"],
    ) -> Float[Tensor, "batch head query d_head"]:
        """`attention` on all heads at once, or the formula that was put in its place.

        Whatever computes the same faster stands here only in training, and only while `formula` is None.
        """
        if self.training and self.fast is not None and self.formula is None:
            return self.fast(q, k, v, self.config.dropout)
        formula = attention if self.formula is None else self.formula
        return formula(q, k, v, mask, self.config.dropout if self.training else 0.0)[0]


# ---------------------------------------------------------------------------- 5. the rest of a block


def rms_norm(x: Float[Tensor, "*any width"], eps: float) -> Float[Tensor, "*any width"]:
    """x / √(mean(x²) + eps), in float32 at least (Zhang and Sennrich 2019), with no weights."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x)


class RMSNorm(nn.Module):
    """`rms_norm` as a module."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """Over d_model: LayerNorm (Ba et al. 2016), or RMSNorm without weights."""
    if config.norm == "layer":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(config.norm_eps)


def relu2(x: Tensor) -> Tensor:
    """max(0, x)² (So et al. 2021, "Primer")."""
    return F.relu(x).square()


def gelu_new(x: Tensor) -> Tensor:
    """GELU by tanh, as GPT-2 has it; `gelu` is the exact one, by erf (Hendrycks and Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu_new": gelu_new, "gelu": F.gelu, "relu": F.relu, "relu2": relu2}


class MLP(nn.Module):
    """Two linear maps with a non-linearity between: the same for every position, each on its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_mlp, bias=config.bias)
        self.down = nn.Linear(config.d_mlp, config.d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position d_model"]:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm: attention moves information between positions, the MLP works on each of them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm_1, self.attn = make_norm(config), CausalSelfAttention(config)
        self.norm_2, self.mlp = make_norm(config), MLP(config)
        self.drop = nn.Dropout(config.dropout)
        self.fast: Callable[..., Tensor] | None = None  # for training, called as `as_written`: fast/

    def forward(
        self,
        x: Float[Tensor, "batch position d_model"],
        mask: Bool[Tensor, "#batch 1 position key"],
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch position d_model"]:
        if self.training and self.fast is not None:
            return self.fast(self, x, mask, rotation, cache)
        return self.as_written(x, mask, rotation, cache)

    def as_written(
        self, x: Tensor, mask: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """`forward` by the formulas: x + attn(norm(x)), then x + mlp(norm(x))."""
        x = x + self.drop(self.attn(self.norm_1(x), mask, rotation, cache))
        return x + self.drop(self.mlp(self.norm_2(x)))


# ---------------------------------------------------------------------------- 6. the transformer


class Transformer(nn.Module):
    """ids → embedding + position → blocks → norm → logits over the vocabulary."""

    position: Tensor | None  # (n_ctx, d_model), added to the embedding

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.register_buffer("position", None)
        if config.positions == "learned":
            self.position = nn.Parameter(torch.empty(config.n_ctx, config.d_model))
        elif config.positions == "sinusoidal":
            self.position = nn.Buffer(sinusoidal_positions(config.n_ctx, config.d_model), persistent=False)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_final = make_norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.init_weights()
        if config.tied:
            self.unembed.weight = self.embed.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """Matrices normal(0, 1/√d_in); projections back into the residual stream zero.

        So products keep their variance at any width, and every block starts as the identity. GPT-2 has 0.02
        for all, those projections divided by √(2·n_layers) (Radford et al. 2019, section 2.3), which is far
        too small at a small width: examples/benchmarks/LOG.md has the comparison. Embeddings are
        normal(0, embed_std); the unembedding, or one table for both, normal(0, unembed_std).
        """
        c = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:  # norm weights start at 1, biases at 0
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif name.endswith(("attn.out.weight", "mlp.down.weight")):
                parameter.zero_()
            elif name.startswith("blocks."):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                of_logits = name == "unembed.weight" or (c.tied and name == "embed.weight")
                parameter.normal_(std=c.unembed_std if of_logits else c.embed_std)

    def forward(
        self, ids: Int[Tensor, "batch position"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits of the next token after every position; logits[:, t] depend on ids[:, :t + 1] alone.

        With a cache the ids continue what it holds. Past and new positions together are at most n_ctx.
        """
        return self.logits(self.hidden(ids, cache))

    def hidden(
        self, ids: Int[Tensor, "batch position"], cache: KVCache | None = None
    ) -> Float[Tensor, "batch position d_model"]:
        """All of `forward` but the unembedding, for callers that need the logits of few positions."""
        c = self.config
        past = 0 if cache is None else cache.length
        total = past + ids.shape[1]
        assert total <= c.n_ctx, f"{total} positions in a context of {c.n_ctx}"
        assert cache is None or not self.training, "a cache is for a model in eval mode"
        positions = torch.arange(past, total, device=ids.device)[None]  # (1, T)
        mask = causal_mask(ids.shape[1], total, ids.device)[None, None]  # (1, 1, T, S)
        if cache is not None and cache.padding is not None:
            mask = padded_mask(mask, cache.padding)  # (B, 1, T, S)
            positions = (positions - cache.padding[:, None]).clamp(min=0)  # (B, T)

        x = self.embed(ids)  # (B, T, C)
        if self.position is not None:
            x = x + self.position[positions]
        rotation = None
        if c.positions == "rotary":
            cos, sin = rotary_angles(positions, c.d_head, c.rope_theta)
            rotation = (cos[:, None], sin[:, None])  # for all heads alike: (B or 1, 1, T, K/2)
        x = self.drop(x)
        if c.norm_embed:
            x = rms_norm(x, c.norm_eps)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, rotation, None if cache is None else cache.layer(i))
        if cache is not None:
            cache.length = total
        return self.norm_final(x)

    def logits(self, hidden: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        """Hidden states unembedded, and capped if `logit_softcap` says so."""
        logits = self.unembed(hidden)
        if cap := self.config.logit_softcap:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def generate(
        self,
        ids: Int[Tensor, "batch position"],
        max_tokens: int,
        choose: Callable[[Tensor], Tensor] | None = None,
        end_id: int | None = None,
    ) -> Int[Tensor, "batch total"]:
        """`ids` with up to `max_tokens` more, each chosen by `choose(logits)`, greedily if left out.

        A row that has come to `end_id` is filled with it; where all have, generation ends.
        """
        from tformer.sample import generate, greedy  # the loop stands beside the choice of a token

        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for column in generate(self, ids, max_tokens, choose or greedy):
            if end_id is not None:
                column = column.masked_fill(ended, end_id)
                ended |= column == end_id
            ids = torch.cat((ids, column[:, None]), dim=1)
            if ended.all():
                break
        return ids

    @property
    def n_parameters(self) -> int:
        """Trained numbers, a tied table counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
