"""The scorecard: every experiment on what a run survives, and a table of what was found.

    python -m tests.faults.scorecard                    all of it
    python -m tests.faults.scorecard --quick            a sample of each
    python -m tests.faults.scorecard --rows chained,flips --out table.md
    python -m tests.faults.scorecard --minutes 10       of each as much as there is time for

It exits with 1 where anything is not as claimed. Rows are named by what they begin with.
"""

import argparse
import datetime
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import jaxtyping
import torch

from tests.faults import (
    beside,
    broken,
    catalogue,
    chained,
    every_change,
    flipped,
    mutated,
    piped,
    power,
    refused,
    resumed,
)
from tests.faults.row import CLOCK, Outcome, Row

ROWS: tuple[Row, ...] = (
    chained.ROW,
    every_change.ROW,
    power.ROW,
    refused.ROW,
    resumed.ROW,
    beside.ROW,
    mutated.ROW,
    flipped.ROW,
    catalogue.ROW,
    piped.ROW,
    broken.ROW,
)
HEAD = "| figure | target | found | |\n|---|---|---|---|"


def measured(row: Row, whole: bool, minutes: float = math.inf) -> tuple[Outcome, float]:
    """What a row found, in so many minutes at most and a case; and in how many seconds."""
    began = time.monotonic()
    CLOCK.give(minutes * 60)
    with TemporaryDirectory(prefix="tformer-faults-") as folder:
        outcome = row.measure(Path(folder), whole)
    if CLOCK.ran_out:
        outcome.found += f"; broken off after {minutes:g} minutes"
    CLOCK.give(math.inf)
    return outcome, time.monotonic() - began


def line(row: Row, outcome: Outcome) -> str:
    """A line of the table."""
    verdict = "passed" if not outcome.failures else f"**{len(outcome.failures)} failed**"
    found = outcome.found
    if outcome.skipped:
        verdict, found = "skipped", outcome.skipped
    return f"| {row.figure} | {row.target} | {found} | {verdict} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, print the table, and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.scorecard", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a sample of each row: a minute or two")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of each row, at most")
    parser.add_argument("--rows", default="", help="names of rows, separated by commas")
    parser.add_argument("--out", type=Path, help="write the table to this file as well")
    options = parser.parse_args(arguments)
    wanted = [name.strip() for name in options.rows.split(",") if name.strip()]
    rows = [row for row in ROWS if not wanted or any(row.name.startswith(name) for name in wanted)]
    if not rows:
        parser.error(f"no such row; there are: {', '.join(row.name for row in ROWS)}")
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)  # as it is for users; the tests check shapes
    lines, failed = [HEAD], False
    for row in rows:
        print(f"{row.name} …", file=sys.stderr, flush=True)
        outcome, seconds = measured(row, not options.quick, options.minutes)
        lines.append(line(row, outcome))
        failed = failed or bool(outcome.failures)
        print(f"  {outcome.skipped or outcome.found}, {seconds:.0f} s", file=sys.stderr)
        for failure in outcome.failures[:20]:
            print(f"  FAILED {failure}", file=sys.stderr, flush=True)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    today = datetime.datetime.now(datetime.UTC).date()
    lines.append(f"\n{platform.system()}, {versions}, one thread; {today}")
    table = "\n".join(lines)
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
