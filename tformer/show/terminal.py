"""The two consoles, and what every command says on them: lines, warnings, tables, headings.

Results go to stdout, everything said to a person goes to stderr; a stream that is no terminal gets
plain lines.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tformer.errors import harmless
from tformer.show.words import bar

BAR = 20  # characters of a whole one
WIDEST = 1000  # characters of a line where no terminal breaks it


class _Pipe(Console):
    """A stream that is no terminal: lines as long as they are, none with blanks at its end."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich prints, the padding of tables left out."""
        if "end" in options:  # not a whole line
            return super().print(*objects, **options)
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))
        self.file.flush()
        return None


class _Terminal(Console):
    """A terminal, on which no text does anything: what comes of names and files may be anyone's."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Rich renders; what moves the cursor or colours is beside the text, and stays."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def _console(stderr: bool) -> Console:
    console = _Terminal(stderr=stderr, highlight=False)
    if console.is_terminal:
        return console
    width = None if "COLUMNS" in os.environ else WIDEST
    return _Pipe(stderr=stderr, highlight=False, soft_wrap=True, width=width)


def out() -> Console:
    """The console of results."""
    return _console(stderr=False)


def err() -> Console:
    """The console of everything said to a person."""
    return _console(stderr=True)


def say(message: str) -> None:
    """A line for a person."""
    err().print(Text(harmless(message)))


def warn(message: str) -> None:
    """A line that a person should not miss."""
    err().print(Text(harmless(f"warning: {message}"), style="yellow"))


@dataclass(frozen=True)
class Bar:
    """A bar in a table, in the column without a name: shorter where a terminal is narrow."""

    fraction: float
    style: str = ""

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, BAR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(bar(self.fraction, min(BAR, options.max_width)), style=self.style)


def table(console: Console, *columns: str, title: str = "", right: Sequence[str] = ()) -> Table:
    """A table: framed on a terminal, plain columns elsewhere.

    A last column without a name is one of bars: on a narrow terminal they are shorter, nothing else is cut.
    """
    grid = Table(
        title=title or None,
        box=box.ROUNDED if console.is_terminal else None,
        title_justify="left",
        pad_edge=console.is_terminal,
    )
    for column in columns:
        whole = columns[-1] == "" and column != ""
        grid.add_column(column, justify="right" if column in right else "left", no_wrap=whole)
    return grid


def fact_table(console: Console, facts: dict[str, str], title: str = "") -> None:
    """Names and values, a line each."""
    grid = Table(title=title or None, box=None, show_header=False, title_justify="left", pad_edge=False)
    for name, value in facts.items():
        grid.add_row(Text(harmless(name), style="dim"), Text(harmless(value)))
    console.print(grid)


def token_table(rows: Sequence[tuple[int, str]], console: Console) -> None:
    """Tokens with their ids."""
    grid = table(console, "id", "token", right=("id",))
    for i, text in rows:
        grid.add_row(str(i), Text(text))
    console.print(grid)


def markdown(text: str, console: Console) -> None:
    """Prose; rendered on a terminal, as it is written elsewhere."""
    from rich.markdown import Markdown  # a tenth of a second, for `answer` alone

    console.print(Markdown(text) if console.is_terminal else Text(text))


def list_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console) -> None:
    """Any rows under any columns."""
    grid = table(console, *columns, title=title)
    for row in rows:
        grid.add_row(*(Text(harmless(str(cell))) for cell in row))
    console.print(grid)


def heading(text: str, console: Console) -> None:
    """What follows, named: a rule on a terminal, the words elsewhere."""
    if console.is_terminal:
        console.print(Rule(Text(text, style="bold"), align="left", style="dim"))
    else:
        console.print(Text(f"## {text}\n"))


def natural_width(grid: Table, console: Console) -> int:
    """The characters that a table is wide where nothing is broken or cut."""
    return Measurement.get(console, console.options.update(max_width=WIDEST), grid).maximum


def has_unicode(console: Console) -> bool:
    """Whether its stream can take any character."""
    return console.encoding.lower().startswith("utf")


def has_colours(console: Console) -> bool:
    """Whether colours are seen on it."""
    return console.color_system is not None and not console.no_color
