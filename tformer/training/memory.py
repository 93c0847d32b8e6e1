"""What a step of training takes of memory, what there is of it, and how many windows go at a time.

Windows that go through the model one group after another make the same step: their gradients add up.
"""

from functools import lru_cache
from typing import Any

import torch

from tformer.config import Config, ModelConfig
from tformer.counted import counted
from tformer.device import autocast
from tformer.errors import RequestError, TformerError
from tformer.evals.loss import LOGIT_COPIES, LOGITS_AT_ONCE, TOKENS_AT_ONCE
from tformer.free_memory import amount
from tformer.loss import cross_entropy
from tformer.model import CausalSelfAttention, Transformer
from tformer.run.huggingface import empty_model

FLOAT_BYTES = 4
STATE_BYTES = 4 + 4 + 8  # a parameter: its weight, its gradient, two moments
LEAST_STATE_BYTES = 4 + 4 + 4  # the same with one moment, as Muon has of most
LOGIT_BYTES = 4 + 4  # of a logit in the backward pass: its gradient, and that of its loss
USABLE = 0.8  # of what is free: the rest is for text, pages and other processes
ENOUGH = 1 << 30  # bytes of windows at a time


def step_bytes(config: Config) -> tuple[int, int]:
    """Bytes of the model with gradients and moments, and of each window that goes through it.

    Counted, not modelled: what a forward pass of one window, without data, keeps for the backward pass. In
    bf16 it is at most that. Of blocks that are computed again, one is there at a time, and what each was
    given. PyTorch's own attention, of train.kernels=sdpa, keeps no weights of attention.
    """
    window, model = config.data.window or config.model.n_ctx, config.model
    is_fused = config.train.kernels == "sdpa"
    if config.train.recompute:
        given = (model.n_layers - 1) * window * model.d_model * FLOAT_BYTES
        activations = _kept_bytes(model.model_copy(update={"n_layers": 1}), window, is_fused) + given
    else:
        activations = _kept_bytes(model, window, is_fused)
    n_parameters = empty_model(model).n_parameters
    return STATE_BYTES * n_parameters, activations + LOGIT_BYTES * window * model.vocab_size


@lru_cache(maxsize=16)  # an estimate asks for every accelerator
def _kept_bytes(config: ModelConfig, window: int, is_fused: bool) -> int:
    """What a forward pass of one window keeps for the backward pass, without the weights.

    By the formulas, or with attention by a fused kernel.
    """
    model, ids = empty_model(config), torch.zeros((1, window), dtype=torch.int64, device="meta")
    for module in model.modules():
        if is_fused and isinstance(module, CausalSelfAttention):
            module.fast = lambda q, k, v, dropout: _KeptByFused.apply(q, k, v)
    return kept_for_backward(model.train(), ids, "fp32")


class _KeptByFused(torch.autograd.Function):
    """In the place of fused attention, on the meta device: it keeps what that keeps, and computes nothing.

    Queries, keys, values, what is seen, and of each row the logarithm of its sum (Dao et al. 2022,
    "FlashAttention").
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen = torch.empty_like(v)
        ctx.save_for_backward(q, k, v, seen, q.new_empty(q.shape[:-1]))
        return seen


def kept_for_backward(model: Transformer, ids: torch.Tensor, precision: str) -> int:
    """What a forward pass keeps for the backward pass, without the weights."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []  # so that no storage is counted under the name of one that is gone
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast(precision, ids.device):
            logits = model(ids)
        cross_entropy(logits, ids).sum()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    return sum(n for storage, n in kept.items() if storage not in weights)


def judging_bytes(vocab_size: int) -> int:
    """What an evaluation takes beside the model: its logits, their exponentials and what is made of them."""
    return LOGIT_COPIES * FLOAT_BYTES * min(LOGITS_AT_ONCE, TOKENS_AT_ONCE * vocab_size)


def windows_at_a_time(config: Config, free: int | None, processes: int = 1, on_cpu: bool = True) -> int:
    """How many windows of a step go through the model at once: a divisor of those that a process has.

    They take at most what is `free` to each of the processes. On a CPU they take no more than ENOUGH or half
    of the model, gradients and moments, of which it has its part with train.shard: there larger groups are
    hardly faster. Raises RequestError where not even one has room.
    """
    state, window = step_bytes(config)
    if config.train.shard:
        state = -(-state // processes)
    batch, length = config.train.batch_size // processes, config.data.window or config.model.n_ctx
    room = max(state // 2, ENOUGH)
    if free is not None:
        left = int(USABLE * free) - state
        room = min(room, left) if on_cpu else left
    judging = judging_bytes(config.model.vocab_size)
    least = max(window, judging)
    if free is not None and state + least > USABLE * free:
        each = f" in each of {processes} processes" * (processes > 1)
        shorter = state + judging <= USABLE * free  # a window of whatever length does not make less of that
        less = (
            "a smaller data.window" * shorter,
            "a smaller model",
            "train.recompute" * (shorter and not config.train.recompute),
            "--shard" * (processes > 1 and not config.train.shard),
        )
        raise RequestError(
            f"a step takes {amount(state + least)}{each}: {amount(state)} for the model, its gradients and "
            f"moments, {amount(least)} for a window of {length} tokens and an evaluation",
            f"{amount(free)} are free",
            "give " + ", or ".join(filter(None, less)),
        )
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * window <= room))


def refuse_larger(config: Config, free: int | None, shards: int = 1) -> None:
    """Raises RequestError for a training that certainly has no room, before any of it is made.

    Such a one would be ended by the system, when all memory is taken, without a word. Counted is what no
    kernel does without: weights, gradients and a moment, one of `shards` parts of them, and of the windows
    that go at a time, in two bytes, what each block and each logit was made of.
    """
    if free is None:
        return
    model, train = config.model, config.train
    # Blocks are alike, and a thousand of them take seconds.
    one, two = (empty_model(model.model_copy(update={"n_layers": n})).n_parameters for n in (1, 2))
    state = LEAST_STATE_BYTES * (one + (model.n_layers - 1) * (two - one)) // shards
    tokens = (train.micro_batch_size or train.batch_size) * (config.data.window or model.n_ctx)
    activations = 2 * tokens * (model.n_layers * model.d_model + model.vocab_size)
    if state + activations > free:
        raise RequestError(
            f"a step takes at least {amount(state + activations)}: {amount(state)} for the model, its "
            f"gradients and moments, {amount(activations)} for {tokens:,} tokens at a time",
            f"{amount(free)} are free",
            "give a smaller model, or train.micro_batch_size" if state < free else "give a smaller model",
        )


def out_of_memory(
    config: Config, asked: str, processes: int = 1, is_there: bool = True, judging: bool = False
) -> TformerError:
    """The error of a training that found no memory: with what it took, and what takes less of it.

    `asked` says in words how much was asked for, if that is known. A run that `is_there` can go on. Where it
    was `judging` it was in no step, but in an evaluation.
    """
    train, length = config.train, config.data.window or config.model.n_ctx
    share = train.batch_size // processes
    at_once = min(train.micro_batch_size or share, share)
    size = f"a model of {empty_model(config.model).n_parameters:,} parameters"
    found = ", ".join([size, asked] if asked else [size])
    if judging:
        takes = amount(judging_bytes(config.model.vocab_size))
        advice = "make room for that, or begin another run with a smaller model or vocabulary"
        return TformerError(f"out of memory in an evaluation, which takes {takes}", found, advice)
    less = max(n for n in range(1, max(2, at_once // 2 + 1)) if train.batch_size % n == 0)
    with_less = "go on with --resume" if is_there else "begin again with"
    if at_once > 1:
        advice = f"{with_less} --set train.micro_batch_size={less}, which makes the same steps"
    elif not train.recompute:
        advice = f"{with_less} --set train.recompute=true, which makes the same steps"
    else:
        advice = "begin another run with a smaller data.window or a smaller model"
    return TformerError(
        f"out of memory with {counted(at_once, 'window')} of {counted(length, 'token')} at a time",
        found,
        advice,
    )
