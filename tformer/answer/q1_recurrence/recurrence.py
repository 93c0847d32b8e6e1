"""Evidence for question 1: steps that wait for each other, how far a gradient reaches, what is carried."""

import copy
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tformer.answer.claims import Budget, Claim, Experiment, Finding, over_seeds
from tformer.answer.lab import Subject, build, n_parameters, tiny, train
from tformer.answer.q1_recurrence.lstm import LSTMConfig, as_large_as, build_lstm
from tformer.answer.q1_recurrence.positions import stir
from tformer.figures import Cell, Lines, Numbers, Series, Table
from tformer.kv_cache import KVCache
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.text.data import rng

SYMBOLS = 32
STREAM_NOISE = 103


def on_log_scale(name: str, x: Sequence[float], curves: Sequence[Sequence[float]]) -> Series:
    """Of positive curves, their mean and its interval in logarithms: an interval that stays positive."""
    logs = over_seeds(name, x, [[math.log(max(y, sys.float_info.min)) for y in curve] for curve in curves])
    y, low, high = (tuple(map(math.exp, values)) for values in (logs.y, logs.low, logs.high))
    return Series(name, logs.x, y, low, high)


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


@dataclass(frozen=True)
class Noise:
    """Random symbols; only the time that they take is of interest."""

    length: int

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step."""
        ids = rng(0, STREAM_NOISE, step).integers(SYMBOLS, size=(batch_size, self.length + 1))
        return ids[:, :-1], ids[:, 1:]


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
    """Of one forward; in float64, in which torch runs an LSTM operation by operation and not as one."""
    return longest_chain(cross_entropy(model(ids), ids).mean())


def step_ms(model: nn.Module, length: int, steps: int, sequences: int, seed: int) -> float:
    """Median time of a step of `fit`, the first one left out."""
    ends = [0.0]
    train(
        model,
        Noise(length),
        steps,
        seed,
        lambda r: ends.append(r.state.seconds),
        batch_size=sequences,
    )
    return 1000 * statistics.median(b - a for a, b in pairwise(ends[1:]))


def measure_steps(budget: Budget, seed: int, subject: Subject | None) -> StepsEvidence:
    """Count on one sequence, with the run's architecture if there is one; time small models of one size."""
    longest = budget.pick(quick=128, full=512)
    timed = tuple(2**i for i in range(4, budget.pick(quick=9, full=10)))
    model = build(tiny(vocab_size=SYMBOLS, n_ctx=timed[-1]), seed)
    config = as_large_as(n_parameters(model), SYMBOLS, model.config.d_model)
    counted = (subject.model if subject else model).config
    lengths = tuple(sorted({max(2, min(longest, counted.n_ctx) // 4**i) for i in range(3)}))
    inspected = copy.deepcopy(subject.model if subject else model).double()
    recurrent = build_lstm(config, seed).double()
    ids = torch.randint(min(SYMBOLS, counted.vocab_size), (1, lengths[-1]))
    steps, sequences = budget.pick(quick=5, full=12), 4
    return StepsEvidence(
        lengths,
        tuple(chain_of(inspected, ids[:, :n]) for n in lengths),
        tuple(chain_of(recurrent, ids[:, :n]) for n in lengths),
        timed,
        tuple(step_ms(copy.deepcopy(model), n, steps, sequences, seed) for n in timed),
        tuple(step_ms(build_lstm(config, seed), n, steps, sequences, seed) for n in timed),
        sequences,
    )


def _per_token(e: StepsEvidence, chain: tuple[int, ...]) -> float:
    return (chain[-1] - chain[0]) / (e.chain_lengths[-1] - e.chain_lengths[0])


def show_steps(measured: Sequence[StepsEvidence]) -> Finding:
    """The chain of the one grows with the length, that of the other does not; time is another matter."""
    first = measured[0]
    names = ("transformer", "LSTM")
    counted = Table(
        "Operations that wait for each other, in one forward and its loss",
        ("model", *(f"T = {n}" for n in first.chain_lengths)),
        tuple(
            (name, *(Numbers((float(n),), ".0f") for n in chain))
            for name, chain in zip(names, (first.transformer_chain, first.lstm_chain), strict=True)
        ),
    )
    times = [[e.transformer_ms for e in measured], [e.lstm_ms for e in measured]]
    figure = Lines(
        f"A training step of {first.sequences} sequences, on one thread",
        "positions",
        "milliseconds",
        tuple(on_log_scale(n, first.timed_lengths, t) for n, t in zip(names, times, strict=True)),
        log_x=True,
        log_y=True,
    )
    ratio = statistics.fmean(e.transformer_ms[-1] / e.lstm_ms[-1] for e in measured)
    growth = [statistics.fmean(t[-1] / t[0] for t in model) for model in times]
    added = [
        Numbers(tuple(_per_token(e, c) for e, c in zip(measured, chains, strict=True)), ".3g", "operations")
        for chains in ([e.transformer_chain for e in measured], [e.lstm_chain for e in measured])
    ]
    claims = (
        Claim(
            "A token more adds nothing to the chain of a transformer",
            added[0],
            "at most",
            0,
            "A count: all positions pass through the same operations, at once.",
        ),
        Claim(
            "A token more lengthens that of an LSTM",
            added[1],
            "at least",
            1,
            "A count: h of one token is an input of the next, so one operation at the very least.",
        ),
    )
    said = (
        "Counted in the graph that autograd records. Parallel hardware makes a short chain a short time; one "
        f"thread, which does one thing after the other anyway, does not. From {first.timed_lengths[0]} to "
        f"{first.timed_lengths[-1]} positions ({first.timed_lengths[-1] // first.timed_lengths[0]} times as "
        f"many) a step of the transformer took {growth[0]:.0f} times as long here and one of the LSTM, of as "
        f"many parameters, {growth[1]:.0f} times; at the end the transformer's took {ratio:.1f} times the "
        "LSTM's."
    )
    return Finding(said, (counted,), (figure,), claims)


# ---------------------------------------------------------------------------- how far a gradient reaches

CLOSED, USUAL, OPEN = "LSTM, f = 0.5", "LSTM, f = 0.73", "LSTM, f = 0.98"  # the forget gates at first
FORGET_BIASES = {CLOSED: 0.0, USUAL: 1.0, OPEN: 4.0}
FAR = 64


@dataclass(frozen=True)
class ReachEvidence:
    """For each model |∂ last output / ∂ input at a distance|, as a share of their sum, from distance 0 on."""

    shares: dict[str, tuple[float, ...]]


def reach(model: nn.Module, ids: Tensor, draws: int = 8) -> tuple[float, ...]:
    """Norm of the Jacobian of the last logits by the embedding at each distance, as a share of the sum.

    The Frobenius norm, estimated: the mean of |∂(v · logits)/∂x|² over normal v is its square. The share
    is the mean over the sequences of ids, shape (batch, position).
    """
    seen: list[Tensor] = []
    assert isinstance(model.embed, nn.Module)
    hook = model.embed.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(ids)[:, -1]
    hook.remove()
    squares = torch.zeros(ids.shape, dtype=torch.float64)
    for _ in range(draws):
        along = (torch.randn_like(logits) * logits).sum()
        squares += torch.autograd.grad(along, seen[0], retain_graph=True)[0].double().square().sum(-1)
    norms = squares.sqrt().flip(1)
    shares: list[float] = (norms / norms.sum(1, keepdim=True)).mean(0).tolist()
    return tuple(shares)


def measure_reach(budget: Budget, seed: int, subject: Subject | None) -> ReachEvidence:
    """Models with random weights of one size, in float64; and the run, on its own text."""
    length = 2 * FAR
    model = build(tiny(vocab_size=SYMBOLS, n_ctx=length), seed, stir)
    ids = torch.randint(SYMBOLS, (budget.pick(quick=4, full=16), length))
    shares = {"transformer": reach(model.double().eval(), ids)}
    for name, bias in FORGET_BIASES.items():
        config = as_large_as(n_parameters(model), SYMBOLS, model.config.d_model, bias)
        shares[name] = reach(build_lstm(config, seed).double(), ids)
    if subject:
        shares["the run"] = reach(subject.model.eval(), subject.ids(4, length, seed))
    return ReachEvidence(shares)


def show_reach(measured: Sequence[ReachEvidence]) -> Finding:
    """Geometric decay by the forget gate, none through attention."""
    first = measured[0].shares
    series, rows = [], list[tuple[Cell, ...]]()
    for name in first:
        curves = [e.shares[name] for e in measured]
        series.append(on_log_scale(name, range(len(first[name])), curves))
        if len(first[name]) > FAR:  # a run may see less
            rows.append((name, *(Numbers(tuple(c[d] for c in curves), ".1e") for d in (1, 16, FAR))))
    table = Table(
        "Share of the last output's gradient, by distance",
        ("model", "1 back", "16", str(FAR)),
        tuple(rows),
    )
    figure = Lines("How far back a gradient reaches", "tokens back", "share", tuple(series), log_y=True)
    ratios = {
        name: Numbers(tuple(e.shares[name][FAR] / e.shares[name][1] for e in measured), ".2g")
        for name in ("transformer", CLOSED, OPEN)
    }
    no_loss = "Equal shares give 1, a loss of 5 % a token 0.04."
    claims = (
        Claim(
            f"Through attention, {FAR} tokens are not farther than 1 (ratio of gradients)",
            ratios["transformer"],
            "at least",
            0.1,
            no_loss,
        ),
        Claim(
            "Through an LSTM as torch initialises it, the gradient vanishes",
            ratios[CLOSED],
            "at most",
            3e-10,
            f"Gates at 0.5 leave 0.5^{FAR - 1} = 1e-19, open ones 1: halfway on a log scale.",
        ),
        Claim(
            "That is no law: through one whose forget gates start open it does not",
            ratios[OPEN],
            "at least",
            0.1,
            f"sigmoid(4) = 0.982 leaves 0.32 after {FAR - 1} tokens, by the cell alone.",
        ),
    )
    said = (
        "|∂ last logits / ∂ embedding| of models of one size with random weights, in float64. The "
        "transformer's projections are drawn like its other matrices: as tformer initialises them, at zero, "
        "nothing at all would come from other tokens until the first update. The LSTMs differ in the bias of "
        "their forget gates f: 0 as torch has it, 1, and 4. The curve of a trained run shows what it uses."
    )
    return Finding(said, (table,), (figure,), claims)


# ---------------------------------------------------------------------------- what is carried


@dataclass(frozen=True)
class CarriedEvidence:
    """Bytes carried after each number of tokens, and how far outputs that go on from them are off."""

    lengths: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    difference: float  # of logits, of either model, as a fraction of the largest
    cache_parameters: int
    state_parameters: int


def measure_carried(budget: Budget, seed: int, subject: Subject | None) -> CarriedEvidence:
    """Read a text, keep nothing but what is carried, go on; compare with reading all of it at once."""
    longest = budget.pick(quick=256, full=1024)
    if subject:
        model, ids = subject.model.eval(), subject.ids(1, longest, seed)
    else:
        model = build(tiny(vocab_size=SYMBOLS, n_ctx=longest), seed, stir).eval()
        ids = torch.randint(SYMBOLS, (1, longest))
    recurrent = build_lstm(LSTMConfig(SYMBOLS), seed)
    symbols = ids % SYMBOLS
    lengths = tuple(sorted({max(2, ids.shape[1] // 4**i - 1) for i in range(3)}))
    cache_bytes, state_bytes, differences = [], [], []
    with torch.inference_mode():
        for n in lengths:
            kept = _kept(model, ids[:, :n])
            cache = KVCache(model.config, 1, kept)
            cache.length = n
            cache.keys[..., :n, :], cache.values[..., :n, :] = kept
            differences.append(_off(model(ids[:, n : n + 1], cache)[:, -1], model(ids[:, : n + 1])[:, -1]))
            cache_bytes.append(kept.nbytes)
            state = recurrent.carry(symbols[:, :n])[1]
            on = recurrent.carry(symbols[:, n : n + 1], (state[0].clone(), state[1].clone()))[0]
            differences.append(_off(on[:, -1], recurrent(symbols[:, : n + 1])[:, -1]))
            state_bytes.append(sum(t.nbytes for t in state))
    return CarriedEvidence(
        lengths,
        tuple(cache_bytes),
        tuple(state_bytes),
        max(differences),
        n_parameters(model),
        n_parameters(recurrent),
    )


def _kept(model: Transformer, ids: Tensor) -> Tensor:
    """Keys and values of ids and nothing else, shape (2, layer, batch, head, position, d_head)."""
    cache = KVCache(model.config, ids.shape[0], next(model.parameters()))
    model(ids, cache)
    return torch.stack((cache.keys, cache.values))[..., : cache.length, :].clone()


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def show_carried(measured: Sequence[CarriedEvidence]) -> Finding:
    """The state stays as it is, the cache grows."""
    first = measured[0]
    table = Table(
        "Bytes carried from token to token, one sequence",
        ("carried", *(f"{n} tokens" for n in first.lengths)),
        (
            ("KV cache", *(Numbers((float(b),), ",.0f") for b in first.cache_bytes)),
            ("LSTM's h and c", *(Numbers((float(b),), ",.0f") for b in first.state_bytes)),
        ),
    )
    x = tuple(map(float, first.lengths))
    figure = Lines(
        "What is carried in generation",
        "tokens so far",
        "bytes",
        (
            Series("KV cache", x, tuple(map(float, first.cache_bytes))),
            Series("LSTM's h and c", x, tuple(map(float, first.state_bytes))),
        ),
        log_x=True,
        log_y=True,
    )
    off = Numbers(tuple(e.difference for e in measured), ".1e")
    cache = Numbers(  # one division of whole numbers, so that equal growth is 1 and not 1 - 1e-16
        tuple(e.cache_bytes[-1] * e.lengths[0] / (e.cache_bytes[0] * e.lengths[-1]) for e in measured), ".3g"
    )
    state = Numbers(tuple(e.state_bytes[-1] / e.state_bytes[0] for e in measured), ".3g")
    claims = (
        Claim(
            "This is all that has to be carried: logits go on as if all were read again",
            off,
            "at most",
            1e-3,
            "Rounding of float32 is about 1e-6; a token that is missing changes them by much more.",
        ),
        Claim(
            "The KV cache grows as fast as the text (its growth over the text's)",
            cache,
            "at least",
            1,
            "2 · n_layers · n_kv_heads · d_head numbers for every token, exactly.",
        ),
        Claim(
            "The LSTM's state does not grow (last over first)",
            state,
            "at most",
            1,
            "2 · n_layers · d_hidden numbers, whatever was read.",
        ),
    )
    said = (
        f"A transformer of {first.cache_parameters:,} parameters and an LSTM of {first.state_parameters:,}. "
        "What is kept is copied out, put into a fresh cache or state, and one more token is read."
    )
    return Finding(said, (table,), (figure,), claims)


EXPERIMENTS: tuple[Experiment[Any], ...] = (
    Experiment(
        "steps",
        "Steps that wait for each other",
        measure_steps,
        show_steps,
        seeds=(3, 5),
        skip=lambda s: _too_short(s, 3),
    ),
    Experiment("gradient", "How far back a gradient reaches", measure_reach, show_reach, seeds=(3, 5)),
    Experiment(
        "carried",
        "What generation carries along",
        measure_carried,
        show_carried,
        seeds=(2, 3),
        skip=lambda s: _too_short(s, 8),
    ),
)


def _too_short(subject: Subject | None, positions: int) -> str | None:
    short = subject and subject.model.config.n_ctx < positions
    return f"its context has fewer than {positions} positions" if short else None
