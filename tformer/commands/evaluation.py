"""What the tasks of `tformer eval` share: what each is asked, and what each returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from tformer.model import Transformer

FRESH = 2000  # sequences of the reversal task, where -n does not say


@dataclass(frozen=True)
class Request:
    """What every task gets: the run that is judged, and the options."""

    folder: Path
    record: dict[str, Any]
    model: "Transformer"
    data: list[str]
    prompts: list[str]
    out: Path | None
    n: int | None  # None: as many as the task takes
    positions: int
    seed: int
    precision: str
    temperatures: list[float] = field(default_factory=list)
    max_tokens: int = 200
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task found: as `--json` has it, how it is shown, and whether the check passed."""

    result: dict[str, Any]
    show: "Callable[[Console], object]"
    passed: bool = True
    on: str = ""  # what it was measured on, in words
    kept: bool = True  # in the run's evals.jsonl and report.html
