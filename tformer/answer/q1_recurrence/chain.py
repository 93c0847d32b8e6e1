"""Question 1, chain: the steps that wait for each other, and how far back along them a gradient reaches."""

import copy
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, n_parameters, tiny, train
from tformer.answer.parts import start_random
from tformer.answer.q1_recurrence.lstm import as_large_as, build_lstm
from tformer.answer.tasks import Noise
from tformer.figures import Lines, Numbers, Series, Table
from tformer.loss import cross_entropy
from tformer.watch import cut_at_embedding

SYMBOLS = 32

# ---------------------------------------------------------------------------- steps that wait


@dataclass(frozen=True)
class StepsEvidence:
    """For each length: operations that wait for each other, and the time of a training step."""

    chain_lengths: tuple[int, ...]
    transformer_chain: tuple[int, ...]
    lstm_chain: tuple[int, ...]
    timed_lengths: tuple[int, ...]
    transformer_ms: tuple[float, ...]
    lstm_ms: tuple[float, ...]
    sequences: int  # in the batch that is timed

    def added(self, chain: tuple[int, ...]) -> float:
        """Operations that a token more adds to one of the two chains, from the first length to the last."""
        return (chain[-1] - chain[0]) / (self.chain_lengths[-1] - self.chain_lengths[0])


def longest_chain(loss: Tensor) -> int:
    """Operations on the longest path of the graph that autograd recorded: each waits for the one before."""
    assert loss.grad_fn is not None
    depth: dict[Any, int] = {}
    stack = [(loss.grad_fn, False)]
    while stack:
        node, inputs_known = stack.pop()
        inputs = [n for n, _ in node.next_functions if n is not None]
        if inputs_known:
            depth[node] = 1 + max((depth[n] for n in inputs), default=0)
        elif node not in depth:
            stack.append((node, True))
            stack += [(n, False) for n in inputs if n not in depth]
    return depth[loss.grad_fn]


def chain_of(model: nn.Module, ids: Tensor) -> int:
    """The longest chain of a forward and its loss. `model` is in float64: there torch runs an LSTM
    operation by operation and not as one.
    """
    return longest_chain(cross_entropy(model(ids), ids).mean())


def step_ms(model: nn.Module, length: int, steps: int, sequences: int, seed: int) -> float:
    """Median time of a step of `fit`, the first one left out."""
    ends = [0.0]
    train(
        model,
        Noise(length, SYMBOLS),
        steps,
        seed,
        lambda report: ends.append(report.state.seconds),
        batch_size=sequences,
    )
    return 1000 * statistics.median(b - a for a, b in pairwise(ends[1:]))


def measure_steps(effort: Effort, seed: int, subject: Subject | None) -> StepsEvidence:
    """Count on one sequence, with the run's architecture if there is one; time small models of one size."""
    longest = effort.pick(quick=128, full=512)
    timed = tuple(2**i for i in range(4, effort.pick(quick=9, full=10)))
    model = build(tiny(vocab_size=SYMBOLS, n_ctx=timed[-1]), seed)
    config = as_large_as(n_parameters(model), SYMBOLS, model.config.d_model)
    counted = (subject.model if subject else model).config
    lengths = tuple(sorted({max(2, min(longest, counted.n_ctx) // 4**i) for i in range(3)}))
    inspected = copy.deepcopy(subject.model if subject else model).double()
    recurrent = build_lstm(config, seed).double()
    ids = torch.randint(min(SYMBOLS, counted.vocab_size), (1, lengths[-1]))
    steps, sequences = effort.pick(quick=5, full=12), 4
    return StepsEvidence(
        lengths,
        tuple(chain_of(inspected, ids[:, :n]) for n in lengths),
        tuple(chain_of(recurrent, ids[:, :n]) for n in lengths),
        timed,
        tuple(step_ms(copy.deepcopy(model), n, steps, sequences, seed) for n in timed),
        tuple(step_ms(build_lstm(config, seed), n, steps, sequences, seed) for n in timed),
        sequences,
    )


def show_steps(seeds: Seeds[StepsEvidence]) -> Finding:
    """The chain of the one grows with the length, that of the other does not; time is another matter."""
    first = seeds.first
    shortest, longest = first.timed_lengths[0], first.timed_lengths[-1]
    slower = seeds.of(lambda e: e.transformer_ms[-1] / e.lstm_ms[-1], ".1f").mean
    growth = seeds.of(lambda e: e.transformer_ms[-1] / e.transformer_ms[0]).mean
    lstm_growth = seeds.of(lambda e: e.lstm_ms[-1] / e.lstm_ms[0]).mean

    def counts(name: str, chain: tuple[int, ...]) -> tuple[str | Numbers, ...]:
        return (name, *(Numbers((float(n),), ".0f") for n in chain))

    return Finding.of(
        "Counted in the graph that autograd records. Parallel hardware makes a short chain a short time; one "
        f"thread, which does one thing after the other anyway, does not. From {shortest} to {longest} "
        f"positions ({longest // shortest} times as many) a step of the transformer took {growth:.0f} times "
        f"as long here and one of the LSTM, of as many parameters, {lstm_growth:.0f} times; at the end the "
        f"transformer's took {slower:.1f} times the LSTM's.",
        Table(
            "Operations that wait for each other, in one forward and its loss",
            ("model", *(f"T = {n}" for n in first.chain_lengths)),
            (counts("transformer", first.transformer_chain), counts("LSTM", first.lstm_chain)),
        ),
        Lines(
            f"A training step of {first.sequences} sequences, on one thread",
            "positions",
            "milliseconds",
            (
                seeds.log_curve("transformer", first.timed_lengths, lambda e: e.transformer_ms),
                seeds.log_curve("LSTM", first.timed_lengths, lambda e: e.lstm_ms),
            ),
            log_x=True,
            log_y=True,
        ),
        at_most(
            "A token more adds nothing to the chain of a transformer",
            seeds.of(lambda e: e.added(e.transformer_chain), ".3g", "operations"),
            0,
            "A count: all positions pass through the same operations, at once.",
        ),
        at_least(
            "A token more lengthens that of an LSTM",
            seeds.of(lambda e: e.added(e.lstm_chain), ".3g", "operations"),
            1,
            "A count: h of one token is an input of the next, so one operation at the very least.",
        ),
    )


# ---------------------------------------------------------------------------- how far a gradient reaches

CLOSED, USUAL, OPEN = "LSTM, f = 0.5", "LSTM, f = 0.73", "LSTM, f = 0.98"  # the forget gates at first
FORGET_BIASES = {CLOSED: 0.0, USUAL: 1.0, OPEN: 4.0}
FAR_BACK = 64  # tokens back


@dataclass(frozen=True)
class ReachEvidence:
    """For each model |∂ last output / ∂ input at a distance|, as a share of their sum, from distance 0 on."""

    shares: dict[str, tuple[float, ...]]


def reach(model: nn.Module, ids: Tensor, draws: int = 8) -> tuple[float, ...]:
    """Norm of the Jacobian of the last logits by the embedding at each distance, as a share of the sum.

    The Frobenius norm, estimated: the mean of |∂(v · logits)/∂x|² over normal v is its square. The share
    is the mean over the sequences of ids, shape (batch, position).
    """
    with cut_at_embedding(model) as leaves:
        logits = model(ids)[:, -1]
    squares = torch.zeros(ids.shape, dtype=torch.float64)
    for _ in range(draws):
        along = (torch.randn_like(logits) * logits).sum()
        squares += torch.autograd.grad(along, leaves[0], retain_graph=True)[0].double().square().sum(-1)
    norms = squares.sqrt().flip(1)
    shares: list[float] = (norms / norms.sum(1, keepdim=True)).mean(0).tolist()
    return tuple(shares)


def measure_reach(
    effort: Effort, seed: int, subject: Subject | None, forget_biases: Mapping[str, float] = FORGET_BIASES
) -> ReachEvidence:
    """Models with random weights of one size, in float64; and the run, on its own text."""
    length = 2 * FAR_BACK
    model = build(tiny(vocab_size=SYMBOLS, n_ctx=length), seed, start_random)
    ids = torch.randint(SYMBOLS, (effort.pick(quick=4, full=16), length))
    shares = {"transformer": reach(model.double().eval(), ids)}
    for name, bias in forget_biases.items():
        config = as_large_as(n_parameters(model), SYMBOLS, model.config.d_model, bias)
        shares[name] = reach(build_lstm(config, seed).double(), ids)
    if subject:
        shares["the run"] = reach(subject.model.eval(), subject.ids(4, length, seed))
    return ReachEvidence(shares)


def show_reach(seeds: Seeds[ReachEvidence]) -> Finding:
    """Geometric decay by the forget gate, none through attention."""
    shares = seeds.first.shares

    def share(name: str, distance: int) -> Numbers:
        return seeds.of(lambda e: e.shares[name][distance], ".1e")

    def ratio(name: str) -> Numbers:
        return seeds.of(lambda e: e.shares[name][FAR_BACK] / e.shares[name][1], ".2g")

    def curve(name: str) -> Series:
        return seeds.log_curve(name, range(len(shares[name])), lambda e: e.shares[name])

    no_loss = "Equal shares give 1, a loss of 5 % a token 0.04."
    return Finding.of(
        "|∂ last logits / ∂ embedding| of models of one size with random weights, in float64. The "
        "transformer's projections are drawn like its other matrices: as tformer initialises them, at zero, "
        "nothing at all would come from other tokens until the first update. The LSTMs differ in the bias of "
        "their forget gates f: 0 as torch has it, 1, and 4. The curve of a trained run shows what it uses.",
        Table(
            "Share of the last output's gradient, by distance",
            ("model", "1 back", "16", str(FAR_BACK)),
            tuple(  # a run may see less
                (name, *(share(name, d) for d in (1, 16, FAR_BACK)))
                for name in shares
                if len(shares[name]) > FAR_BACK
            ),
        ),
        Lines(
            "How far back a gradient reaches",
            "tokens back",
            "share",
            tuple(map(curve, shares)),
            log_y=True,
        ),
        at_least(
            f"Through attention, {FAR_BACK} tokens are not farther than 1 (ratio of gradients)",
            ratio("transformer"),
            0.1,
            no_loss,
        ),
        at_most(
            "Through an LSTM as torch initialises it, the gradient vanishes",
            ratio(CLOSED),
            3e-10,
            f"Gates at 0.5 leave 0.5^{FAR_BACK - 1} = 1e-19, open ones 1: halfway on a log scale.",
        ),
        at_least(
            "That is no law: through one whose forget gates start open it does not",
            ratio(OPEN),
            0.1,
            f"sigmoid(4) = 0.982 leaves 0.32 after {FAR_BACK - 1} tokens, by the cell alone.",
        ),
    )
