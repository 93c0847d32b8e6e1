"""The models of question 3: blocks whose MLPs have learned facts by heart, and blocks that reverse."""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import nn

from tformer.answer.experiment import Effort
from tformer.answer.lab import build, tiny, train
from tformer.answer.parts import only_mlps_learn, with_mlps
from tformer.answer.tasks import Facts
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.text.data import Reversal


class Remembered(NamedTuple):
    """What a model knows of all facts."""

    loss: float  # nats a fact
    known: float  # share of the facts


@torch.inference_mode()
def remembered(model: nn.Module, facts: Facts) -> Remembered:
    """Ask for the value of every key."""
    keys, values = (torch.from_numpy(a) for a in facts.all())
    logits = model(keys)
    loss = float(cross_entropy(logits, values).mean())
    return Remembered(loss, float((logits.argmax(-1) == values).double().mean()))


def facts_for(effort: Effort, seed: int) -> Facts:
    """As many facts as separate MLPs can learn in the steps given."""
    return Facts(effort.pick(quick=512, full=1024), seed)


@cache
def learned_by_heart(effort: Effort, seed: int, variant: str = "separate") -> Transformer:
    """Three blocks whose MLPs, and nothing else, have learned facts. Computed once for each variant."""
    facts = facts_for(effort, seed)
    config = tiny(vocab_size=facts.n, n_ctx=1, n_layers=3, n_heads=1, d_model=32, d_mlp=64, tied=False)
    model = build(config, seed, lambda model: with_mlps(only_mlps_learn(model), variant))
    train(model, facts, effort.pick(quick=200, full=600), seed, batch_size=facts.n // 2, lr=1e-2)
    return model


@cache
def reversing(effort: Effort, seed: int, variant: str = "separate") -> tuple[Transformer, Reversal]:
    """Two blocks that have learned to reverse, and the task. Computed once for each variant."""
    task = Reversal(4, 8, seed)
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, d_model=32)
    model = build(config, seed, partial(with_mlps, variant=variant))
    train(model, task, effort.pick(quick=100, full=400), seed, batch_size=32, lr=6e-3)
    return model, task
