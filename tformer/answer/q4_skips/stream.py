"""Evidence for question 4: what runs through the blocks. Positions become alike, gradients, the lens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding, over_seeds
from tformer.answer.lab import Subject, build, tiny, train
from tformer.answer.parts import (
    BOTH,
    NEITHER,
    VARIANTS,
    AttentionAlone,
    AttentionAloneNoSkip,
    NoSkips,
    apart,
    copy_of,
    effective_rank,
    similarity,
    start_random,
    streams,
    sum_error,
    with_blocks,
    without_norms,
)
from tformer.answer.q4_skips.gradients import gradients
from tformer.figures import Lines, Numbers, Series, Table
from tformer.loss import cross_entropy
from tformer.model import Block, Transformer
from tformer.text.data import Reversal

DEPTH, SYMBOLS = 16, 32
RUN, RUN_CUT = "the run", "the run, skips cut"


def deep(kind: type[Block], seed: int, length: int) -> Transformer:
    """16 blocks of a kind with random weights, the same for every kind."""
    config = tiny(vocab_size=SYMBOLS, n_ctx=length, n_layers=DEPTH)
    return with_blocks(build(config, seed, start_random), kind)


def random_ids(seed: int, n: int, length: int) -> Tensor:
    """Shape (n, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SYMBOLS, (n, length), generator=generator)


def curve(name: str, x: Sequence[float], curves: Sequence[Sequence[float]], log: bool = False) -> Series:
    """`over_seeds`, on a log scale if asked; two seeds have no interval that is worth drawing."""
    if log and all(y > 0 for one in curves for y in one):
        drawn = over_seeds(name, x, [[math.log(y) for y in one] for one in curves])
        drawn = Series(name, drawn.x, *(tuple(map(math.exp, y)) for y in (drawn.y, drawn.low, drawn.high)))
    else:
        drawn = over_seeds(name, x, curves)
        drawn = replace(drawn, low=(), high=()) if log else drawn
    return replace(drawn, low=(), high=()) if len(curves) < 3 else drawn


# ---------------------------------------------------------------------------- positions become alike


@dataclass(frozen=True)
class Depths:
    """What each block's output is like, from block 1 on."""

    apart: list[float]
    similarity: list[float]
    rank: list[float]


@dataclass(frozen=True)
class CollapseEvidence:
    """For each variant."""

    positions: int
    variants: dict[str, Depths]


ALONE, ALONE_NO_SKIP = "attention alone, skips", "attention alone, none"


def depths(model: Transformer, ids: Tensor) -> Depths:
    """Of one model."""
    found = streams(model, ids)[1:]
    return Depths(
        [apart(x) for x in found], [similarity(x) for x in found], [effective_rank(x) for x in found]
    )


def measure_collapse(budget: Budget, seed: int, subject: Subject | None) -> CollapseEvidence:
    """16 blocks with random weights, skips taken out; and the run, as it is and without its skips."""
    length = budget.pick(quick=32, full=64)
    kinds = VARIANTS | {ALONE: AttentionAlone, ALONE_NO_SKIP: AttentionAloneNoSkip}
    ids = random_ids(seed, 8, length)
    found = {name: depths(deep(kind, seed, length), ids) for name, kind in kinds.items()}
    if subject:
        ids = subject.ids(8, length, seed)
        found[RUN] = depths(subject.model, ids)
        found[RUN_CUT] = depths(with_blocks(copy_of(subject.model), NoSkips), ids)
    return CollapseEvidence(length, found)


def show_collapse(measured: Sequence[CollapseEvidence]) -> Finding:
    """Alike without skips, different with them."""
    names = list(measured[0].variants)

    def numbers(name: str, what: str, block: int, style: str) -> Numbers:
        return Numbers(tuple(getattr(e.variants[name], what)[block - 1] for e in measured), style)

    last = {name: len(measured[0].variants[name].apart) for name in names}
    table = Table(
        f"After the last block ({DEPTH} of them, or the run's), {measured[0].positions} positions",
        ("", "apart", "cosine", "effective rank"),
        tuple(
            (
                name,
                numbers(name, "apart", last[name], ".2g"),
                numbers(name, "similarity", last[name], ".3f"),
                numbers(name, "rank", last[name], ".3g"),
            )
            for name in names
        ),
    )
    figure = Lines(
        "What is left apart, by block",
        "block",
        "share of the norm",
        tuple(
            curve(name, range(1, last[name] + 1), [e.variants[name].apart for e in measured], log=True)
            for name in names
        ),
        log_y=True,
    )
    claims = (
        Claim(
            "Without skips, random blocks make all positions alike",
            numbers(NEITHER, "apart", DEPTH, ".2g"),
            "at most",
            0.01,
            "For independent vectors it is nearly 1; a hundredth of that is next to nothing.",
        ),
        Claim(
            "So does attention alone without its skip",
            numbers(ALONE_NO_SKIP, "apart", DEPTH, ".2g"),
            "at most",
            0.01,
            "The same threshold.",
        ),
        Claim(
            "With both skips they stay apart",
            numbers(BOTH, "apart", DEPTH, ".2g"),
            "at least",
            0.1,
            "Ten times what may be left without.",
        ),
    )
    said = (
        "Random weights, all matrices of the blocks normal(0, 1/√d_in), the same draw for each variant. "
        "Apart is the share of the norm that is left after the mean over positions is taken off. The skip "
        "around attention is not the only one that counts: without the one around the MLP positions become "
        "alike as well, more slowly, and with both they drift together a little."
    )
    if RUN in names:
        said += " Of the run there is no claim: training may make positions alike or different on purpose."
    return Finding(said, (table,), (figure,), claims)


# ---------------------------------------------------------------------------- gradients at the start


@dataclass(frozen=True)
class GradientEvidence:
    """For each variant the gradient's norm in each block, whole and of queries and keys alone."""

    whole: dict[str, list[float]]
    looking: dict[str, list[float]]


NO_NORMS = "no skips, no norms"


def measure_gradients(budget: Budget, seed: int, subject: Subject | None) -> GradientEvidence:
    """One backward pass of the loss of random targets through 16 blocks; of the run, of its next ids."""
    length = budget.pick(quick=32, full=64)
    ids = random_ids(seed, 8, length + 1)
    whole, looking = {}, {}
    for name, kind in VARIANTS.items():
        whole[name], looking[name] = gradients(deep(kind, seed, length), ids[:, :-1], ids[:, 1:])
    bare = without_norms(deep(NoSkips, seed, length))
    whole[NO_NORMS], looking[NO_NORMS] = gradients(bare, ids[:, :-1], ids[:, 1:])
    if subject:
        ids = subject.ids(8, length + 1, seed)
        copied = copy_of(subject.model)
        whole[RUN], looking[RUN] = gradients(copied, ids[:, :-1], ids[:, 1:])
    return GradientEvidence(whole, looking)


def show_gradients(measured: Sequence[GradientEvidence]) -> Finding:
    """Without skips the size stays, thanks to the norms; what moves attention is lost."""

    def first_to_last(name: str) -> Numbers:
        return Numbers(tuple(e.whole[name][0] / e.whole[name][-1] for e in measured), ".2g")

    def share(name: str) -> Numbers:
        return Numbers(tuple(e.looking[name][-1] / e.whole[name][-1] for e in measured), ".2g")

    names = list(measured[0].whole)
    table = Table(
        "Gradients at the start",
        ("", "block 1 / last", "queries, keys / all, last"),
        tuple((name, first_to_last(name), share(name)) for name in names),
    )
    blocks = {name: range(1, len(measured[0].whole[name]) + 1) for name in names}
    figures = tuple(
        Lines(
            title,
            "block",
            "gradient norm",
            tuple(curve(n, blocks[n], [getattr(e, what)[n] for e in measured], log=True) for n in names),
            log_y=True,
        )
        for title, what in (
            ("Gradient of all weights of a block", "whole"),
            ("Gradient of its queries and keys", "looking"),
        )
    )
    claims = (
        Claim(
            "Without skips and norms the gradient vanishes towards block 1",
            first_to_last(NO_NORMS),
            "at most",
            0.01,
            "A factor of 0.75 a block makes 0.01 of 16; each sublayer shrinks it at these weights.",
        ),
        Claim(
            "Without skips but with norms it does not: norms alone keep its size",
            first_to_last(NEITHER),
            "at least",
            0.1,
            "A tenth: far from any vanishing over 16 blocks.",
        ),
        Claim(
            "But without skips, the last block's queries and keys get next to none of it",
            share(NEITHER),
            "at most",
            1e-3,
            "They are a sixth of the weights, which would be 0.4 of the norm if all got the same.",
        ),
        Claim(
            "With both skips they get their part",
            share(BOTH),
            "at least",
            1e-2,
            "Ten times what may be left without.",
        ),
    )
    said = (
        "Where all positions are alike, it does not matter where a query looks: its gradient is gone, "
        "however large the gradient of values and MLP is. So it is not the size of the gradient that is "
        "lost without skips, as the usual story has it, but its use."
    )
    return Finding(said, (table,), figures, claims)


# ---------------------------------------------------------------------------- the lens


@dataclass(frozen=True)
class LensEvidence:
    """What norm_final and unembed read of x before block 1 and after each; whether x is a sum."""

    losses: dict[str, list[float]]  # nats
    accuracies: dict[str, list[float]]
    sum_errors: dict[str, float]
    uniform: float  # nats, of a guess that knows nothing


@torch.no_grad()
def lens(model: Transformer, inputs: Tensor, targets: Tensor, first: int) -> tuple[list[float], list[float]]:
    """Loss and accuracy over the targets from position `first` on, at each depth."""
    losses, right = [], []
    for x in streams(model, inputs):
        logits = model.unembed(model.norm_final(x))
        if cap := model.config.logit_softcap:
            logits = cap * torch.tanh(logits / cap)
        losses.append(float(cross_entropy(logits, targets)[:, first:].mean()))
        right.append(float((logits.argmax(-1) == targets)[:, first:].double().mean()))
    return losses, right


def measure_lens(budget: Budget, seed: int, subject: Subject | None) -> LensEvidence:
    """The run on its own ids, or models of 3 blocks trained to reverse, read where the answer is known."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    errors = {}
    if subject:
        ids = subject.ids(16, budget.pick(quick=64, full=256) + 1, seed)
        first = subject.task.length - 1 if subject.task else 0
        if ids.shape[1] <= first + 1:  # only its first half fits
            first = 0
        found[RUN] = lens(subject.model, ids[:, :-1], ids[:, 1:], first)
        errors[RUN] = sum_error(subject.model, ids[:, :-1])
        return _lens_evidence(found, errors, subject.model.config.vocab_size)
    task = Reversal(4, 8, seed=seed)
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in task.fresh(500))
    config = tiny(vocab_size=8, n_ctx=task.n_ctx, n_layers=3, n_heads=2, d_model=32)
    for name in (BOTH, NEITHER):
        kind = VARIANTS[name]
        model = with_blocks(build(config, seed, start_random), kind)
        train(model, task, budget.pick(quick=100, full=200), seed, batch_size=32, lr=4e-3)
        found[name] = lens(model, inputs, targets, task.length - 1)
        errors[name] = sum_error(model, inputs)
    return _lens_evidence(found, errors, task.symbols)


def _lens_evidence(
    found: dict[str, tuple[list[float], list[float]]], errors: dict[str, float], vocab_size: int
) -> LensEvidence:
    losses, right = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
    return LensEvidence(losses, right, errors, float(np.log(vocab_size)))


def show_lens(measured: Sequence[LensEvidence]) -> Finding:
    """With skips the stream is a sum and can be read on the way."""
    first = measured[0]
    names = list(first.losses)

    def read_before_last(name: str) -> Numbers:
        values = (e.losses[name] for e in measured)
        return Numbers(tuple((v[0] - v[-2]) / (v[0] - v[-1]) for v in values), ".2f")

    def by_depth(name: str, what: str, depth: int, style: str) -> Numbers:
        return Numbers(tuple(getattr(e, what)[name][depth] for e in measured), style)

    tables = tuple(
        Table(
            f"Read through the unembedding: {name}",
            ("", "loss", "right"),
            tuple(
                (
                    f"after block {i}" if i else "embedding",
                    by_depth(name, "losses", i, ".3f"),
                    by_depth(name, "accuracies", i, ".3f"),
                )
                for i in range(len(first.losses[name]))
            ),
        )
        for name in names
    )
    figure = Lines(
        "What the unembedding reads",
        "blocks done",
        "cross-entropy (nats)",
        tuple(curve(n, range(len(first.losses[n])), [e.losses[n] for e in measured]) for n in names),
    )
    whole = names[0]
    claims = [
        Claim(
            "With skips the last x is the embedding plus all branch outputs",
            Numbers(tuple(e.sum_errors[whole] for e in measured), ".1e"),
            "at most",
            1e-4,
            "Relative to its size; float32 adds with an error of 1e-7 each time.",
        ),
    ]
    if whole == RUN:
        said = "Of how early a run can be read there is no claim: it depends on what it has learned."
        if first.losses[RUN][-1] > first.uniform:
            said = "The run guesses no better than one that knows nothing: there is nothing to read. " + said
        return Finding(said, tables, (figure,), tuple(claims))
    half = "Half of the way from what the embedding gives to the end."
    claims += [
        Claim(
            "With skips, most of the answer can be read one block before the end",
            read_before_last(BOTH),
            "at least",
            0.5,
            half,
        ),
        Claim(
            "Without skips it cannot: what is read comes with the last block",
            read_before_last(NEITHER),
            "at most",
            0.5,
            half,
        ),
    ]
    error = Numbers(tuple(e.sum_errors[NEITHER] for e in measured), ".2g")
    said = (
        "Models of 3 blocks, trained to reverse 4 symbols out of 8, read where the answer is known. Without "
        f"skips every block may write in a code of its own, and the sum misses the last x by {error} of its "
        "size."
    )
    return Finding(said, tables, (figure,), tuple(claims))
