"""What can be shown: numbers with their spread, tables, curves, bars, heat maps.

Plain data, for a terminal, a page and JSON alike. Knows nothing of models, terminals or pages.
"""

import math
import statistics
from dataclasses import dataclass

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
