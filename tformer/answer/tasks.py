"""The toy tasks that the experiments train on, and the streams that they draw from.

Each asks one thing of a model: order, memory, facts, looking back. A batch is a pure function of (seed,
step), as everywhere in tformer. Knows nothing of models.
"""

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from tformer.text.data import Batches, rng


@unique
class Stream(IntEnum):
    """What a random stream is for, as in `text/data.py`, whose own are below 100.

    A task draws what is judged from another stream than what is learned.
    """

    SUBJECT = 100  # ids for a run that has nothing to read
    PREVIOUS, PREVIOUS_FRESH = 101, 102
    NOISE = 103
    RECALL, RECALL_FRESH = 104, 105
    FACTS, FACTS_ORDER = 110, 111
    REPEATS, REPEATS_FRESH = 120, 121
    PLACES, PLACES_FRESH = 122, 123


class Task(Batches, Protocol):
    """Batches to learn from and fresh ones to be judged by, as `data.Reversal` has them."""

    def fresh(self, n: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`n` inputs and targets that no step draws from."""


class ToyTask:
    """A `Task` whose sequences are drawn by `_draw`, for training and for judging from a stream each."""

    learned: ClassVar[Stream]
    judged: ClassVar[Stream]
    seed: int

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step, each (batch_size, position)."""
        return self._draw(batch_size, self.learned, step)

    def fresh(self, n: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`n` inputs and targets that no step draws from, each (n, position)."""
        return self._draw(n, self.judged, index)

    def _draw(self, n: int, stream: Stream, index: int) -> tuple[np.ndarray, np.ndarray]:
        """`n` inputs and targets, a pure function of (seed, stream, index)."""
        raise AssertionError("each task draws its own")


# ---------------------------------------------------------------------------- order and memory


@dataclass(frozen=True)
class Previous(ToyTask):
    """`n` different symbols in random order; the target is the token before (at the start, the first).

    Whoever knows the tokens up to t but not their order finds the one before t by guessing among t.
    """

    learned, judged = Stream.PREVIOUS, Stream.PREVIOUS_FRESH
    n: int
    seed: int = 0

    @property
    def guessing(self) -> float:
        """The best accuracy that is possible without order: the mean of 1, 1, 1/2, … 1/(n - 1)."""
        return (1 + sum(1 / t for t in range(1, self.n))) / self.n

    def _draw(self, n: int, stream: Stream, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids = rng(self.seed, stream, index).permuted(np.tile(np.arange(self.n), (n, 1)), axis=1)
        return ids, np.concatenate((ids[:, :1], ids[:, :-1]), axis=1)


@dataclass(frozen=True)
class Recall(ToyTask):
    """Random symbols and a mark. The target is the token itself, and at the mark the first symbol.

    Only the last target needs memory, over `distance` tokens.
    """

    learned, judged = Stream.RECALL, Stream.RECALL_FRESH
    distance: int
    symbols: int = 8
    seed: int = 0

    @property
    def n_ctx(self) -> int:
        """Inputs of a sequence: `distance` symbols and the mark."""
        return self.distance + 1

    def _draw(self, n: int, stream: Stream, index: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng(self.seed, stream, index).integers(self.symbols, size=(n, self.n_ctx))
        targets = inputs.copy()
        inputs[:, -1], targets[:, -1] = self.symbols, inputs[:, 0]
        return inputs, targets


@dataclass(frozen=True)
class Noise:
    """Random symbols, to be learned by nobody: only the time that they take is of interest."""

    length: int
    symbols: int

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step, each (batch_size, length)."""
        ids = rng(0, Stream.NOISE, step).integers(self.symbols, size=(batch_size, self.length + 1))
        return ids[:, :-1], ids[:, 1:]


# ---------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class Facts:
    """A random table: each of `n` keys, a token, has a value of its own draw among the same n tokens.

    Nothing but memory helps: no key tells anything of another. What is learned is what is judged.
    """

    n: int
    seed: int = 0
    n_ctx = 1

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Every key and its value, each (n, 1)."""
        values = rng(self.seed, Stream.FACTS, 0).integers(self.n, size=self.n)
        return np.arange(self.n)[:, None], values[:, None]

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys of a step, none twice, and their values, each (batch_size, 1)."""
        some = rng(self.seed, Stream.FACTS_ORDER, step).permutation(self.n)[:batch_size]
        keys, values = self.all()
        return keys[some], values[some]


# ---------------------------------------------------------------------------- looking back


@dataclass(frozen=True)
class Repeats(ToyTask):
    """A few different random symbols, over and over; how many is drawn for each sequence.

    From the second time on the next token is known: it is what followed the last time. Since the period
    varies, no fixed distance leads there.
    """

    learned, judged = Stream.REPEATS, Stream.REPEATS_FRESH
    symbols: int
    n_ctx: int
    periods: tuple[int, int]  # the shortest and the longest
    seed: int = 0

    def sequences(self, n: int, stream: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """`n` sequences of n_ctx + 1 tokens, and the period of each, (n, 1)."""
        random = rng(self.seed, stream, index)
        order = random.permuted(np.tile(np.arange(self.symbols), (n, 1)), axis=1)
        period = random.integers(self.periods[0], self.periods[1] + 1, size=(n, 1))
        return np.take_along_axis(order, np.arange(self.n_ctx + 1) % period, axis=1), period

    def fresh_and_known(self, n: int, index: int = 0) -> tuple[Tensor, Tensor]:
        """Sequences that no step draws, (n, n_ctx + 1), and which targets are known, (n, n_ctx)."""
        sequences, period = self.sequences(n, self.judged, index)
        known = np.arange(1, self.n_ctx + 1) > period  # the input before has been seen with its successor
        return torch.from_numpy(sequences), torch.from_numpy(known)

    def _draw(self, n: int, stream: Stream, index: int) -> tuple[np.ndarray, np.ndarray]:
        sequences, _ = self.sequences(n, stream, index)
        return sequences[:, :-1], sequences[:, 1:]


@dataclass(frozen=True)
class Places(ToyTask):
    """Random symbols; the target is the tuple of those that stood `distances` before, as one number.

    Before the first position the first symbol is repeated.
    """

    learned, judged = Stream.PLACES, Stream.PLACES_FRESH
    symbols: int
    n_ctx: int
    distances: tuple[int, ...]
    seed: int = 0

    @property
    def outcomes(self) -> int:
        """How many tuples there are: the vocabulary."""
        return int(self.symbols ** len(self.distances))

    def _draw(self, n: int, stream: Stream, index: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = rng(self.seed, stream, index).integers(self.symbols, size=(n, self.n_ctx))
        targets = np.zeros_like(inputs)
        for distance in self.distances:
            places = (np.arange(self.n_ctx) - distance).clip(0)
            targets = targets * self.symbols + inputs[:, places]
        return inputs, targets


# ---------------------------------------------------------------------------- a mistake


@dataclass(frozen=True)
class Unshifted:
    """Batches whose targets are their inputs: the shift by one was forgotten."""

    task: Batches

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The inputs of a step, twice."""
        inputs, _ = self.task.batch(step, batch_size)
        return inputs, inputs
