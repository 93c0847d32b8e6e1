"""What `tformer answer` shows: prose, tables, small plots, and each claim with its verdict."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from tformer.answer.claims import Claim
from tformer.figures import Bars, Heat, Lines, Numbers, Table
from tformer.show import terminal

if TYPE_CHECKING:  # they import torch
    from tformer.answer import Question
    from tformer.answer.experiments import Answer

LEVELS, ASCII_LEVELS = "▁▂▃▄▅▆▇█", ".:-=+*#%"
CURVE = 40  # characters of a curve


def question(asked: "Question", console: Console) -> None:
    """The question and its short answer."""
    terminal.markdown(f"# {asked.number}. {asked.title}\n\n{asked.short}\n", console)


def evidence(answer: "Answer", console: Console) -> None:
    """Every experiment: what was done, tables, plots, claims."""
    for result in answer.results:
        console.print()
        heading(result.title, console)
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
            draw(figure, console)
        if result.finding.claims:
            console.print()
        for claim in result.finding.claims:
            _claim(claim, console)
    claims = answer.claims
    held = sum(claim.passed for claim in claims)
    seconds = terminal.duration(sum(result.seconds for result in answer.results))
    console.print()
    said = f"{held} of {len(claims)} claims hold ({answer.budget.name}, seed {answer.seed}, {seconds})"
    console.print(Text(said, style="bold green" if held == len(claims) else "bold red"))


def heading(text: str, console: Console) -> None:
    """Of an experiment: a rule on a terminal, the words elsewhere."""
    if console.is_terminal:
        console.print(Rule(Text(text, style="bold"), align="left", style="dim"))
    else:
        console.print(Text(f"## {text}\n"))


def summary(answers: "Sequence[Answer]", console: Console) -> None:
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
        said = Grid.grid(padding=(0, 1, 0, 0))
        said.add_row(Text(mark, style=style), Text(claim.claim, style=style))
        console.print(said)
    else:
        console.print(Text(f"{mark} {claim.claim}", style=style))
    shown = Text(claim.verdict, style="dim")
    console.print(Padding(shown, (0, 0, 0, 2)) if console.is_terminal else Text("  ").append_text(shown))


def _table(table: Table, console: Console) -> None:
    right = [c for i, c in enumerate(table.columns) if all(isinstance(row[i], Numbers) for row in table.rows)]
    grid = terminal.table(console, *table.columns, title=table.title, right=right)
    for row in table.rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    console.print(grid)


def _lines(figure: Lines, console: Console) -> None:
    """A row for each curve: its heights as characters, all on one scale, first and last value beside it."""
    console.print(Text(figure.title, style="italic"))
    on_scale = [_scaled(s.y, figure.log_y) for s in figure.series]
    seen = [v for values in on_scale for v in values if math.isfinite(v)]
    if not seen:
        return
    low, high = min(seen), max(seen)
    levels = LEVELS if console.encoding.lower().startswith("utf") else ASCII_LEVELS
    width = max(len(s.name) for s in figure.series)
    for series, values in zip(figure.series, on_scale, strict=True):
        places = np.linspace(0, len(values) - 1, min(CURVE, max(len(values), 1))).round().astype(int)
        if figure.log_x and len(values) > CURVE:
            places = np.geomspace(1, len(values), CURVE).round().astype(int) - 1
        marks = "".join(_level(values[i], low, high, levels) for i in places)
        ends = f"{series.y[0]:.3g} → {series.y[-1]:.3g}"
        console.print(Text.assemble(f"  {series.name:<{width}}  ", (marks, "cyan"), f"  {ends}"))
    x = figure.series[0].x
    scale = ", log scale" if figure.log_y else ""
    label = f"  {'':<{width}}  {figure.x_label} {x[0]:g} → {x[-1]:g}; height: {figure.y_label}{scale}"
    console.print(Text(label, style="dim"))


def _scaled(values: Sequence[float], log: bool) -> list[float]:
    return [math.log(v) if log and v > 0 else (-math.inf if log else v) for v in values]


def _level(value: float, low: float, high: float, levels: str) -> str:
    if not math.isfinite(value):
        return " " if math.isnan(value) or value > 0 else levels[0]
    return levels[round((value - low) / ((high - low) or 1.0) * (len(levels) - 1))]


def _bars(figure: Bars, console: Console) -> None:
    console.print(Text(f"{figure.title} ({figure.y_label})", style="italic"))
    means = [number.mean for _, number in figure.bars]
    reference = figure.reference
    top = max([abs(m) for m in means if math.isfinite(m)] + ([abs(reference[1])] if reference else [])) or 1.0
    rows = [(name, number.mean, str(number)) for name, number in figure.bars]
    if reference:
        rows.append((reference[0], reference[1], f"{reference[1]:.3g}"))
    width = max(len(name) for name, _, _ in rows)
    numbers = max(len(text) for _, _, text in rows)
    for name, mean, text in rows:
        drawn = terminal.bar(abs(mean) / top) if math.isfinite(mean) else ""
        console.print(Text.assemble(f"  {name:<{width}}  {text:>{numbers}}  ", (drawn, "cyan")))


def _heat(figure: Heat, console: Console) -> None:
    console.print(Text(figure.title, style="italic"))
    maps = [(caption, np.array(matrix)) for caption, matrix in figure.matrices]
    terminal.heat_maps(maps, console)
    console.print(Text(f"rows: {figure.row_label}; columns: {figure.column_label}", style="dim"))


def draw(figure: Lines | Bars | Heat, console: Console) -> None:
    """A figure in characters."""
    if isinstance(figure, Lines):
        _lines(figure, console)
    elif isinstance(figure, Bars):
        _bars(figure, console)
    else:
        _heat(figure, console)
