"""Evidence for question 4: the gradient in each block at the start. Its size stays, its use is lost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject
from tformer.answer.parts import BOTH, NEITHER, SKIP_VARIANTS, NoSkips, copy_of, without_norms
from tformer.answer.q4_skips.stream import RUN, deep, log_curve, random_ids
from tformer.figures import Lines, Series, Table
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.watch import blocks_of

NO_NORMS = "no skips, no norms"


class GradientNorms(NamedTuple):
    """Norm of a loss's gradient in each block: of all its weights, and of queries' and keys' alone."""

    whole: list[float]
    looking: list[float]


def gradient_norms(model: Transformer, inputs: Tensor, targets: Tensor) -> GradientNorms:
    """Of the mean cross-entropy of the targets; the model is left without gradients."""
    model.zero_grad(set_to_none=True)
    cross_entropy(model(inputs), targets).mean().backward()
    norms = GradientNorms([], [])
    for block in blocks_of(model):
        each = [p.grad.norm() for p in block.parameters() if p.grad is not None]
        norms.whole.append(float(torch.stack(each).norm()))
        of_projection = block.attn.qkv.weight.grad
        assert of_projection is not None
        norms.looking.append(float(of_projection[: sum(block.attn.qkv_rows[:2])].norm()))
    model.zero_grad(set_to_none=True)
    return norms


@dataclass(frozen=True)
class GradientEvidence:
    """For each variant the gradient's norm in each block, whole and of queries and keys alone."""

    whole: dict[str, list[float]]
    looking: dict[str, list[float]]


def measure_gradients(effort: Effort, seed: int, subject: Subject | None) -> GradientEvidence:
    """One backward pass of the loss of random targets through 16 blocks; of the run, of its next ids."""
    length = effort.pick(quick=32, full=64)
    models = {name: deep(kind, seed, length) for name, kind in SKIP_VARIANTS.items()}
    models[NO_NORMS] = without_norms(deep(NoSkips, seed, length))
    ids = random_ids(seed, 8, length + 1)
    norms = {name: gradient_norms(model, ids[:, :-1], ids[:, 1:]) for name, model in models.items()}
    if subject:
        ids = subject.ids(8, length + 1, seed)
        norms[RUN] = gradient_norms(copy_of(subject.model), ids[:, :-1], ids[:, 1:])
    return GradientEvidence(
        {name: of_model.whole for name, of_model in norms.items()},
        {name: of_model.looking for name, of_model in norms.items()},
    )


def show_gradients(seeds: Seeds[GradientEvidence]) -> Finding:
    """Without skips the size stays, thanks to the norms; what moves attention is lost."""
    names = list(seeds.first.whole)

    def whole_by_block(name: str) -> Series:
        blocks = range(1, len(seeds.first.whole[name]) + 1)
        return log_curve(seeds, name, blocks, lambda e: e.whole[name])

    def looking_by_block(name: str) -> Series:
        blocks = range(1, len(seeds.first.looking[name]) + 1)
        return log_curve(seeds, name, blocks, lambda e: e.looking[name])

    table = Table(
        "Gradients at the start",
        ("", "block 1 / last", "queries, keys / all, last"),
        tuple(
            (name, seeds.of(_first_to_last(name), ".2g"), seeds.of(_share_of_looking(name), ".2g"))
            for name in names
        ),
    )
    figures = (
        Lines(
            "Gradient of all weights of a block",
            "block",
            "gradient norm",
            tuple(map(whole_by_block, names)),
            log_y=True,
        ),
        Lines(
            "Gradient of its queries and keys",
            "block",
            "gradient norm",
            tuple(map(looking_by_block, names)),
            log_y=True,
        ),
    )
    said = (
        "Where all positions are alike, it does not matter where a query looks: its gradient is gone, "
        "however large the gradient of values and MLP is. So it is not the size of the gradient that is "
        "lost without skips, as the usual story has it, but its use."
    )
    return Finding(said, (table,), figures, _gradient_claims(seeds))


def _gradient_claims(seeds: Seeds[GradientEvidence]) -> tuple[Claim, ...]:
    return (
        at_most(
            "Without skips and norms the gradient vanishes towards block 1",
            seeds.of(_first_to_last(NO_NORMS), ".2g"),
            0.01,
            "A factor of 0.75 a block makes 0.01 of 16; each sublayer shrinks it at these weights.",
        ),
        at_least(
            "Without skips but with norms it does not: norms alone keep its size",
            seeds.of(_first_to_last(NEITHER), ".2g"),
            0.1,
            "A tenth: far from any vanishing over 16 blocks.",
        ),
        at_most(
            "But without skips, the last block's queries and keys get next to none of it",
            seeds.of(_share_of_looking(NEITHER), ".2g"),
            1e-3,
            "They are a sixth of the weights, which would be 0.4 of the norm if all got the same.",
        ),
        at_least(
            "With both skips they get their part",
            seeds.of(_share_of_looking(BOTH), ".2g"),
            1e-2,
            "Ten times what may be left without.",
        ),
    )


def _first_to_last(name: str) -> Callable[[GradientEvidence], float]:
    """The gradient's norm in block 1, of that in the last block."""
    return lambda e: e.whole[name][0] / e.whole[name][-1]


def _share_of_looking(name: str) -> Callable[[GradientEvidence], float]:
    """In the last block, the norm of queries' and keys' gradient, of all the block's."""
    return lambda e: e.looking[name][-1] / e.whole[name][-1]
