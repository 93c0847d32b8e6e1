"""A row of the scorecard: what is claimed, and what an experiment found.

Every experiment is a module with a `ROW`, and takes a sample or the whole of its cases.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Case = TypeVar("Case")


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


class Clock:
    """The time that a row may take. Once it is over no further case begins, and `ran_out` says so."""

    def __init__(self) -> None:
        self.give(math.inf)

    def give(self, seconds: float) -> None:
        """From now on."""
        self.end, self.ran_out = time.monotonic() + seconds, False

    def has_time(self) -> bool:
        """Asked before a case."""
        self.ran_out = self.ran_out or time.monotonic() >= self.end
        return not self.ran_out

    def each(self, cases: Iterable[Case]) -> Iterator[Case]:
        """While there is time."""
        for case in cases:
            if not self.has_time():
                return
            yield case

    def mixed(self, cases: Iterable[Case]) -> Iterator[Case]:
        """The same, mixed always alike, so that those there is time for come from everywhere."""
        cases = list(cases)
        random.Random(17).shuffle(cases)
        return self.each(cases)


CLOCK = Clock()
