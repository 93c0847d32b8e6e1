"""Masks that are wrong in one way each, and the evidence for question 5 of what they let through."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tformer.answer.claims import Budget, Claim, Finding, over_seeds
from tformer.answer.lab import Subject, accuracies, build, halves, tiny, train
from tformer.answer.parts import Open, TooFar, TooShort, ZeroedAfter, with_attention
from tformer.answer.tasks import Unshifted
from tformer.errors import TformerError
from tformer.evals.reversal import CONFIDENCE
from tformer.evals.statistics import binomial_interval
from tformer.figures import Lines, Numbers, Table
from tformer.loss import cross_entropy
from tformer.model import CausalSelfAttention, Transformer
from tformer.sample import generate
from tformer.text.data import Batches, Reversal

# ---------------------------------------------------------------------------- variants


# ---------------------------------------------------------------------------- measuring


@torch.inference_mode()
def prefix_losses(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target by a forward of its prefix alone, shape (batch, position).

    Nothing after a position is there to be seen, whatever the mask is.
    """
    each = [
        cross_entropy(model(inputs[:, : t + 1]), targets[:, : t + 1])[:, -1] for t in range(inputs.shape[1])
    ]
    return torch.stack(each, dim=1)


def nan_positions(n_blocks: int, seed: int, length: int = 7) -> list[bool]:
    """Which positions' logits are NaN, with a mask one too short."""
    model = build(tiny(vocab_size=8, n_ctx=length, n_layers=n_blocks, d_model=32), seed)
    with_attention(model, TooShort)
    with torch.inference_mode():
        logits = model(torch.randint(8, (1, length)))
    return logits.isnan().all(-1)[0].tolist()


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


@dataclass(frozen=True)
class LeakEvidence:
    """All variants."""

    symbols: int
    sequences: int
    variants: dict[str, Leak]
    nan_one_block: list[bool]
    nan_two_blocks: list[bool]
    stopped: bool  # whether training with a mask one too short was refused
    run: tuple[float, float, float, int] | None = None  # first half, second half, chance; its first half


RIGHT, NONE, FAR, AFTER, SAME = (
    "the mask",
    "none",
    "one too far",
    "0 after softmax",
    "targets not shifted",
)
KINDS: dict[str, type[CausalSelfAttention]] = {
    RIGHT: CausalSelfAttention,
    NONE: Open,
    FAR: TooFar,
    AFTER: ZeroedAfter,
    SAME: CausalSelfAttention,
}


def small(task: Reversal, seed: int, kind: type[CausalSelfAttention]) -> Transformer:
    """2 blocks of width 32 with another attention."""
    config = tiny(vocab_size=task.symbols, n_ctx=task.n_ctx, n_heads=2, d_model=32)
    return with_attention(build(config, seed), kind)


def measure_leaks(budget: Budget, seed: int, subject: Subject | None) -> LeakEvidence:
    """Train on reversal with each mask; the run's own table, if it is a run on reversal."""
    task = Reversal(4, 8, seed=seed)
    steps, n = budget.pick(quick=150, full=300), budget.pick(quick=1000, full=2000)
    found = {}
    for name, kind in KINDS.items():
        model = small(task, seed, kind)
        batches: Batches = Unshifted(task) if name == SAME else task
        losses = train(model, batches, steps, seed, batch_size=32)
        found[name] = examine(model, task, n, float(np.mean(losses[-10:])))
    try:
        train(small(task, seed, TooShort), task, 2, seed, batch_size=32)
        stopped = False
    except TformerError:
        stopped = True
    run = None
    if subject and subject.task:
        accuracy = accuracies(subject.model, subject.task, n)
        run = (*halves(accuracy, subject.task), 1 / subject.task.symbols, subject.task.length - 1)
    return LeakEvidence(task.symbols, n, found, nan_positions(1, seed), nan_positions(2, seed), stopped, run)


@torch.inference_mode()
def examine(model: Transformer, task: Reversal, n: int, trained_to: float) -> Leak:
    """Accuracies and losses on fresh sequences."""
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in task.fresh(n, index=1))
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


def show_leaks(measured: Sequence[LeakEvidence]) -> Finding:
    """Chance in the first half with the mask alone; what a leak is worth where there is no future."""
    one = measured[0]
    chance, half = 1 / one.symbols, (1 + 1 / one.symbols) / 2
    length = len(one.variants[RIGHT].by_position)
    n_first = length // 2

    def numbers(name: str, what: str, style: str = ".3f") -> Numbers:
        return Numbers(tuple(getattr(e.variants[name], what) for e in measured), style)

    least = n_first / length * math.log(one.symbols)
    low, high = binomial_interval(one.sequences * n_first, chance, CONFIDENCE)
    from_chance = tuple(abs(e.variants[RIGHT].first_half - chance) for e in measured)
    gap = tuple(min(e.variants[n].prefix_loss - e.variants[n].loss for n in (NONE, FAR)) for e in measured)
    seen = tuple(min(e.variants[n].first_half for n in (NONE, FAR)) for e in measured)
    tables = [
        Table(
            f"Right, with the whole sequence as input, and written token by token. By chance {chance:.3f}, "
            f"in the first half {low:.3f} to {high:.3f} (99.9 %)",
            ("", "first half", "second half", "second, written"),
            tuple(
                (n, numbers(n, "first_half"), numbers(n, "second_half"), numbers(n, "generated"))
                for n in KINDS
            ),
        ),
        Table(
            "Right at each target position, with the whole sequence as input",
            ("", "expected", *(n for n in KINDS if n != SAME)),
            tuple(
                (
                    str(i + 1),
                    f"{chance:.3f}" if i < n_first else "1.000",
                    *(
                        Numbers(tuple(e.variants[n].by_position[i] for e in measured), ".2f")
                        for n in KINDS
                        if n != SAME
                    ),
                )
                for i in range(length)
            ),
        ),
        Table(
            f"Cross-entropy in nats (first half: at least ln {one.symbols} = {math.log(one.symbols):.3f})",
            ("", "trained to", "first half", "by prefixes"),
            tuple(
                (n, numbers(n, "trained_to"), numbers(n, "loss"), numbers(n, "prefix_loss")) for n in KINDS
            ),
        ),
        Table(
            "One too short: NaN at positions",
            ("", "positions"),
            (("1 block", _listed(one.nan_one_block)), ("2 blocks", _listed(one.nan_two_blocks))),
        ),
    ]
    if one.run:
        tables.append(_run_table(one.run, one.sequences))
    figure = Lines(
        "Right at each position",
        "target position",
        "accuracy",
        tuple(
            over_seeds(n, range(1, length + 1), [e.variants[n].by_position for e in measured]) for n in KINDS
        ),
    )
    claims = (
        Claim(
            "With the mask, the first half is at chance",
            Numbers(from_chance, ".3f"),
            "at most",
            max(high - chance, chance - low),
            "The 99.9 % binomial interval of chance: those targets are independent of what is seen.",
        ),
        Claim(
            "Without it, or one diagonal too far, the model reads its targets",
            Numbers(seen, ".3f"),
            "at least",
            half,
            "Half-way from chance to all right.",
        ),
        Claim(
            "Their loss says nothing of prediction: over prefixes they do far worse",
            Numbers(gap, ".2f", "nats"),
            "at least",
            math.log(one.symbols) / 2,
            "The difference. Without a future nothing is below ln V on average; half of that.",
        ),
        Claim(
            "One too short: the first position is NaN, training stops at once",
            Numbers(tuple(float(e.nan_one_block == _only_first(e) and e.stopped) for e in measured), ".0f"),
            "at least",
            1,
            "Its softmax has no key: 0/0. 1 if so in one block, at no other position.",
        ),
        Claim(
            "Targets not shifted: the loss falls below what is possible",
            numbers(SAME, "trained_to"),
            "at most",
            least / 2,
            f"Half of {n_first}/{length} ln {one.symbols} = {least:.3f}, the least that is possible.",
        ),
        Claim(
            "Targets not shifted: the model does not predict the next token, not even in the second half",
            numbers(SAME, "second_half"),
            "at most",
            half,
            "Half-way from chance. It repeats its input, right in the middle, where two are equal.",
        ),
    )
    said = (
        "The usual story, that a model with a leak writes nonsense, is too strong here: the last position "
        "has no next input to copy, so reversing is learned for it, and some of it carries over to writing. "
        "What is always worthless is its loss. Setting weights to 0 after the softmax leaks as well, "
        "through the scale of what is left."
    )
    return Finding(said, tuple(tables), (figure,), claims)


def _listed(flags: Sequence[bool]) -> str:
    return ", ".join(str(i + 1) for i, flag in enumerate(flags) if flag) or "none"


def _only_first(evidence: LeakEvidence) -> list[bool]:
    return [i == 0 for i in range(len(evidence.nan_one_block))]


def _run_table(run: tuple[float, float, float, int], n: int) -> Table:
    first, second, chance, n_first = run
    low, high = binomial_interval(n * n_first, chance, CONFIDENCE) if n_first else (0.0, 1.0)
    verdict = "as by chance" if low <= first <= high else "not chance"
    return Table(
        "The run",
        ("", "right", ""),
        (
            ("first half", f"{first:.4f}", f"{verdict} ({low:.4f} to {high:.4f})"),
            ("second half", f"{second:.4f}", ""),
        ),
    )
