"""A row of the scorecard: what is claimed, and what an experiment found.

Every experiment is a module with a `ROW`, and takes a sample or the whole of its cases.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """What an experiment found: its figures in words, and every case that is not as claimed."""

    found: str = ""
    failures: list[str] = field(default_factory=list)
    skipped: str = ""  # why it cannot be done here


@dataclass(frozen=True)
class Row:
    """`measure(folder, whole)` works in a new, empty folder; a sample of its cases takes seconds."""

    name: str
    figure: str  # what is measured
    target: str
    measure: Callable[[Path, bool], Outcome]
