"""What the tasks of `tformer eval` share: what each is asked, what each returns, and where it is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tformer.errors import TformerError

if TYPE_CHECKING:
    from rich.console import Console

    from tformer.run.loaded import LoadedRun

FRESH = 2000  # sequences of the reversal task, where -n does not say


@dataclass(frozen=True)
class Request:
    """What every task gets: the run that is judged, and the options."""

    run: "LoadedRun"
    data: list[str]
    prompts: list[str]
    out: Path | None
    n: int | None  # None: as many as the task takes
    positions: int
    seed: int
    precision: str
    tokens: int | None = None
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
    also: dict[str, Any] = field(default_factory=dict)  # in `--json`, but too long to be kept


def keep(request: Request, task: str, outcome: Outcome) -> None:
    """Keep what was found in the run and show it on its page; a foreign directory is left as it is."""
    if not outcome.kept or request.run.record.is_empty:
        return
    from tformer.run.record import keep_evaluation
    from tformer.show import terminal
    from tformer.show.run_page import write_page

    try:
        keep_evaluation(request.run.folder, task, outcome.result, outcome.on)
        write_page(request.run.folder, request.run.model)
    except (OSError, TformerError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        terminal.warn(f"the result is not kept in {request.run.folder}: {why or error}")
