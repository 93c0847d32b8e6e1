"""Evidence for question 4: with skips the stream is a sum, and can be read at any depth."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, fresh_tensors, tiny, train
from tformer.answer.parts import BOTH, NEITHER, SKIP_VARIANTS, start_random
from tformer.answer.q4_skips.stream import RUN, curve, streams
from tformer.figures import Cell, Lines, Series, Table
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.text.data import Reversal
from tformer.watch import blocks_of, module_calls, put_blocks


class Reading(NamedTuple):
    """What norm_final and unembed read of x before block 1 and after each."""

    losses: list[float]  # nats
    accuracies: list[float]
    sum_error: float  # how far the last x is from the sum of what was added to it


@torch.no_grad()
def lens(model: Transformer, inputs: Tensor, targets: Tensor, first: int) -> Reading:
    """Loss and accuracy over the targets from position `first` on, at each depth."""
    losses, right = [], []
    for x in streams(model, inputs):
        logits = model.unembed(model.norm_final(x))
        if cap := model.config.logit_softcap:
            logits = cap * torch.tanh(logits / cap)
        losses.append(float(cross_entropy(logits, targets)[:, first:].mean()))
        right.append(float((logits.argmax(-1) == targets)[:, first:].double().mean()))
    return Reading(losses, right, sum_error(model, inputs))


@torch.no_grad()
def sum_error(model: Transformer, ids: Tensor) -> float:
    """How far the last x is from embedding plus all branch outputs, relative to its size."""
    parts: list[nn.Module] = [part for block in blocks_of(model) for part in (block.attn, block.mlp)]
    with module_calls(parts) as branches:
        stream = streams(model, ids)
    total = stream[0] + torch.stack([branch.output for branch in branches]).sum(0)
    return float((total - stream[-1]).norm() / stream[-1].norm())


@dataclass(frozen=True)
class LensEvidence:
    """What is read of the stream of each model, by its name: of the run, or of two trained here."""

    losses: dict[str, list[float]]  # nats, at each depth
    accuracies: dict[str, list[float]]
    sum_errors: dict[str, float]
    uniform: float  # nats, of a guess that knows nothing


def measure_lens(effort: Effort, seed: int, subject: Subject | None) -> LensEvidence:
    """The run on its own ids, or models of 3 blocks trained to reverse, read where the answer is known."""
    if subject:
        ids = subject.ids(16, effort.pick(quick=64, full=256) + 1, seed)
        first = subject.task.length - 1 if subject.task else 0
        if ids.shape[1] <= first + 1:  # only its first half fits
            first = 0
        reading = lens(subject.model, ids[:, :-1], ids[:, 1:], first)
        return _evidence({RUN: reading}, subject.model.config.vocab_size)
    task = Reversal(4, 8, seed=seed)
    inputs, targets = fresh_tensors(task, 500)
    config = tiny(vocab_size=8, n_ctx=task.n_ctx, n_layers=3, n_heads=2, d_model=32)
    readings = {}
    for name in (BOTH, NEITHER):
        model = put_blocks(build(config, seed, start_random), SKIP_VARIANTS[name])
        train(model, task, effort.pick(quick=100, full=200), seed, batch_size=32, lr=4e-3)
        readings[name] = lens(model, inputs, targets, task.length - 1)
    return _evidence(readings, task.symbols)


def _evidence(readings: dict[str, Reading], vocab_size: int) -> LensEvidence:
    return LensEvidence(
        {name: reading.losses for name, reading in readings.items()},
        {name: reading.accuracies for name, reading in readings.items()},
        {name: reading.sum_error for name, reading in readings.items()},
        math.log(vocab_size),
    )


def show_lens(seeds: Seeds[LensEvidence]) -> Finding:
    """With skips the stream is a sum and can be read on the way."""
    names = list(seeds.first.losses)
    tables = tuple(_by_depth(seeds, name) for name in names)

    def loss_by_depth(name: str) -> Series:
        return curve(seeds, name, range(len(seeds.first.losses[name])), lambda e: e.losses[name])

    figure = Lines(
        "What the unembedding reads",
        "blocks done",
        "cross-entropy (nats)",
        tuple(map(loss_by_depth, names)),
    )
    is_sum = at_most(
        "With skips the last x is the embedding plus all branch outputs",
        seeds.of(lambda e: e.sum_errors[names[0]], ".1e"),
        1e-4,
        "Relative to its size; float32 adds with an error of 1e-7 each time.",
    )
    if names == [RUN]:
        said = "Of how early a run can be read there is no claim: it depends on what it has learned."
        if seeds.first.losses[RUN][-1] > seeds.first.uniform:
            said = "The run guesses no better than one that knows nothing: there is nothing to read. " + said
        return Finding(said, tables, (figure,), (is_sum,))
    half = "Half of the way from what the embedding gives to the end."
    claims = (
        is_sum,
        at_least(
            "With skips, most of the answer can be read one block before the end",
            seeds.of(lambda e: _read_before_last(e.losses[BOTH]), ".2f"),
            0.5,
            half,
        ),
        at_most(
            "Without skips it cannot: what is read comes with the last block",
            seeds.of(lambda e: _read_before_last(e.losses[NEITHER]), ".2f"),
            0.5,
            half,
        ),
    )
    error = seeds.of(lambda e: e.sum_errors[NEITHER], ".2g")
    said = (
        "Models of 3 blocks, trained to reverse 4 symbols out of 8, read where the answer is known. Without "
        f"skips every block may write in a code of its own, and the sum misses the last x by {error} of its "
        "size."
    )
    return Finding(said, tables, (figure,), claims)


def _by_depth(seeds: Seeds[LensEvidence], name: str) -> Table:
    """What is read of one model at the embedding and after each block."""

    def row(depth: int) -> tuple[Cell, ...]:
        return (
            f"after block {depth}" if depth else "embedding",
            seeds.of(lambda e: e.losses[name][depth], ".3f"),
            seeds.of(lambda e: e.accuracies[name][depth], ".3f"),
        )

    depths = range(len(seeds.first.losses[name]))
    return Table(
        f"Read through the unembedding: {name}",
        ("", "loss", "right"),
        tuple(map(row, depths)),
    )


def _read_before_last(losses: list[float]) -> float:
    """How much of the way from the embedding's loss to the last one is done one block before the end."""
    return (losses[0] - losses[-2]) / (losses[0] - losses[-1])
