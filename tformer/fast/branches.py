"""The two branches of a block for training on a CPU, each with its gradient one autograd function.

`x + drop(attn(norm(x)))` and `x + drop(mlp(norm(x)))` as model.py has them, with less memory traffic: what
lies between two matrix products stays in their precision, the residual stream in its own; weights are cast
once; and the backward pass writes its results where they are needed.

Letters as in model.py: B windows, T positions, H query heads, G key heads, K d_head, C d_model, M d_mlp;
N is B · T.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tformer.config import ModelConfig
from tformer.fast.attention import attend, attend_backward
from tformer.fast.dropout import Masks
from tformer.kv_cache import LayerCache
from tformer.model import Block, Rotation
from tformer.watch import is_plain

Linear = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,)
Affine = tuple[Tensor | None, Tensor | None]  # scale and shift of a norm, (C,) each

# ---------------------------------------------------------------------------- norms


class Norm(NamedTuple):
    """The output of a norm, in the precision of the products, and what its backward pass needs."""

    normed: Tensor
    inverse: Tensor  # 1 / deviation
    mean: Tensor | None  # of a LayerNorm
    x: Tensor | None  # of a LayerNorm: what it was given


def norm_forward(x: Tensor, affine: Affine, config: ModelConfig, dtype: torch.dtype) -> Norm:
    """The norm of `config` over the last dimension."""
    if config.norm == "layer":
        normed, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], *affine, config.norm_eps)
        return Norm(normed.to(dtype), inverse, mean, x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = length.square_().mul_(1 / x.shape[-1]).add_(config.norm_eps).rsqrt_()
    return Norm((x * inverse).to(dtype), inverse.to(dtype), None, None)


def norm_backward(grad: Tensor, norm: Norm, affine: Affine) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of what was normed, of the scale and of the shift; `grad` is used up."""
    if norm.x is None:
        along = (grad * norm.normed).mean(-1, keepdim=True)
        return grad.addcmul_(norm.normed, along, value=-1).mul_(norm.inverse), None, None
    which = (True, affine[0] is not None, affine[1] is not None)
    wide, width = grad.to(norm.x.dtype), norm.x.shape[-1:]
    dx, d_scale, d_shift = torch.ops.aten.native_layer_norm_backward(
        wide, norm.x, width, norm.mean, norm.inverse, *affine, which
    )
    return dx, d_scale, d_shift


# ---------------------------------------------------------------------------- linear maps


def in_precision(linear: Linear, dtype: torch.dtype) -> Linear:
    """A linear map in `dtype`."""
    weight, bias = linear
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def linear_backward(grad: Tensor, inputs: Tensor, linear: Linear) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight, (out, in), and bias, (out,), from that of the outputs, (N, out), and the inputs,
    (N, in).
    """
    weight, bias = linear
    dw = (grad.mT @ inputs).to(weight.dtype)
    return dw, None if bias is None else grad.sum(0, dtype=bias.dtype)


# ---------------------------------------------------------------------------- rotary positions


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`model.rotate` of (B, H, T, K), with cosine and sine of all K features: (cos, cos) and (sin, -sin)."""
    a, b = x.chunk(2, dim=-1)
    return (x * cos).addcmul_(torch.cat((b, a), dim=-1), sin)


class Heads:
    """Queries or keys from the projection to the scores: rotated, then normed. And the gradients back."""

    def __init__(self, config: ModelConfig, rotation: Rotation | None, dtype: torch.dtype):
        self.rotates, self.norms = rotation is not None, config.qk_norm
        self.eps = config.norm_eps
        if rotation is not None:
            cos, sin = rotation
            self.cos, self.sin = (torch.cat(x, dim=-1).to(dtype) for x in ((cos, cos), (sin, -sin)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, T, H, K) to (B, H, T, K), contiguous, and the inverse length that the backward pass needs."""
        x = x.transpose(1, 2).contiguous()
        if self.rotates:
            x = rotated(x, self.cos, self.sin)
        if not self.norms:
            return x, None
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
        inverse = length.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_().to(x.dtype)
        return x.mul_(inverse), inverse

    def backward(self, grad: Tensor, x: Tensor, inverse: Tensor | None) -> Tensor:
        """The gradient of what `forward` was given, (B, T, H, K), from that of its x, (B, H, T, K)."""
        if inverse is not None:
            along = (grad * x).mean(-1, keepdim=True)
            grad = grad.addcmul_(x, along, value=-1).mul_(inverse)
        if self.rotates:
            grad = rotated(grad, self.cos, -self.sin)
        return grad.transpose(1, 2)


# ---------------------------------------------------------------------------- activations


def _relu2_backward(grad: Tensor, rectified: Tensor) -> Tensor:
    return grad.mul_(rectified).mul_(2)


def _relu_backward(grad: Tensor, rectified: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, rectified, 0)


def _gelu_backward(grad: Tensor, u: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, u)


def _gelu_new_backward(grad: Tensor, u: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, u, approximate="tanh")


def _kept_rectified(u: Tensor) -> tuple[Tensor, Tensor]:
    rectified = u.relu_()
    return rectified * rectified, rectified


def _kept_relu(u: Tensor) -> tuple[Tensor, Tensor]:
    rectified = u.relu_()
    return rectified, rectified


# Of each the forward pass, from u (overwritten) to the activation and what the backward pass needs; and that
# pass, from the gradient of the activation (overwritten) and what was kept to the gradient of u.
ACTIVATE: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]]
ACTIVATE = {
    "relu2": (_kept_rectified, _relu2_backward),
    "relu": (_kept_relu, _relu_backward),
    "gelu": (lambda u: (F.gelu(u), u), _gelu_backward),
    "gelu_new": (lambda u: (F.gelu(u, approximate="tanh"), u), _gelu_new_backward),
}

# ---------------------------------------------------------------------------- the branches


class AttentionBranch(torch.autograd.Function):
    """x + drop(attn(norm(x))) of (B, T, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        qkv_weight: Tensor,
        qkv_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor | None,
        config: ModelConfig,
        dtype: torch.dtype,
        rotation: Rotation | None,
        masks: Masks,
    ) -> Tensor:
        c = config
        norm = norm_forward(x, (scale, shift), c, dtype)
        qkv_map = in_precision((qkv_weight, qkv_bias), dtype)
        out_map = in_precision((out_weight, out_bias), dtype)
        heads = F.linear(norm.normed, *qkv_map).unflatten(-1, (-1, c.d_head))  # (B, T, H + 2 G, K)
        q, k, v = heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=2)
        way = Heads(c, rotation, dtype)
        q, q_inverse = way.forward(q)
        k, k_inverse = way.forward(k)
        v = v.transpose(1, 2).contiguous()
        every_k, every_v = _repeated(k, c), _repeated(v, c)
        seen, kept = attend(q, every_k, every_v, c.d_head**-0.5, c.dropout, masks)
        y = F.linear(seen.flatten(2), *out_map)
        mask = masks.draw(tuple(y.shape), c.dropout, dtype) if c.dropout else None
        ctx.save_for_backward(
            *(scale, shift, qkv_weight, qkv_bias, out_weight, out_bias),
            *(*norm, qkv_map[0], out_map[0], q, k, v, q_inverse, k_inverse, seen, mask),
            *kept,
        )
        ctx.config, ctx.way = c, way
        return x + (y if mask is None else y.mul_(mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, qkv_weight, qkv_bias, out_weight, out_bias, *saved = ctx.saved_tensors
        norm, (in_map, out_map, q, k, v, q_inverse, k_inverse, seen, mask, *kept) = (
            Norm(*saved[:4]),
            saved[4:],
        )
        c: ModelConfig = ctx.config
        g = _dropped(grad, mask, norm.normed.dtype)  # (N, C)
        d_out = linear_backward(g, seen.flatten(2).flatten(0, 1), (out_weight, out_bias))
        d_seen = (g @ out_map).view(seen.shape)
        keys, values = _repeated(k, c), _repeated(v, c)
        dq, dk, dv = attend_backward(d_seen, q, keys, values, c.d_head**-0.5, c.dropout, kept)
        dk, dv = _added_up(dk, c), _added_up(dv, c)
        d_heads = torch.empty(*q.shape[:1], q.shape[2], c.n_heads + 2 * c.n_kv_heads, c.d_head, dtype=q.dtype)
        to_q, to_k, to_v = d_heads.split((c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=2)
        to_q.copy_(ctx.way.backward(dq, q, q_inverse))
        to_k.copy_(ctx.way.backward(dk, k, k_inverse))
        to_v.copy_(dv.transpose(1, 2))
        flat = d_heads.flatten(2).flatten(0, 1)  # (N, (H + 2 G) K)
        d_qkv = linear_backward(flat, norm.normed.flatten(0, 1), (qkv_weight, qkv_bias))
        dx, *d_affine = norm_backward((flat @ in_map).view(grad.shape), norm, (scale, shift))
        return grad + dx, *d_affine, *d_qkv, *d_out, None, None, None, None


class MLPBranch(torch.autograd.Function):
    """x + drop(mlp(norm(x))) of (B, T, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        down_weight: Tensor,
        down_bias: Tensor | None,
        config: ModelConfig,
        dtype: torch.dtype,
        masks: Masks,
    ) -> Tensor:
        c = config
        norm = norm_forward(x, (scale, shift), c, dtype)
        up_map = in_precision((up_weight, up_bias), dtype)
        down_map = in_precision((down_weight, down_bias), dtype)
        active, kept = ACTIVATE[c.activation][0](F.linear(norm.normed, *up_map))  # (B, T, M)
        y = F.linear(active, *down_map)
        mask = masks.draw(tuple(y.shape), c.dropout, dtype) if c.dropout else None
        ctx.save_for_backward(
            *(scale, shift, up_weight, up_bias, down_weight, down_bias),
            *(*norm, up_map[0], down_map[0], active, kept, mask),
        )
        ctx.config = c
        return x + (y if mask is None else y.mul_(mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, up_weight, up_bias, down_weight, down_bias, *saved = ctx.saved_tensors
        norm, (up_map, down_map, active, kept, mask) = Norm(*saved[:4]), saved[4:]
        c: ModelConfig = ctx.config
        g = _dropped(grad, mask, norm.normed.dtype)  # (N, C)
        d_down = linear_backward(g, active.flatten(0, 1), (down_weight, down_bias))
        du = ACTIVATE[c.activation][1](g @ down_map, kept.flatten(0, 1))  # (N, M)
        d_up = linear_backward(du, norm.normed.flatten(0, 1), (up_weight, up_bias))
        dx, *d_affine = norm_backward((du @ up_map).view(grad.shape), norm, (scale, shift))
        return grad + dx, *d_affine, *d_up, *d_down, None, None, None


class Branches:
    """Both branches of a block, one after the other, in the place of its own formulas."""

    def __init__(self, masks: Masks):
        self.masks = masks

    def __call__(
        self,
        block: Block,
        x: Tensor,
        mask: Tensor,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        if not all(is_plain(part) for part in block.children()):
            return block.as_written(x, mask, rotation, cache)
        c, attn, mlp, masks = block.attn.config, block.attn, block.mlp, self.masks
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        qkv, out = (attn.qkv.weight, attn.qkv.bias), (attn.out.weight, attn.out.bias)
        up, down = (mlp.up.weight, mlp.up.bias), (mlp.down.weight, mlp.down.bias)
        with torch.autocast("cpu", enabled=False):  # what is in which precision is written here
            x = AttentionBranch.apply(x, *_affine(block.norm_1), *qkv, *out, c, dtype, rotation, masks)
            result: Tensor = MLPBranch.apply(x, *_affine(block.norm_2), *up, *down, c, dtype, masks)
        return result


def _affine(norm: torch.nn.Module) -> tuple[Tensor | None, Tensor | None]:
    return getattr(norm, "weight", None), getattr(norm, "bias", None)


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _dropped(grad: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient of what dropout was given, (N, C) in `dtype`."""
    if mask is None:
        return grad.to(dtype).flatten(0, 1)
    return (grad.to(dtype, copy=True)).mul_(mask).flatten(0, 1)


def _repeated(x: Tensor, c: ModelConfig) -> Tensor:
    """Keys or values, (B, G, T, K), once for each query head: (B, H, T, K)."""
    return x if c.n_kv_heads == c.n_heads else x.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)


def _added_up(grad: Tensor, c: ModelConfig) -> Tensor:
    """The gradient of what `_repeated` was given."""
    return grad if c.n_kv_heads == c.n_heads else grad.unflatten(1, (c.n_kv_heads, -1)).sum(2)
