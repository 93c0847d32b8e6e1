"""What `tformer eval loss` shows: curves, comparisons, and a text in the colours of its surprise."""

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tformer.evals.tokens import BEFORE, LEVELS, Surprise, Token, level
from tformer.figures import Lines
from tformer.show import terminal
from tformer.show.svg import PALETTE

if TYPE_CHECKING:
    from tformer.evals.loss import LossResult

PLOT_ROWS, PLOT_COLUMNS = 12, 110
BRAILLE = 0x2800
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a cell: 4 down, 2 across


def loss_table(facts: dict[str, str], result: "LossResult", figure: Lines, console: Console) -> None:
    """The loss of a model on a text, and how it falls along the window: a curve, in a pipe a table."""
    terminal.fact_table(console, facts)
    if console.is_terminal and len(result.by_position) > 1:
        console.print()
        curves(figure, console)
    else:
        _positions(result, console)


def _positions(result: "LossResult", console: Console) -> None:
    from tformer.evals.loss import octaves

    title = "Loss by position in the window"
    grid = terminal.table(console, "position", "loss", "", title=title, right=("loss",))
    spans = octaves(result.by_position)
    most = max(mean for _, _, mean in spans) or 1.0
    for first, last, mean in spans:
        label = str(first) if first == last else f"{first}–{last}"
        grid.add_row(label, f"{mean:.4f}", terminal.bar(mean / most))
    console.print(grid)


# ---------------------------------------------------------------------------- curves


def curves(figure: Lines, console: Console) -> None:
    """Curves over a logarithmic axis: fine dots where they and colours can be shown, else characters.

    Several positions that fall on one dot are averaged; dots between two positions are interpolated.
    """
    console.print(Text(figure.title, style="italic"))
    coloured = console.color_system is not None and not console.no_color
    fine = _has_unicode(console) and (coloured or len(figure.series) == 1)
    values = [v for s in figure.series for v in s.y if np.isfinite(v)]
    last = max(s.x[-1] for s in figure.series)
    if not values or last < 2:
        return
    low, high = min(values), max(values)
    labels = {row: f"{high - (high - low) * row / (PLOT_ROWS - 1):.2f}" for row in (0, 4, 7, PLOT_ROWS - 1)}
    margin = max(map(len, labels.values())) + 1
    width = min(console.width, PLOT_COLUMNS) - margin - 2
    across, down = (2 * width, 4 * PLOT_ROWS) if fine else (width, PLOT_ROWS)
    grid = np.full((PLOT_ROWS, width), "", dtype=object)  # the character of each cell
    owner = np.zeros((PLOT_ROWS, width), dtype=int)  # and the curve that it shows
    codes = np.zeros((PLOT_ROWS, width), dtype=int)
    for number, series in enumerate(figure.series):
        for column, (top, bottom) in enumerate(_strokes(series.x, series.y, last, low, high, across, down)):
            for row in range(top, bottom + 1):
                cell = (row // 4, column // 2) if fine else (row, column)
                owner[cell] = number
                if fine:
                    codes[cell] |= DOTS[row % 4, column % 2]
                    grid[cell] = chr(BRAILLE + codes[cell])
                else:
                    grid[cell] = _mark(number, figure)
    corner, side, floor = ("└", "│", "─") if _has_unicode(console) else ("+", "|", "-")
    for row in range(PLOT_ROWS):
        line = Text().append(f"{labels.get(row, ''):>{margin - 1}} {side}", style="dim")
        for column in range(width):
            line.append(grid[row, column] or " ", style=_colour(owner[row, column]))
        line.rstrip()
        console.print(line)
    console.print(Text(f"{'':{margin}}{corner}{floor * width}", style="dim"))
    console.print(Text(" " * (margin + 1) + _ticks(last, width), style="dim"))
    console.print(
        Text(f"{'':{margin + 1}}{figure.x_label}, log scale; height: {figure.y_label}", style="dim")
    )
    for number, series in enumerate(figure.series):
        mark = ("━━" if _has_unicode(console) else "--") if fine else _mark(number, figure)
        ends = f"{series.y[0]:.4f} at {series.x[0]:g}, {series.y[-1]:.4f} at {series.x[-1]:g}"
        console.print(Text.assemble(" " * (margin + 1), (mark, _colour(number)), f" {series.name}: {ends}"))


def _has_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _mark(number: int, figure: Lines) -> str:
    return "*" if len(figure.series) == 1 else chr(ord("a") + number % 26)


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _strokes(
    x: Sequence[float], y: Sequence[float], last: float, low: float, high: float, across: int, down: int
) -> list[tuple[int, int]]:
    """For each column the first and last row of dots of a curve, so that it has no gaps."""
    column = np.round(np.log2(x) / np.log2(last) * (across - 1)).astype(int)
    seen = np.isfinite(y)
    count = np.bincount(column[seen], minlength=across)
    total = np.bincount(column[seen], weights=np.array(y)[seen], minlength=across)
    known = np.flatnonzero(count)
    if not known.size:
        return []
    reach = np.arange(column.max() + 1)
    height = np.interp(reach, known, total[known] / count[known])
    rows = np.round((high - height) / ((high - low) or 1.0) * (down - 1)).astype(int)
    strokes = [(int(rows[0]), int(rows[0]))]
    for before, here in itertools.pairwise(rows):  # from next to where the last one was
        start = int(before) + int(np.sign(here - before))
        strokes.append((min(start, int(here)), max(start, int(here))))
    return strokes


def _ticks(last: float, width: int) -> str:
    """1 2 4 8 … and the last position, as far as they have room."""
    line = [" "] * width

    def put(value: int) -> None:
        text = f"{value:,}"
        at = min(round(np.log2(value) / np.log2(last) * (width - 1)), width - len(text))
        if all(c == " " for c in line[max(0, at - 1) : at + len(text) + 1]):
            line[at : at + len(text)] = text

    for value in (1, int(last), *(1 << i for i in range(1, int(last).bit_length()))):
        put(value)
    return "".join(line).rstrip()


# ---------------------------------------------------------------------------- comparison

NARROW = {
    "parameters": "para-\nmeters",
    "tokens seen": "tokens\nseen",
    "cross-entropy": "cross-\nentropy",
    "perplexity": "perplex-\nity",
    "bits per byte": "bits per\nbyte",
    "difference to best": "to best",
}


def comparison(
    facts: dict[str, str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    figure: Lines,
    console: Console,
) -> None:
    """Runs under each other, what to mind when comparing them, and on a terminal their curves.

    On a terminal too narrow for that, a standard error stands below its number. A pipe gets every row as
    one line.
    """
    terminal.fact_table(console, facts)
    grid = _compared(columns, rows, console, narrow=False)
    if console.is_terminal and _natural_width(grid, console) > console.width:
        grid = _compared(columns, rows, console, narrow=True)
    console.print(grid)
    for note in notes:
        console.print(Text(note, style="dim"))
    if console.is_terminal:
        console.print()
        curves(figure, console)


def _compared(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console, narrow: bool) -> Table:
    grid = terminal.table(console)
    if narrow:
        grid.box, grid.show_edge, grid.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for i, name in enumerate(columns):
        head = NARROW.get(name, name) if narrow else name
        grid.add_column(
            head, justify="right" if i else "left", no_wrap=i > 0, overflow="ellipsis" if i else "fold"
        )
    for row in rows:
        grid.add_row(*(Text(cell.replace(" ± ", "\n± ") if narrow else cell) for cell in row))
    return grid


# ---------------------------------------------------------------------------- surprise

# Of each level of `surprise.level`: ink and paper, both given, so that any terminal shows them alike; the
# middle is the terminal's own. Blue to red through white: told apart by the colour-blind too.
LEVEL_STYLES = (
    "#ffffff on #2b6cb0",
    "#000000 on #a9cfe8",
    "",
    "#000000 on #fbdc9a",
    "#000000 on #f4945a",
    "#ffffff on #b2182b",
)
NO_BREAK = "\u00a0"
LEVEL_MARKS = {4: ("[", "]"), 5: ("[[", "]]")}  # where there are no colours


def surprise(found: Surprise, console: Console) -> None:
    """The beginning of the text, coloured by what each token cost; then the hardest and easiest of all."""
    coloured = console.color_system is not None and not console.no_color
    console.print()
    console.print(Text(found.said, style="italic"))
    console.print(_legend(coloured))
    console.print()
    unicode = _has_unicode(console)
    shown = Text(overflow="fold")
    shown.append(visible(found.first, unicode, lines=True), style="dim")
    for token in found.stretch:
        at = level(token.loss)
        text = visible(token.raw, unicode, lines=True)
        if coloured:
            shown.append(text, style=LEVEL_STYLES[at])
        else:
            opening, closing = LEVEL_MARKS.get(at, ("", ""))
            ink = text.rstrip("\n")  # a bracket stands on the line of what it marks
            shown.append(opening + ink + closing + text[len(ink) :])
    console.print(shown)
    for title, tokens in (("hardest", found.hardest), ("easiest", found.easiest)):
        console.print()
        _extremes(f"The {title} of all {found.of:,} tokens, each once", tokens, console)


def _legend(coloured: bool) -> Text:
    legend = Text("probability (nats): ")
    for i, (name, span) in enumerate((name.replace(" ", NO_BREAK), span) for name, span in LEVELS):
        said = f"{name}{NO_BREAK}({span})"
        if coloured:
            legend.append(f"{NO_BREAK}{said}{NO_BREAK}", style=LEVEL_STYLES[i])
            legend.append(" ")
        elif i in LEVEL_MARKS:
            opening, closing = LEVEL_MARKS[i]
            legend.append(f"{opening}{said}{closing} ")
    legend.rstrip()
    return legend


def _extremes(title: str, tokens: Sequence[Token], console: Console) -> None:
    grid = terminal.table(
        console, *EXTREMES, title=title, right=[c for c, right in EXTREMES.items() if right]
    )
    rows = [cells_of(token, _has_unicode(console)) for token in tokens]
    widths = [max(map(cell_len, cells)) for cells in zip(EXTREMES, *rows, strict=True)]
    others = sum(widths) - widths[1] + 3 * len(widths) + 1  # and the frame
    room = max(8, min(BEFORE, console.width - others)) if console.is_terminal else BEFORE
    for place, before, *rest in rows:
        grid.add_row(*map(Text, (place, before[-room:], *rest)))
    console.print(grid)


def _natural_width(grid: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=terminal.WIDEST), grid).maximum


EXTREMES = {  # the columns of `cells_of`, and which stand to the right
    "at": True,
    "before": True,
    "token": False,
    "nats": True,
    "probability": True,
    "expected": False,
    "with": True,
}


def cells_of(token: Token, unicode: bool = True) -> tuple[str, ...]:
    """A row of a table: place, context, token, loss, its probability, the guess and its probability."""
    expected = "itself" if token.expected == token.raw else quoted(token.expected)
    return (
        f"{token.place:,}",
        visible(token.before, unicode)[-BEFORE:],
        quoted(token.raw),
        f"{token.loss:.4f}",
        share(token.probability),
        expected,
        share(token.expected_probability),
    )


def share(probability: float) -> str:
    """A probability in percent: small ones keep two digits."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:.1e} %"


def quoted(raw: bytes) -> str:
    """A token in quotes, or its bytes where they are no text: as `Tokenizer.show` has it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "bytes " + raw.hex(" ")
    return json.dumps(text, ensure_ascii=not text.isprintable())


def visible(raw: bytes, unicode: bool = True, lines: bool = False) -> str:
    r"""Bytes as text in which nothing is invisible; with `lines`, a line end also ends the line.

    >>> visible(b"a\tb\r\n"), visible(b"\xe2\x80"), visible("\x1b[2J".encode())
    ('a⇥b␍⏎', '\\xe2\\x80', '�[2J')
    """
    end, tab, carriage = ("⏎", "⇥", "␍") if unicode else ("\\n", "\\t", "\\r")
    text = raw.decode("utf-8", errors="backslashreplace").replace("\r", carriage)
    text = terminal.printable(text, terminal=True)
    return text.replace("\t", tab).replace("\n", end + "\n" * lines)
