"""What `tformer eval reversal` shows: accuracy by position, and the verdict on the mask."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tformer.show import terminal
from tformer.show.words import percent

if TYPE_CHECKING:  # it imports torch
    from tformer.evals.reversal import ReversalResult


def reversal_table(result: "ReversalResult", console: Console) -> None:
    """Accuracy by position, then the verdict."""
    grid = terminal.table(
        console,
        "position",
        "half",
        "expected",
        "accuracy",
        "",
        title="Reversal: accuracy of each target",
        right=("position", "expected", "accuracy"),
    )
    low, high = result.position_interval
    for row in result.positions:
        expected = "100 %" if row.half == "second" else f"{percent(row.expected)} ({_range(low, high)})"
        style = "green" if result.as_expected(row) else "red"
        grid.add_row(
            str(row.position),
            row.half,
            expected,
            Text(percent(row.accuracy), style=style),
            terminal.Bar(row.accuracy, style),
        )
    console.print(grid)
    low, high = result.interval
    verdict = "passed" if result.passed else "FAILED"
    meaning = (
        "no leak: the second half is solved, the first is at chance"
        if result.passed
        else _what_went_wrong(result)
    )
    console.print(
        Text(
            f"first half {percent(result.first_half)}, chance is {percent(result.chance)} "
            f"({_range(low, high)} in {100 * result.confidence:g} % of cases); "
            f"second half {percent(result.second_half)}"
        )
    )
    console.print(Text(f"{verdict}: {meaning}", style="bold green" if result.passed else "bold red"))


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _what_went_wrong(result: "ReversalResult") -> str:
    if result.first_half > result.interval[1]:
        return "the first half is predicted better than chance, so the model sees its targets"
    if result.first_half < result.interval[0]:
        return "the first half is predicted worse than chance, which guessing cannot be"
    return "the second half is not learned yet (train.steps), so nothing is proven"
