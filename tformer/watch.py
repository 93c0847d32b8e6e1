"""The one way to look into a model, and to put another part in.

What is watched or replaced is this model's own: no other model notices, and after a `with` block nothing is
left of it. Attention is watched at its seam, `CausalSelfAttention.formula`, which `attend` calls in the
place of `tformer.model.attention`; a forward that does not pass there is not seen. Modules are watched by
PyTorch's forward hooks. While anything is watched, compiled models run as they are written, so that a
compiled forward is seen as well. Who writes a faster path asks `is_plain` before it is taken.

Models may be given as they are or compiled. Knows nothing of what is done with what is seen.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tformer import model as reference
from tformer.model import Block, CausalSelfAttention, Formula, Transformer

Head = tuple[int, int]  # layer and head, counted from 0
PLAIN = (reference.__name__, "tformer.fast.dropout")  # whose classes compute what the model's own do


def blocks_of(model: Transformer) -> list[Block]:
    """The model's blocks, first to last, as the type that they have."""
    return [cast(Block, block) for block in model.blocks]


def attentions_of(model: Transformer) -> list[CausalSelfAttention]:
    """The attention module of each block, first to last."""
    return [block.attn for block in blocks_of(model)]


def distinct_attentions(model: Transformer) -> list[tuple[int, CausalSelfAttention]]:
    """Each attention module once, with the first layer (counted from 0) that has it: blocks may share one."""
    first: dict[CausalSelfAttention, int] = {}
    for layer, attn in enumerate(attentions_of(model)):
        first.setdefault(attn, layer)
    return [(layer, attn) for attn, layer in first.items()]


def is_plain(model: nn.Module) -> bool:
    """Whether nothing in the model is watched or replaced: a faster path may be taken only then.

    False where a part has a hook, a formula or a method of its own, or a class from elsewhere than PyTorch
    and the modules named in PLAIN.
    """
    of_compiled = getattr(model, "_orig_mod", model)  # what was compiled
    return all(_is_plain_part(module) for module in of_compiled.modules())


def _is_plain_part(module: nn.Module) -> bool:
    own, home = vars(module), type(module).__module__
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or own.get("formula") is not None
        or "formula" in module._modules
        or "forward" in own
        or "attend" in own
        or not (home in PLAIN or home.startswith("torch."))
    )


# ---------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention's formula in a forward: what it was given, and what it answered."""

    layer: int  # counted from 0; of the first block, where several share one attention
    q: Float[Tensor, "batch head query d_head"]
    k: Float[Tensor, "batch head key d_head"]
    v: Float[Tensor, "batch head key d_value"]
    mask: Bool[Tensor, "#batch 1 query key"] | None
    output: Float[Tensor, "batch head query d_output"]  # of attention itself, d_value
    weights: Float[Tensor, "batch head query key"]
    formula: Formula  # which it was: to be asked again


@contextmanager
def watching_attention(model: Transformer, see: Callable[[AttentionCall], object]) -> Iterator[None]:
    """While it lasts, `see` gets every call of the model's attention, as it happens.

    The tensors are the forward's own, with their gradients; nothing is kept. Blocks whose forward does not
    call the formula are not seen.
    """

    def watched(layer: int, before: Formula | None) -> Formula:
        def formula(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
        ) -> tuple[Tensor, Tensor]:
            inner = reference.attention if before is None else before
            output, weights = inner(q, k, v, mask, dropout)
            see(AttentionCall(layer, q, k, v, mask, output, weights, inner))
            return output, weights

        return formula

    with ExitStack() as undo:
        undo.enter_context(_as_written())
        for layer, attn in distinct_attentions(model):
            undo.enter_context(_with_formula(attn, watched(layer, attn.formula)))
        yield


@contextmanager
def attention_calls(model: Transformer) -> Iterator[list[AttentionCall]]:
    """Every call of the model's attention inside the block, layer after layer and forward after forward.

    The tensors are detached.
    """
    calls: list[AttentionCall] = []

    def keep(call: AttentionCall) -> None:
        q, k, v, output, weights = (x.detach() for x in (call.q, call.k, call.v, call.output, call.weights))
        calls.append(replace(call, q=q, k=k, v=v, output=output, weights=weights))

    with watching_attention(model, keep):
        yield calls


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module in a forward: its arguments as given, and what it returned."""

    module: nn.Module
    args: tuple[Any, ...]
    output: Any

    @property
    def x(self) -> Tensor:
        """The first argument: (batch, position, width) of a block, an MLP, a norm, a linear map."""
        return cast(Tensor, self.args[0])


@contextmanager
def module_calls(modules: Iterable[nn.Module]) -> Iterator[list[ModuleCall]]:
    """Every call of these modules inside the block, in the order in which they return.

    The tensors are the forward's own, with their gradients. `module_calls(model.blocks)` shows the residual
    stream: `x` of the first call, then each `output`, all (batch, position, d_model).
    """
    calls: list[ModuleCall] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append(ModuleCall(module, args, output))

    with ExitStack() as undo:
        undo.enter_context(_as_written())
        for module in dict.fromkeys(modules):
            undo.callback(module.register_forward_hook(keep).remove)
        yield calls


@contextmanager
def cut_at_embedding(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each output of `model.embed` is a leaf: what gradients of logits by embeddings are taken to.

    Yields the leaves, (batch, position, d_model), one for each lookup. No gradient reaches the embedding's
    table from inside.
    """
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with ExitStack() as undo:
        undo.enter_context(_as_written())
        undo.callback(cast(nn.Module, model.embed).register_forward_hook(cut).remove)
        yield leaves


# ---------------------------------------------------------------------------- replacing


@contextmanager
def without_heads(model: Transformer, heads: Collection[Head], mean: bool = False) -> Iterator[None]:
    """Inside, these heads give nothing to the output projection: zeros, or their mean over the batch."""
    n_heads, d_head = model.config.n_heads, model.config.d_head

    def silence(layer: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        gone = torch.zeros(n_heads, d_head, dtype=torch.bool)
        gone[[head for at, head in heads if at == layer]] = True
        columns = gone.flatten()

        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0]  # (B, T, H K)
            instead = x.mean(0, keepdim=True) if mean else torch.zeros((), dtype=x.dtype, device=x.device)
            return (torch.where(columns.to(x.device), instead, x),)

        return hook

    attentions = attentions_of(model)
    with ExitStack() as undo:
        undo.enter_context(_as_written())
        for layer in {layer for layer, _ in heads}:
            undo.callback(attentions[layer].out.register_forward_pre_hook(silence(layer)).remove)
        yield


@contextmanager
def with_formula(
    model: Transformer, formula: Formula, layers: Collection[int] | None = None
) -> Iterator[None]:
    """Inside, these layers (counted from 0; all, if left out) attend by `formula` in `attention`'s place.

    It is called as `formula(q, k, v, mask, dropout)`, with the shapes of `tformer.model.attention`, and
    returns output and weights; an `nn.Module` may have parameters of its own.
    """
    with ExitStack() as undo:
        undo.enter_context(_as_written())
        for layer, attn in distinct_attentions(model):
            if layers is None or layer in layers:
                undo.enter_context(_with_formula(attn, formula))
        yield


def put_formula(model: Transformer, formula: Formula) -> Transformer:
    """`with_formula` for good, in every layer. Returns the model."""
    for attn in attentions_of(model):
        _put(attn, formula)
    return model


def put_attention(model: Transformer, kind: type[CausalSelfAttention]) -> Transformer:
    """Put another class of attention into every block, for good, with the weights of its own.

    For a formula alone `put_formula` is enough. Returns the model.
    """
    for block in blocks_of(model):
        block.attn = _of_kind(kind, block.attn, model)
    return model


def put_blocks(model: Transformer, kind: type[Block]) -> Transformer:
    """Put blocks of another class into a model, for good, with the weights of its own. Returns the model."""
    for i, block in enumerate(blocks_of(model)):
        model.blocks[i] = _of_kind(kind, block, model)
    return model


# ---------------------------------------------------------------------------- how


def _of_kind(kind: Callable[..., Any], part: nn.Module, model: Transformer) -> Any:
    """A part of another class: the same weights (by name), dtype, device and mode."""
    other = kind(model.config).to(next(part.parameters()))
    other.load_state_dict(part.state_dict())
    return other.train(part.training)


@contextmanager
def _with_formula(attn: CausalSelfAttention, formula: Formula) -> Iterator[None]:
    before = attn.formula
    _put(attn, formula)
    try:
        yield
    finally:
        _put(attn, before)


def _put(attn: CausalSelfAttention, formula: Formula | None) -> None:
    """Set its formula. The one before goes first: PyTorch lets only a module follow a module by its name."""
    del attn.formula
    attn.formula = formula


@contextmanager
def _as_written() -> Iterator[None]:
    """While it lasts, compiled models run as they are written: a compiled forward has no new hooks in it.

    The compiler's import takes seconds, so where nothing has been compiled it is left alone; a model that
    is compiled for the first time inside has what is watched compiled in, and is forgotten afterwards.
    """
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
