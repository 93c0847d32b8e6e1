"""Evidence for question 4: without skips, random blocks make all positions alike."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject
from tformer.answer.parts import (
    BOTH,
    NEITHER,
    SKIP_VARIANTS,
    AttentionAlone,
    AttentionAloneNoSkip,
    NoSkips,
    copy_of,
)
from tformer.answer.q4_skips.stream import DEPTH, RUN, deep, log_curve, random_ids, streams
from tformer.figures import Cell, Lines, Series, Table
from tformer.model import Transformer
from tformer.watch import put_blocks

RUN_CUT = "the run, skips cut"
ALONE, ALONE_NO_SKIP = "attention alone, skips", "attention alone, none"

# ---------------------------------------------------------------------------- how alike


def share_apart(x: Tensor) -> float:
    """The share of x's norm that is left after taking off the mean over positions; 0 where all are equal.

    The residual of Dong et al. 2021, section 2, in the Frobenius norm. x is (batch, position, d_model).
    """
    wide = x.double()
    rest = wide - wide.mean(1, keepdim=True)
    return float((rest.flatten(1).norm(dim=1) / wide.flatten(1).norm(dim=1)).mean())


def similarity(x: Tensor) -> float:
    """Mean cosine of two different positions of a sequence; 1 where all point one way."""
    unit = nn.functional.normalize(x.double(), dim=-1)
    n = x.shape[1]
    return float(((unit @ unit.mT).sum((1, 2)) - n).mean() / (n * (n - 1)))


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values, as shares of their sum (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(x.double())
    shares = values / values.sum(-1, keepdim=True)
    return float(torch.special.entr(shares).sum(-1).exp().mean())


# ---------------------------------------------------------------------------- positions become alike


@dataclass(frozen=True)
class Depths:
    """What each block's output is like, from block 1 on."""

    apart: list[float]
    similarity: list[float]
    rank: list[float]


@dataclass(frozen=True)
class CollapseEvidence:
    """The outputs of each variant's blocks, and of the run's where there is one."""

    positions: int
    variants: dict[str, Depths]


def depths(model: Transformer, ids: Tensor) -> Depths:
    """How alike the positions of `ids` are after each block."""
    outputs = streams(model, ids)[1:]
    return Depths(
        [share_apart(x) for x in outputs],
        [similarity(x) for x in outputs],
        [effective_rank(x) for x in outputs],
    )


def measure_collapse(effort: Effort, seed: int, subject: Subject | None) -> CollapseEvidence:
    """16 blocks with random weights, skips taken out; and the run, as it is and without its skips."""
    length = effort.pick(quick=32, full=64)
    kinds = SKIP_VARIANTS | {ALONE: AttentionAlone, ALONE_NO_SKIP: AttentionAloneNoSkip}
    ids = random_ids(seed, 8, length)
    variants = {name: depths(deep(kind, seed, length), ids) for name, kind in kinds.items()}
    if subject:
        ids = subject.ids(8, length, seed)
        variants[RUN] = depths(subject.model, ids)
        variants[RUN_CUT] = depths(put_blocks(copy_of(subject.model), NoSkips), ids)
    return CollapseEvidence(length, variants)


def show_collapse(seeds: Seeds[CollapseEvidence]) -> Finding:
    """Without skips positions become alike, with both they stay different."""
    names = list(seeds.first.variants)

    def row(name: str) -> tuple[Cell, ...]:
        return (
            name,
            seeds.of(lambda e: e.variants[name].apart[-1], ".2g"),
            seeds.of(lambda e: e.variants[name].similarity[-1], ".3f"),
            seeds.of(lambda e: e.variants[name].rank[-1], ".3g"),
        )

    def apart_by_block(name: str) -> Series:
        blocks = range(1, len(seeds.first.variants[name].apart) + 1)
        return log_curve(seeds, name, blocks, lambda e: e.variants[name].apart)

    table = Table(
        f"After the last block ({DEPTH} of them, or the run's), {seeds.first.positions} positions",
        ("", "apart", "cosine", "effective rank"),
        tuple(map(row, names)),
    )
    figure = Lines(
        "What is left apart, by block",
        "block",
        "share of the norm",
        tuple(map(apart_by_block, names)),
        log_y=True,
    )
    said = (
        "Random weights, all matrices of the blocks normal(0, 1/√d_in), the same draw for each variant. "
        "Apart is the share of the norm that is left after the mean over positions is taken off. The skip "
        "around attention is not the only one that counts: without the one around the MLP positions become "
        "alike as well, more slowly, and with both they drift together a little."
    )
    if RUN in names:
        said += " Of the run there is no claim: training may make positions alike or different on purpose."
    return Finding(said, (table,), (figure,), _collapse_claims(seeds))


def _collapse_claims(seeds: Seeds[CollapseEvidence]) -> tuple[Claim, ...]:
    return (
        at_most(
            "Without skips, random blocks make all positions alike",
            seeds.of(lambda e: e.variants[NEITHER].apart[-1], ".2g"),
            0.01,
            "For independent vectors it is nearly 1; a hundredth of that is next to nothing.",
        ),
        at_most(
            "So does attention alone without its skip",
            seeds.of(lambda e: e.variants[ALONE_NO_SKIP].apart[-1], ".2g"),
            0.01,
            "The same threshold.",
        ),
        at_least(
            "With both skips they stay apart",
            seeds.of(lambda e: e.variants[BOTH].apart[-1], ".2g"),
            0.1,
            "Ten times what may be left without.",
        ),
    )
