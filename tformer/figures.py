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
        """Half of the 95 % interval of the mean over seeds, by Student's t with a degree of freedom less.

        From 17 seeds on the normal quantile stands for Student's. 0 where nothing can be said of the
        spread: of a single seed, or where a value is infinite or no number.
        """
        n = len(self.values)
        if n < 2 or not all(map(math.isfinite, self.values)):
            return 0.0
        quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
        return quantile * statistics.stdev(self.values) / math.sqrt(n)

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of that interval; of two seeds, where it says next to nothing, both values."""
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

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column has numbers and nothing else: such a one is set to the right."""
        return tuple(all(isinstance(row[i], Numbers) for row in self.rows) for i in range(len(self.columns)))


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
