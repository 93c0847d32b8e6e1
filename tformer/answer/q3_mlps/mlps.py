"""What the experiments on MLPs use: facts to learn by heart, one MLP for all blocks, how alike two are."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tformer.answer.claims import Budget
from tformer.answer.lab import build, tiny, train
from tformer.answer.parts import only_mlps_learn, with_mlps
from tformer.answer.tasks import Facts
from tformer.loss import cross_entropy
from tformer.model import MLP, Block, Transformer
from tformer.text.data import Reversal

MOST_NEURONS = 256  # compared with all of another block


# ---------------------------------------------------------------------------- facts


@torch.inference_mode()
def recall(model: nn.Module, facts: Facts) -> tuple[float, float]:
    """Loss in nats a fact and share of the facts known, over all of them."""
    keys, values = (torch.from_numpy(a) for a in facts.all())
    logits = model(keys)
    return float(cross_entropy(logits, values).mean()), float((logits.argmax(-1) == values).double().mean())


# ---------------------------------------------------------------------------- how alike


def pairs(n_layers: int, most: int) -> list[tuple[int, int]]:
    """Pairs of blocks i < j, evenly thinned to `most`."""
    found = list(combinations(range(n_layers), 2))
    return found[:: math.ceil(len(found) / most)] if found else []


def flat(mlp: MLP) -> Tensor:
    """Both matrices as one vector."""
    return torch.cat((mlp.up.weight.flatten(), mlp.down.weight.flatten())).detach()


def neurons(block: Block) -> Tensor:
    """What each neuron reads and what it writes, each of length 1, side by side: (d_mlp, 2 · d_model).

    The gain of the norm before it counts as the neuron's. Lengths do not: a ReLU neuron computes the
    same if what it reads is made longer and what it writes shorter.
    """
    gain = getattr(block.norm_2, "weight", None)
    reads = block.mlp.up.weight.detach() * (1.0 if gain is None else gain.detach())
    writes = block.mlp.down.weight.detach().T
    return torch.cat((F.normalize(reads, dim=1), F.normalize(writes, dim=1)), dim=1) / math.sqrt(2)


def best_match(a: Tensor, b: Tensor) -> float:
    """The cosine of a neuron of a with the most similar one of b, mean over (at most 256) neurons of a.

    Several may choose the same one, so no order of b's neurons agrees better with a's.
    """
    some = a[:: math.ceil(len(a) / MOST_NEURONS)]
    return float((some @ b.T).max(dim=1).values.mean())


def in_other_basis(vectors: Tensor, order: Tensor) -> Tensor:
    """Neurons (n, 2 · d_model) that read and write feature order[i] of the stream instead of i."""
    return vectors.unflatten(1, (2, -1))[:, :, order].flatten(1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two tensors as vectors; 0 if either is 0."""
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of (example, feature) matrices: 1 if one is the other turned and scaled.

    ‖a'ᵀb'‖² / (‖a'ᵀa'‖ ‖b'ᵀb'‖) with centred columns (Kornblith et al. 2019, section 3).
    """
    a, b = ((x - x.mean(0)).double() for x in (a, b))
    norm = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / norm) if norm else 0.0


@torch.inference_mode()
def arguments(modules: Sequence[nn.Module], model: Transformer, ids: Tensor) -> list[tuple[Any, ...]]:
    """What each of these parts of the model is called with when the model reads ids."""
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.update({m: args})) for m in modules]
    try:
        model.eval()
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[m] for m in modules]


# ---------------------------------------------------------------------------- what is trained here


def facts_of(budget: Budget, seed: int) -> Facts:
    """As many facts as separate MLPs can learn in the steps given."""
    return Facts(budget.pick(quick=512, full=1024), seed)


@cache
def learned_by_heart(budget: Budget, seed: int, variant: str = "separate") -> Transformer:
    """Three blocks whose MLPs, and nothing else, have learned facts. Computed once for each variant."""
    facts = facts_of(budget, seed)
    config = tiny(vocab_size=facts.n, n_ctx=1, n_layers=3, n_heads=1, d_model=32, d_mlp=64, tied=False)
    model = build(config, seed, lambda model: with_mlps(only_mlps_learn(model), variant))
    train(model, facts, budget.pick(quick=200, full=600), seed, batch_size=facts.n // 2, lr=1e-2)
    return model


@cache
def reversing(budget: Budget, seed: int, variant: str = "separate") -> tuple[Transformer, Reversal]:
    """Two blocks that have learned to reverse. Computed once."""
    task = Reversal(4, 8, seed)
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, d_model=32)
    model = build(config, seed, lambda model: with_mlps(model, variant))
    train(model, task, budget.pick(quick=100, full=400), seed, batch_size=32, lr=6e-3)
    return model, task
