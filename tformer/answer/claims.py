"""What an experiment claims, each a sentence that the measurement can refute, and what it shows beside.

Plain data and its verdicts. Knows nothing of models, terminals or pages.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tformer.figures import Figure, Numbers, Table
from tformer.files import finite


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


def largest(values: Iterable[float]) -> float:
    """NaN if any is, which `max` may pass over."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found)


def smallest(values: Iterable[float]) -> float:
    """NaN if any is, which `min` may pass over."""
    return -largest(-value for value in values)
