"""What `tformer answer` shows: prose, tables, figures, and each claim with its verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tformer.answer.claims import Claim
from tformer.figures import Table
from tformer.show import terminal
from tformer.show.charts import draw_figure
from tformer.show.words import duration

if TYPE_CHECKING:  # they import torch
    from tformer.answer import Question
    from tformer.answer.investigate import Answer


def show_question(asked: "Question", console: Console) -> None:
    """The question and its short answer."""
    terminal.markdown(f"# {asked.number}. {asked.title}\n\n{asked.short}\n", console)


def show_evidence(answer: "Answer", console: Console) -> None:
    """Every experiment: what was done, tables, plots, claims."""
    for result in answer.results:
        console.print()
        terminal.heading(result.title, console)
        if result.skipped:
            console.print(Text(f"left out: {result.skipped}", style="yellow"))
            continue
        if result.finding.said:
            console.print(Text(result.finding.said))
        for table in result.finding.tables:
            console.print()
            _table(table, console)
        for figure in result.finding.figures:
            console.print()
            draw_figure(figure, console)
        if result.finding.claims:
            console.print()
        for claim in result.finding.claims:
            _claim(claim, console)
    claims = answer.claims
    held = sum(claim.passed for claim in claims)
    seconds = duration(sum(result.seconds for result in answer.results))
    console.print()
    verdict = f"{held} of {len(claims)} claims hold ({answer.effort.name}, seed {answer.seed}, {seconds})"
    console.print(Text(verdict, style="bold green" if held == len(claims) else "bold red"))


def show_summary(answers: "Sequence[Answer]", console: Console) -> None:
    """One line for each question."""
    rows = [
        (a.question.number, a.question.slug, f"{sum(c.passed for c in a.claims)} of {len(a.claims)}")
        for a in answers
    ]
    console.print()
    terminal.list_table("Claims that hold", ("", "question", "claims"), rows, console)


def _claim(claim: Claim, console: Console) -> None:
    style = "green" if claim.passed else "bold red"
    mark = "✓" if claim.passed else "✗"
    if console.is_terminal:  # a second line stands under the first
        beside = Grid.grid(padding=(0, 1, 0, 0))
        beside.add_row(Text(mark, style=style), Text(claim.claim, style=style))
        console.print(beside)
    else:
        console.print(Text(f"{mark} {claim.claim}", style=style))
    shown = Text(claim.verdict, style="dim")
    console.print(Padding(shown, (0, 0, 0, 2)) if console.is_terminal else Text("  ").append_text(shown))


def _table(table: Table, console: Console) -> None:
    right = [column for column, numeric in zip(table.columns, table.numeric, strict=True) if numeric]
    grid = terminal.table(console, *table.columns, title=table.title, right=right)
    for row in table.rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    console.print(grid)
