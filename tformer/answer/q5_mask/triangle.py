"""Evidence for question 5: under the mask, logits depend on tokens by a triangle."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import copy_of, start_random
from tformer.answer.q5_mask.masks import FAR, MASKS, NONE, RIGHT
from tformer.figures import Cell, Heat, Table
from tformer.model import Transformer
from tformer.watch import cut_at_embedding, put_formula


def dependence(model: Transformer, ids: Tensor, seed: int) -> np.ndarray:
    """|uᵀ ∂logits[t] / ∂embedding[s]| for a random direction u, shape (T, T), ids of shape (1, T).

    In float64, where no product along a path underflows: 0 means that there is no path.
    """
    n = ids.shape[1]
    with cut_at_embedding(model) as leaves:
        logits = model(ids.expand(n, n))  # row t of the batch is for position t
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(logits.shape[-1], generator=generator, dtype=logits.dtype)
    at_own = (torch.eye(n, dtype=logits.dtype)[..., None] * direction).to(logits)
    (gradient,) = torch.autograd.grad(logits, leaves, at_own)
    norms: np.ndarray = gradient.norm(dim=-1).numpy()
    return norms


@dataclass(frozen=True)
class JacobianEvidence:
    """How much the logits at t (row) depend on the token at s (column), each row's largest as 1."""

    blocks: int
    matrices: dict[str, list[list[float]]]


def measure_jacobian(effort: Effort, seed: int, subject: Subject | None) -> JacobianEvidence:
    """Of the run, or of random weights, with three masks."""
    length = effort.pick(quick=12, full=24)
    if subject:
        model, ids = subject.model, subject.ids(1, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, start_random)
        ids = torch.randint(32, (1, length))
    matrices = {}
    for name, formula in MASKS.items():
        matrix = dependence(put_formula(copy_of(model), formula).double(), ids, seed)
        matrices[name] = (matrix / matrix.max(axis=1, keepdims=True)).tolist()
    return JacobianEvidence(model.config.n_layers, matrices)


def show_jacobian(seeds: Seeds[JacobianEvidence]) -> Finding:
    """A triangle with the mask, a square without, a diagonal for each block with one too far."""

    def row(name: str) -> tuple[Cell, ...]:
        return (name, seeds.of(_of(name, _reach), ".0f"), seeds.of(_of(name, _share_of_leaks), ".3f"))

    table = Table(
        "From how far ahead the logits of a position depend on tokens",
        ("", "farthest", "pairs with t < s that leak"),
        tuple(map(row, MASKS)),
    )
    heat = Heat(
        "Which token each position depends on",
        "logits at",
        "token at",
        tuple((name, tuple(map(tuple, seeds.first.matrices[name]))) for name in MASKS),
    )
    said = (
        "The gradient of the logits at t, in a random direction, with respect to the embedding at s, in "
        "float64; brightest is the largest of a row."
    )
    return Finding(said, (table,), (heat,), _jacobian_claims(seeds))


def _jacobian_claims(seeds: Seeds[JacobianEvidence]) -> tuple[Claim, ...]:
    expected = min(seeds.first.blocks, len(seeds.first.matrices[RIGHT]) - 1)
    return (
        at_most(
            "With the mask no logit depends on a later token",
            seeds.of(_of(RIGHT, lambda matrix: matrix[_ahead(matrix) > 0].max()), ".1e"),
            0,
            "Exactly 0: there is no path.",
        ),
        at_least(
            "With the mask each depends on its own token",
            seeds.of(_of(RIGHT, lambda matrix: (np.diag(matrix) > 0).mean()), ".2f"),
            1,
            "So that the measurement can see a dependence where there is one.",
        ),
        at_least(
            "Without it every logit depends on every later token",
            seeds.of(_of(NONE, _share_of_leaks), ".3f"),
            0.99,
            "All pairs.",
        ),
        at_most(
            f"One diagonal too far reaches {expected} ahead: one more with each block",
            seeds.of(_of(FAR, lambda matrix: abs(_reach(matrix) - expected)), ".0f"),
            0,
            "The distance from the number of blocks: each passes on what the one before has taken.",
        ),
    )


def _of(name: str, quantity: Callable[[np.ndarray], float]) -> Callable[[JacobianEvidence], float]:
    """A quantity of the matrix of one mask."""
    return lambda evidence: quantity(np.array(evidence.matrices[name]))


def _ahead(matrix: np.ndarray) -> np.ndarray:
    """s - t of each cell: how far the token is ahead of the position."""
    t = np.arange(len(matrix))
    distance: np.ndarray = t[None] - t[:, None]
    return distance


def _reach(matrix: np.ndarray) -> float:
    """From how far ahead any position depends on a token."""
    return float(_ahead(matrix)[matrix > 0].max())


def _share_of_leaks(matrix: np.ndarray) -> float:
    """Of the pairs in which the token is later than the position, those that depend."""
    return float((matrix[_ahead(matrix) > 0] > 0).mean())
