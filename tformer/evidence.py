"""What an experiment finds: numbers with their spread, tables, figures, claims with their verdict.

Plain data. Knows nothing of models, terminals or pages.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond the last, the normal one.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
)  # fmt: skip
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class Numbers:
    """One quantity, measured once for each seed. `style` is a format of Python's, `unit` follows it."""

    values: tuple[float, ...]
    style: str = ".3g"
    unit: str = ""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean, by Student's t; 0 for a single seed."""
        n = len(self.values)
        if n < 2 or not all(map(math.isfinite, self.values)):
            return 0.0
        quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
        return quantile * statistics.stdev(self.values) / math.sqrt(n)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the mean; of two seeds, for which that is next to no knowledge, the two values."""
        if len(self.values) == 2:
            return min(self.values), max(self.values)
        return self.mean - self.half_width, self.mean + self.half_width

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if len(self.values) == 2:
            ends = dict.fromkeys(f"{value:{self.style}}" for value in sorted(self.values))
            return f"{' to '.join(ends)}{unit}"
        spread = f" ± {self.half_width:{_short(self.style)}}" if len(self.values) > 1 else ""
        return f"{self.mean:{self.style}}{spread}{unit}"


def _short(style: str) -> str:
    """An interval needs no more than two significant digits; fixed decimals stay."""
    return ".2g" if style.endswith("g") else style


Cell = str | Numbers


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names its row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Series:
    """A curve, and where there are several seeds the lowest and the highest of them."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Curves over one axis."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Bars:
    """A number for each of several names; `reference` is a line to compare with, as (label, value)."""

    title: str
    y_label: str
    bars: tuple[tuple[str, Numbers], ...]
    reference: tuple[str, float] | None = None


@dataclass(frozen=True)
class Heat:
    """Matrices of values from 0 to 1, each under its caption; rows and columns are what the labels say."""

    title: str
    row_label: str
    column_label: str
    matrices: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...]


Figure = Lines | Bars | Heat


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
        """As JSON has it."""
        return {
            "claim": self.claim, "passed": self.passed, "measured": finite(self.measured),
            "threshold": self.threshold, "relation": self.relation,
            "values": [finite(v) for v in self.values.values], "unit": self.values.unit,
            "because": self.because,
        }  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What the measurements of all seeds show together."""

    said: str = ""  # a sentence or two: what was done, and what else there is to say of it
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How much may be spent: seconds (`quick`) or minutes (`full`)."""

    name: Literal["quick", "full"] = "quick"

    def pick(self, quick: Any, full: Any) -> Any:
        """The one of the two that is for this budget."""
        return quick if self.name == "quick" else full


QUICK, FULL = Budget("quick"), Budget("full")
E = TypeVar("E")


@dataclass(frozen=True)
class Experiment(Generic[E]):
    """A measurement for one seed, and what the measurements of several seeds show.

    `measure(budget, seed, subject)` returns a plain dataclass of numbers; `subject` is the run of
    `--run`, None without one. `show` is a pure function of what was measured: the verdicts are its.
    """

    slug: str
    title: str
    measure: Callable[[Budget, int, Any], E]
    show: Callable[[Sequence[E]], Finding]
    seeds: tuple[int, int] = (3, 5)  # how many, quick and full
    skip: Callable[[Any], str | None] = lambda subject: None  # why it cannot be done on this subject


def largest(values: Iterable[float]) -> float:
    """NaN if any is, which `max` may pass over."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)


def finite(value: float) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None


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
