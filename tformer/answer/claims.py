"""What an experiment claims: sentences with a threshold that the measurement can refute, and experiments.

Plain data and its verdicts. Knows nothing of models, terminals or pages.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from tformer.figures import Figure, Numbers, Series, Table
from tformer.files import finite

E = TypeVar("E")
P = TypeVar("P")


@dataclass(frozen=True)
class Claim:
    """A sentence that the measurement can refute: it holds if every seed's value keeps to the threshold."""

    claim: str
    values: Numbers
    relation: Literal["at least", "at most"]
    threshold: float
    because: str  # why this threshold

    @property
    def measured(self) -> float:
        """The value that decides: the worst of all seeds; NaN if any is."""
        if any(map(math.isnan, self.values.values)):
            return math.nan
        return min(self.values.values) if self.relation == "at least" else max(self.values.values)

    @property
    def passed(self) -> bool:
        """Computed, never written in; NaN passes nothing."""
        if self.relation == "at least":
            return self.measured >= self.threshold
        return self.measured <= self.threshold

    @property
    def verdict(self) -> str:
        """The numbers behind ✓ or ✗, in words."""
        sign = "≥" if self.relation == "at least" else "≤"
        unit = f" {self.values.unit}" if self.values.unit else ""
        n = len(self.values.values)
        several = f"; {self.values} over {n} seeds" if n > 1 else ""
        measured = f"{self.measured:{self.values.style}}"
        return f"measured {measured}, required {sign} {self.threshold:.4g}{unit}{several}. {self.because}"

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it: the verdict and all that it was computed from."""
        return {
            "claim": self.claim,
            "passed": self.passed,
            "measured": finite(self.measured),
            "threshold": self.threshold,
            "relation": self.relation,
            "values": [finite(v) for v in self.values.values],
            "unit": self.values.unit,
            "because": self.because,
        }


def at_least(claim: str, values: Numbers, threshold: float, because: str) -> Claim:
    """A claim that holds if no seed's value is below the threshold."""
    return Claim(claim, values, "at least", threshold, because)


def at_most(claim: str, values: Numbers, threshold: float, because: str) -> Claim:
    """A claim that holds if no seed's value is above the threshold."""
    return Claim(claim, values, "at most", threshold, because)


@dataclass(frozen=True)
class Finding:
    """What the measurements of all seeds show together."""

    said: str = ""  # a sentence or two: what was done, and what else there is to say of it
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()

    @classmethod
    def of(cls, said: str, *shown: Table | Figure | Claim) -> "Finding":
        """What is said and what is shown, each kind in the order in which it is given."""
        tables = tuple(part for part in shown if isinstance(part, Table))
        claims = tuple(part for part in shown if isinstance(part, Claim))
        figures = tuple(part for part in shown if not isinstance(part, Table | Claim))
        return cls(said, tables, figures, claims)


@dataclass(frozen=True)
class Budget:
    """How much may be spent: seconds (`quick`) or minutes (`full`)."""

    name: Literal["quick", "full"] = "quick"

    def pick(self, *, quick: P, full: P) -> P:
        """The one of the two that is for this budget."""
        return quick if self.name == "quick" else full


QUICK, FULL = Budget("quick"), Budget("full")


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

    `measure(budget, seed, subject)` returns a plain dataclass of numbers; `subject` is the run of
    `--run`, None without one. `show` is a pure function of what was measured: the verdicts are its.
    """

    slug: str
    title: str
    measure: Callable[[Budget, int, Any], E]
    show: Callable[[Seeds[E]], Finding]
    quick_seeds: int = 3  # are enough for the claims
    full_seeds: int = 5
    skip: Callable[[Any], str | None] = lambda subject: None  # why it cannot be done on this subject

    def seeds(self, budget: Budget) -> int:
        """How many seeds are measured with this budget."""
        return budget.pick(quick=self.quick_seeds, full=self.full_seeds)


def largest(values: Iterable[float]) -> float:
    """NaN if any is, which `max` may pass over."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)


def smallest(values: Iterable[float]) -> float:
    """NaN if any is, which `min` may pass over."""
    return -largest(-value for value in values)


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
