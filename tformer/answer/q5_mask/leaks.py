"""Evidence for question 5: what masks that are wrong in one way each let through, on the reversal task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tformer.answer.claims import Claim, Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, accuracies, build, fresh_tensors, halves, tiny, train
from tformer.answer.parts import reaching, zeroed_after
from tformer.answer.q5_mask.masks import FAR, MASKS, NONE, RIGHT
from tformer.answer.q5_mask.prefixes import prefix_losses
from tformer.answer.tasks import Unshifted
from tformer.errors import TformerError
from tformer.evals.reversal import CONFIDENCE
from tformer.evals.statistics import binomial_interval
from tformer.figures import Cell, Lines, Numbers, Series, Table
from tformer.loss import cross_entropy
from tformer.model import Formula, Transformer, attention
from tformer.sample import generate
from tformer.text.data import Batches, Reversal
from tformer.watch import put_formula

AFTER, SAME = "0 after softmax", "targets not shifted"
LEAK_FORMULAS: dict[str, Formula] = MASKS | {AFTER: zeroed_after, SAME: attention}
TOO_SHORT = reaching(-1)

# ---------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Leak:
    """A model after its training. Losses are nats a token over the first half."""

    by_position: list[float]  # accuracy, with the whole sequence as input
    first_half: float
    second_half: float
    generated: float  # accuracy in the second half, token by token from the first
    trained_to: float  # last losses of training, over all positions
    loss: float
    prefix_loss: float


class RunAccuracy(NamedTuple):
    """Accuracy of a run on reversal."""

    first_half: float
    second_half: float
    chance: float
    n_first: int  # target positions of the first half


@dataclass(frozen=True)
class LeakEvidence:
    """A model trained with each mask, what a mask one too short does, and the run if it reverses."""

    symbols: int
    sequences: int
    variants: dict[str, Leak]
    nan_one_block: list[bool]
    nan_two_blocks: list[bool]
    stopped: bool  # whether training with a mask one too short was refused
    run: RunAccuracy | None = None

    @property
    def chance(self) -> float:
        """Accuracy of a guess among the symbols."""
        return 1 / self.symbols

    @property
    def length(self) -> int:
        """Target positions of a sequence."""
        return len(self.variants[RIGHT].by_position)

    @property
    def n_first(self) -> int:
        """Those of the first half, which nothing can predict."""
        return self.length // 2

    @property
    def only_first_is_nan(self) -> bool:
        """Whether a mask one too short spoils, in one block, the first position and no other."""
        return self.nan_one_block == [i == 0 for i in range(len(self.nan_one_block))]


def small_model(task: Reversal, seed: int, formula: Formula) -> Transformer:
    """2 blocks of width 32 with another formula for attention."""
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_heads=2, d_model=32)
    return put_formula(build(config, seed), formula)


def nan_positions(n_blocks: int, seed: int, length: int = 7) -> list[bool]:
    """Which positions' logits are NaN, with a mask one too short."""
    config = tiny(vocab_size=8, n_ctx=length, n_layers=n_blocks, d_model=32)
    model = put_formula(build(config, seed), TOO_SHORT)
    with torch.inference_mode():
        logits = model(torch.randint(8, (1, length)))
    return logits.isnan().all(-1)[0].tolist()


def is_stopped(task: Reversal, seed: int) -> bool:
    """Whether training with a mask one too short is refused, as diverged."""
    try:
        train(small_model(task, seed, TOO_SHORT), task, 2, seed, batch_size=32)
    except TformerError:
        return True
    return False


def measure_leaks(effort: Effort, seed: int, subject: Subject | None) -> LeakEvidence:
    """Train on reversal with each mask; the run's own table, if it is a run on reversal."""
    task = Reversal(4, 8, seed=seed)
    steps, n = effort.pick(quick=150, full=300), effort.pick(quick=1000, full=2000)
    variants = {}
    for name, formula in LEAK_FORMULAS.items():
        model = small_model(task, seed, formula)
        batches: Batches = Unshifted(task) if name == SAME else task
        losses = train(model, batches, steps, seed, batch_size=32)
        variants[name] = examine(model, task, n, float(np.mean(losses[-10:])))
    run = None
    if subject and subject.task:
        first, second = halves(accuracies(subject.model, subject.task, n), subject.task)
        run = RunAccuracy(first, second, 1 / subject.task.symbols, subject.task.length - 1)
    return LeakEvidence(
        task.symbols,
        n,
        variants,
        nan_positions(1, seed),
        nan_positions(2, seed),
        is_stopped(task, seed),
        run,
    )


@torch.inference_mode()
def examine(model: Transformer, task: Reversal, n: int, trained_to: float) -> Leak:
    """Accuracies and losses on `n` fresh sequences, read at once, by prefixes and while writing."""
    inputs, targets = fresh_tensors(task, n, index=1)
    accuracy = accuracies(model, task, n)
    first = task.length - 1
    written = torch.stack(list(generate(model, inputs[:, : task.length], task.length, cached=False)), dim=1)
    return Leak(
        accuracy.tolist(),
        *halves(accuracy, task),
        generated=float((written == targets[:, first:]).double().mean()),
        trained_to=trained_to,
        loss=float(cross_entropy(model(inputs), targets)[:, :first].mean()),
        prefix_loss=float(prefix_losses(model, inputs, targets)[:, :first].mean()),
    )


# ---------------------------------------------------------------------------- showing


def show_leaks(seeds: Seeds[LeakEvidence]) -> Finding:
    """Chance in the first half with the mask alone; what a leak is worth where there is no future."""

    def right_by_position(name: str) -> Series:
        return seeds.curve(name, range(1, seeds.first.length + 1), lambda e: e.variants[name].by_position)

    tables = [_accuracy_table(seeds), _position_table(seeds), _loss_table(seeds), _nan_table(seeds.first)]
    if seeds.first.run:
        tables.append(_run_table(seeds.first.run, seeds.first.sequences))
    figure = Lines(
        "Right at each position",
        "target position",
        "accuracy",
        tuple(map(right_by_position, LEAK_FORMULAS)),
    )
    said = (
        "The usual story, that a model with a leak writes nonsense, is too strong here: the last position "
        "has no next input to copy, so reversing is learned for it, and some of it carries over to writing. "
        "What is always worthless is its loss. Setting weights to 0 after the softmax leaks as well, "
        "through the scale of what is left."
    )
    return Finding(said, tuple(tables), (figure,), _leak_claims(seeds))


def _by_variant(
    seeds: Seeds[LeakEvidence], *quantities: Callable[[Leak], float]
) -> tuple[tuple[Cell, ...], ...]:
    """A row for each variant: its name and these quantities."""

    def numbers(name: str, quantity: Callable[[Leak], float]) -> Numbers:
        return seeds.of(lambda e: quantity(e.variants[name]), ".3f")

    return tuple((name, *(numbers(name, quantity) for quantity in quantities)) for name in LEAK_FORMULAS)


def _accuracy_table(seeds: Seeds[LeakEvidence]) -> Table:
    first = seeds.first
    low, high = binomial_interval(first.sequences * first.n_first, first.chance, CONFIDENCE)
    return Table(
        f"Right, with the whole sequence as input, and written token by token. By chance {first.chance:.3f}, "
        f"in the first half {low:.3f} to {high:.3f} (99.9 %)",
        ("", "first half", "second half", "second, written"),
        _by_variant(
            seeds, lambda leak: leak.first_half, lambda leak: leak.second_half, lambda leak: leak.generated
        ),
    )


def _position_table(seeds: Seeds[LeakEvidence]) -> Table:
    shifted = [name for name in LEAK_FORMULAS if name != SAME]

    def right(name: str, position: int) -> Numbers:
        return seeds.of(lambda e: e.variants[name].by_position[position], ".2f")

    def expected(position: int) -> str:
        return f"{seeds.first.chance:.3f}" if position < seeds.first.n_first else "1.000"

    return Table(
        "Right at each target position, with the whole sequence as input",
        ("", "expected", *shifted),
        tuple(
            (str(position + 1), expected(position), *(right(name, position) for name in shifted))
            for position in range(seeds.first.length)
        ),
    )


def _loss_table(seeds: Seeds[LeakEvidence]) -> Table:
    symbols = seeds.first.symbols
    return Table(
        f"Cross-entropy in nats (first half: at least ln {symbols} = {math.log(symbols):.3f})",
        ("", "trained to", "first half", "by prefixes"),
        _by_variant(
            seeds, lambda leak: leak.trained_to, lambda leak: leak.loss, lambda leak: leak.prefix_loss
        ),
    )


def _nan_table(first: LeakEvidence) -> Table:
    return Table(
        "One too short: NaN at positions",
        ("", "positions"),
        (("1 block", _listed(first.nan_one_block)), ("2 blocks", _listed(first.nan_two_blocks))),
    )


def _listed(flags: Sequence[bool]) -> str:
    """Which are set, counted from 1."""
    return ", ".join(str(i + 1) for i, flag in enumerate(flags) if flag) or "none"


def _run_table(run: RunAccuracy, sequences: int) -> Table:
    """The run's two halves, and whether the first is as by chance."""
    low, high = 0.0, 1.0
    if run.n_first:
        low, high = binomial_interval(sequences * run.n_first, run.chance, CONFIDENCE)
    verdict = "as by chance" if low <= run.first_half <= high else "not chance"
    return Table(
        "The run",
        ("", "right", ""),
        (
            ("first half", f"{run.first_half:.4f}", f"{verdict} ({low:.4f} to {high:.4f})"),
            ("second half", f"{run.second_half:.4f}", ""),
        ),
    )


def _leak_claims(seeds: Seeds[LeakEvidence]) -> tuple[Claim, ...]:
    first = seeds.first
    chance, half = first.chance, (1 + first.chance) / 2
    low, high = binomial_interval(first.sequences * first.n_first, chance, CONFIDENCE)
    least = first.n_first / first.length * math.log(first.symbols)
    return (
        at_most(
            "With the mask, the first half is at chance",
            seeds.of(lambda e: abs(e.variants[RIGHT].first_half - chance), ".3f"),
            max(high - chance, chance - low),
            "The 99.9 % binomial interval of chance: those targets are independent of what is seen.",
        ),
        at_least(
            "Without it, or one diagonal too far, the model reads its targets",
            seeds.of(lambda e: min(e.variants[name].first_half for name in (NONE, FAR)), ".3f"),
            half,
            "Half-way from chance to all right.",
        ),
        at_least(
            "Their loss says nothing of prediction: over prefixes they do far worse",
            seeds.of(
                lambda e: min(_worse_by_prefixes(e.variants[name]) for name in (NONE, FAR)), ".2f", "nats"
            ),
            math.log(first.symbols) / 2,
            "The difference. Without a future nothing is below ln V on average; half of that.",
        ),
        at_least(
            "One too short: the first position is NaN, training stops at once",
            seeds.of(lambda e: e.only_first_is_nan and e.stopped, ".0f"),
            1,
            "Its softmax has no key: 0/0. 1 if so in one block, at no other position.",
        ),
        at_most(
            "Targets not shifted: the loss falls below what is possible",
            seeds.of(lambda e: e.variants[SAME].trained_to, ".3f"),
            least / 2,
            f"Half of {first.n_first}/{first.length} ln {first.symbols} = {least:.3f}, the least that is "
            "possible.",
        ),
        at_most(
            "Targets not shifted: the model does not predict the next token, not even in the second half",
            seeds.of(lambda e: e.variants[SAME].second_half, ".3f"),
            half,
            "Half-way from chance. It repeats its input, right in the middle, where two are equal.",
        ),
    )


def _worse_by_prefixes(leak: Leak) -> float:
    """By how many nats its loss is higher where it sees prefixes alone."""
    return leak.prefix_loss - leak.loss
