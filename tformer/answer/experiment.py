"""An experiment: a measurement for each of several seeds, and what they show together.

Knows nothing of models, terminals or pages.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from tformer.answer.claims import Finding
from tformer.figures import Numbers, Series

E = TypeVar("E")
P = TypeVar("P")


@dataclass(frozen=True)
class Effort:
    """How much an experiment may take: seconds (`quick`) or minutes (`full`)."""

    name: Literal["quick", "full"] = "quick"

    def pick(self, *, quick: P, full: P) -> P:
        """The one of the two that is for this effort."""
        return quick if self.name == "quick" else full


QUICK, FULL = Effort("quick"), Effort("full")


class Seeds(tuple[E, ...]):
    """The evidence of an experiment, one for each seed, read by quantity rather than by seed."""

    @property
    def first(self) -> E:
        """The evidence of the first seed: for what is the same for all, and for pictures of one model."""
        return self[0]

    def of(self, quantity: Callable[[E], float], style: str = ".3g", unit: str = "") -> Numbers:
        """One quantity of every seed, as numbers that print in this style and unit."""
        return Numbers(tuple(float(quantity(evidence)) for evidence in self), style, unit)

    def curve(
        self, name: str, x: Sequence[float], y: Callable[[E], Sequence[float]], most: int = 200
    ) -> Series:
        """One curve of every seed: their mean, the lowest and the highest; thinned to `most` points."""
        return over_seeds(name, x, [y(evidence) for evidence in self], most)

    def log_curve(self, name: str, x: Sequence[float], y: Callable[[E], Sequence[float]]) -> Series:
        """One curve of every seed, for an axis in logarithms: their geometric mean, lowest and highest.

        Where a value has no logarithm, the plain mean alone.
        """
        if not all(value > 0 for evidence in self for value in y(evidence)):
            return replace(self.curve(name, x, y), low=(), high=())
        logs = self.curve(name, x, lambda evidence: [math.log(value) for value in y(evidence)])
        middle, low, high = (tuple(map(math.exp, values)) for values in (logs.y, logs.low, logs.high))
        return replace(logs, y=middle, low=low, high=high)


@dataclass(frozen=True)
class Experiment(Generic[E]):
    """A measurement for one seed, and what the measurements of several seeds show.

    `measure(effort, seed, subject)` returns a plain dataclass of numbers; `subject` is the run of
    `--run`, None without one. `show` is a pure function of what was measured: the verdicts are its.
    """

    slug: str
    title: str
    measure: Callable[[Effort, int, Any], E]
    show: Callable[[Seeds[E]], Finding]
    quick_seeds: int = 3  # are enough for the claims
    full_seeds: int = 5
    skip: Callable[[Any], str | None] = lambda subject: None  # why it cannot be done on this subject

    def seeds(self, effort: Effort) -> int:
        """How many seeds are measured with this effort."""
        return effort.pick(quick=self.quick_seeds, full=self.full_seeds)


def over_seeds(name: str, x: Sequence[float], curves: Sequence[Sequence[float]], most: int = 200) -> Series:
    """The mean of one curve for each seed, with the lowest and the highest; thinned to `most` points.

    An interval of the mean could leave the values that are possible: accuracies above 1, norms below 0.
    """
    step = max(1, -(-len(x) // most))
    columns = list(zip(*curves, strict=True))[::step]
    middle = tuple(statistics.fmean(c) for c in columns)
    if len(curves) < 2:
        return Series(name, tuple(x)[::step], middle)
    return Series(name, tuple(x)[::step], middle, tuple(map(min, columns)), tuple(map(max, columns)))
