"""Evidence for question 4: the same model trained with both skips, with one of them, with none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, accuracies, build, fresh_tensors, halves, tiny, train
from tformer.answer.parts import (
    BOTH,
    SKIP_VARIANTS,
    NoSkips,
    start_copying,
    start_gpt2,
    start_orthogonal,
    start_random,
)
from tformer.answer.q4_skips.gradients import GradientNorms, gradient_norms
from tformer.answer.q4_skips.stream import curve, log_curve
from tformer.errors import TformerError
from tformer.figures import Cell, Lines, Series, Table
from tformer.model import Block, Transformer
from tformer.text.data import Reversal
from tformer.training.fit import Report
from tformer.watch import put_blocks

TASK = {"length": 4, "symbols": 8}
FAST, SLOW = 4e-3, 1.5e-3  # learning rates
COPY_DEPTH = 8
COPY, GPT2, ORTHOGONAL = "no skips, copying", "no skips, GPT-2", "no skips, orthogonal"


@dataclass(frozen=True)
class SkipVariant:
    """What is trained: so many blocks of a kind, from a start; `name` is what the table calls it."""

    depth: int
    name: str
    kind: type[Block]
    start: Callable[[Transformer], Transformer] = start_random


@dataclass(frozen=True)
class Training:
    """One variant trained: where it got to, and the gradient in each block half-way."""

    depth: int
    variant: str
    lr: float
    losses: list[float]  # nats, by step
    first_half: float
    second_half: float
    whole: list[float]  # gradient norm by block
    looking: list[float]  # of queries and keys alone


@dataclass(frozen=True)
class TrainingEvidence:
    """All trainings of one seed: for each depth and variant the better of the learning rates tried."""

    chance: float
    steps: int
    trained: list[Training]

    def at(self, depth: int, variant: str) -> Training:
        """The one of a depth and a variant."""
        return next(t for t in self.trained if (t.depth, t.variant) == (depth, variant))


def measure_training(effort: Effort, seed: int, subject: Subject | None) -> TrainingEvidence:
    """The same draw, data and steps for every variant of a depth."""
    task = Reversal(**TASK, seed=seed)
    steps = effort.pick(quick=80, full=100)
    rates = effort.pick(quick=(FAST,), full=(FAST, SLOW))
    trained = [
        best_of_rates(SkipVariant(depth, name, kind), task, steps, rates)
        for depth in effort.pick(quick=(2, 8), full=(2, 4, 8, 16))
        for name, kind in SKIP_VARIANTS.items()
    ]
    copying = SkipVariant(COPY_DEPTH, COPY, NoSkips, start_copying)
    trained.append(best_of_rates(copying, task, steps, (SLOW,)))
    others = effort.pick(quick={}, full={GPT2: start_gpt2, ORTHOGONAL: start_orthogonal})
    for name, start in others.items():
        trained.append(best_of_rates(SkipVariant(COPY_DEPTH, name, NoSkips, start), task, steps, rates))
    return TrainingEvidence(1 / task.symbols, steps, trained)


def best_of_rates(variant: SkipVariant, task: Reversal, steps: int, rates: Sequence[float]) -> Training:
    """The training whose last losses are lowest; one that diverged is taken only if all did."""

    def last_losses(training: Training) -> float:
        finished = len(training.losses) == steps
        return float(np.mean(training.losses[-10:])) if finished else np.inf

    return min((train_variant(variant, task, steps, lr) for lr in rates), key=last_losses)


def train_variant(variant: SkipVariant, task: Reversal, steps: int, lr: float) -> Training:
    """Train and look at it. A training that diverges counts with what it had reached."""
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_layers=variant.depth, n_heads=2, d_model=32)
    model = put_blocks(build(config, task.seed, variant.start), variant.kind)
    inputs, targets = fresh_tensors(task, 64, index=2)
    losses: list[float] = []
    half_way: list[GradientNorms] = []

    def on_step(report: Report) -> None:
        losses.append(report.loss)
        if len(losses) == steps // 2:
            half_way.append(gradient_norms(model, inputs, targets))

    try:
        train(model, task, steps, task.seed, on_step, batch_size=32, lr=lr)
    except TformerError:
        model.eval()
    first, second = halves(accuracies(model, task), task)
    norms = half_way[0] if half_way else gradient_norms(model, inputs, targets)
    return Training(variant.depth, variant.name, lr, losses, first, second, norms.whole, norms.looking)


def show_training(seeds: Seeds[TrainingEvidence]) -> Finding:
    """Shallow ones all learn; the deep ones do only with both skips, or if they start as copies."""
    depths = sorted({training.depth for training in seeds.first.trained})
    rates = "the better of the learning rates 0.004 and 0.0015" if len(depths) > 2 else "learning rate 0.004"
    said = (
        f"Reversing {TASK['length']} symbols out of {TASK['symbols']}, {seeds.first.steps} steps of 32 "
        f"sequences, {rates}. Matrices of the blocks start as normal(0, 1/√d_in) in every variant: tformer's "
        "own start, out and down at 0, would be unfair without skips. The copy has other weights at the "
        "start, positions twice as large and learning rate 0.0015, and no skip either: what deep models need "
        "at the start is the identity, and a skip is the easiest way to have it. Both skips count: without "
        "the one around the MLP alone, deep models fail as well. This is about so many steps: it does not "
        "say that more of them could not."
    )
    return Finding(
        said,
        (_accuracy_table(seeds, depths),),
        (_loss_figure(seeds, depths[-1]), _gradient_figure(seeds, depths[-1])),
        _training_claims(seeds, depths[0], depths[-1]),
    )


def _accuracy_table(seeds: Seeds[TrainingEvidence], depths: Sequence[int]) -> Table:
    """Variants by depths; empty where a variant was not trained at a depth."""
    trained = {(training.depth, training.variant) for training in seeds.first.trained}

    def right(depth: int, name: str) -> Cell:
        if (depth, name) not in trained:
            return ""
        return seeds.of(lambda e: e.at(depth, name).second_half, ".3f")

    names = dict.fromkeys(training.variant for training in seeds.first.trained)
    return Table(
        "Second half right, by number of blocks",
        ("", *(f"{depth} blocks" for depth in depths)),
        tuple((name, *(right(depth, name) for depth in depths)) for name in names),
    )


def _variants_of(seeds: Seeds[TrainingEvidence], depth: int) -> list[str]:
    return [training.variant for training in seeds.first.trained if training.depth == depth]


def _loss_figure(seeds: Seeds[TrainingEvidence], depth: int) -> Lines:
    """Of each variant as far as all its seeds got; none of one that diverged at once."""

    def loss_by_step(name: str) -> Series:
        steps = min(len(e.at(depth, name).losses) for e in seeds)
        return curve(seeds, name, range(1, steps + 1), lambda e: e.at(depth, name).losses[:steps])

    begun = [name for name in _variants_of(seeds, depth) if all(e.at(depth, name).losses for e in seeds)]
    return Lines(f"Loss with {depth} blocks", "step", "cross-entropy (nats)", tuple(map(loss_by_step, begun)))


def _gradient_figure(seeds: Seeds[TrainingEvidence], depth: int) -> Lines:
    def looking_by_block(name: str) -> Series:
        return log_curve(seeds, name, range(1, depth + 1), lambda e: e.at(depth, name).looking)

    return Lines(
        f"Gradient of queries and keys half-way through training, {depth} blocks",
        "block",
        "gradient norm",
        tuple(map(looking_by_block, _variants_of(seeds, depth))),
        log_y=True,
    )


def _training_claims(seeds: Seeds[TrainingEvidence], shallow: int, deepest: int) -> tuple[Claim, ...]:
    chance = seeds.first.chance
    half, quarter = (1 + chance) / 2, (1 + 3 * chance) / 4
    because = f"Half-way from chance, {chance:.3g}, to all right."
    others = [name for name in SKIP_VARIANTS if name != BOTH]
    return (
        at_least(
            f"With {shallow} blocks every variant learns, also without any skip",
            seeds.of(lambda e: min(e.at(shallow, name).second_half for name in SKIP_VARIANTS), ".3f"),
            half,
            because,
        ),
        at_least(
            f"With {deepest} blocks the one with both skips learns",
            seeds.of(lambda e: e.at(deepest, BOTH).second_half, ".3f"),
            half,
            because,
        ),
        at_most(
            f"With {deepest} blocks no other does in the same {seeds.first.steps} steps",
            seeds.of(lambda e: max(e.at(deepest, name).second_half for name in others), ".3f"),
            half,
            because,
        ),
        at_least(
            f"{COPY_DEPTH} blocks without skips learn, if each starts as a copy of its input",
            seeds.of(lambda e: e.at(COPY_DEPTH, COPY).second_half, ".3f"),
            quarter,
            "A quarter of the way from chance to all right. Half-way was first tried: most copies get "
            "all the way, some not so far in these steps; random starts stay near chance.",
        ),
    )
