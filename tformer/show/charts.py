"""Figures made of characters: curves, bars, maps of numbers; in colours where they can be shown."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.text import Text

from tformer.figures import Bars, Heat, Lines, Series
from tformer.show.colours import curve_colour
from tformer.show.terminal import has_colours, has_unicode
from tformer.show.words import bar

HEIGHTS, ASCII_HEIGHTS = "▁▂▃▄▅▆▇█", ".:-=+*#%"
SPARKLINE = 40  # characters of a curve that is one line
PLOT_ROWS, PLOT_COLUMNS = 12, 110  # of curves that have a picture, at most
BRAILLE = 0x2800
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a cell: 4 down, 2 across
MOST_CELLS = 32  # along each side of a map
ASCII_SHADES, SHADES = " .:-=+*#%@", " ░▒▓█"


def draw_figure(figure: Lines | Bars | Heat, console: Console) -> None:
    """A figure in characters."""
    if isinstance(figure, Lines):
        _sparklines(figure, console)
    elif isinstance(figure, Bars):
        _bars(figure, console)
    else:
        _heat(figure, console)


def _sparklines(figure: Lines, console: Console) -> None:
    """A row for each curve: its heights as characters, all on one scale, first and last value beside it."""
    console.print(Text(figure.title, style="italic"))
    on_scale = [_scaled(s.y, figure.log_y) for s in figure.series]
    seen = [v for values in on_scale for v in values if math.isfinite(v)]
    if not seen:
        return
    low, high = min(seen), max(seen)
    heights = HEIGHTS if has_unicode(console) else ASCII_HEIGHTS
    width = max(len(s.name) for s in figure.series)
    for series, values in zip(figure.series, on_scale, strict=True):
        places = np.linspace(0, len(values) - 1, min(SPARKLINE, max(len(values), 1))).round().astype(int)
        if figure.log_x and len(values) > SPARKLINE:
            places = np.geomspace(1, len(values), SPARKLINE).round().astype(int) - 1
        marks = "".join(_height(values[i], low, high, heights) for i in places)
        ends = f"{series.y[0]:.3g} → {series.y[-1]:.3g}"
        console.print(Text.assemble(f"  {series.name:<{width}}  ", (marks, "cyan"), f"  {ends}"))
    x = figure.series[0].x
    scale = ", log scale" if figure.log_y else ""
    label = f"  {'':<{width}}  {figure.x_label} {x[0]:g} → {x[-1]:g}; height: {figure.y_label}{scale}"
    console.print(Text(label, style="dim"))


def _scaled(values: Sequence[float], log: bool) -> list[float]:
    return [math.log(v) if log and v > 0 else (-math.inf if log else v) for v in values]


def _height(value: float, low: float, high: float, heights: str) -> str:
    if not math.isfinite(value):
        return " " if math.isnan(value) or value > 0 else heights[0]
    return heights[round((value - low) / ((high - low) or 1.0) * (len(heights) - 1))]


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
        drawn = bar(abs(mean) / top) if math.isfinite(mean) else ""
        console.print(Text.assemble(f"  {name:<{width}}  {text:>{numbers}}  ", (drawn, "cyan")))


def _heat(figure: Heat, console: Console) -> None:
    console.print(Text(figure.title, style="italic"))
    maps = [(caption, np.array(matrix)) for caption, matrix in figure.matrices]
    heat_maps(maps, console)
    console.print(Text(f"rows: {figure.row_label}; columns: {figure.column_label}", style="dim"))


# ---------------------------------------------------------------------------- a picture of curves


@dataclass(frozen=True)
class Plane:
    """What a picture of curves spans: positions from 1 to `last`, heights from `low` to `high`, in dots."""

    last: float
    low: float
    high: float
    across: int
    down: int


def curves(figure: Lines, console: Console) -> None:
    """Curves over a logarithmic axis: fine dots where they and colours can be shown, else characters.

    Several positions that fall on one dot are averaged; dots between two positions are interpolated.
    """
    console.print(Text(figure.title, style="italic"))
    fine = has_unicode(console) and (has_colours(console) or len(figure.series) == 1)
    values = [v for s in figure.series for v in s.y if np.isfinite(v)]
    last = max(s.x[-1] for s in figure.series)
    if not values or last < 2:
        return
    low, high = min(values), max(values)
    # The top, the thirds rounded to rows, the bottom: at halves and quarters of twelve rows there is none.
    labels = {row: f"{high - (high - low) * row / (PLOT_ROWS - 1):.2f}" for row in (0, 4, 7, PLOT_ROWS - 1)}
    margin = max(map(len, labels.values())) + 1
    width = min(console.width, PLOT_COLUMNS) - margin - 2
    dots = (2 * width, 4 * PLOT_ROWS) if fine else (width, PLOT_ROWS)
    plane = Plane(last, low, high, *dots)
    grid = np.full((PLOT_ROWS, width), "", dtype=object)  # the character of each cell
    owner = np.zeros((PLOT_ROWS, width), dtype=int)  # and the curve that it shows
    codes = np.zeros((PLOT_ROWS, width), dtype=int)
    for number, series in enumerate(figure.series):
        for column, (top, bottom) in enumerate(_strokes(series, plane)):
            for row in range(top, bottom + 1):
                cell = (row // 4, column // 2) if fine else (row, column)
                owner[cell] = number
                if fine:
                    codes[cell] |= DOTS[row % 4, column % 2]
                    grid[cell] = chr(BRAILLE + codes[cell])
                else:
                    grid[cell] = _mark(number, figure)
    corner, side, floor = ("└", "│", "─") if has_unicode(console) else ("+", "|", "-")
    for row in range(PLOT_ROWS):
        line = Text().append(f"{labels.get(row, ''):>{margin - 1}} {side}", style="dim")
        for column in range(width):
            line.append(grid[row, column] or " ", style=curve_colour(owner[row, column]))
        line.rstrip()
        console.print(line)
    console.print(Text(f"{'':{margin}}{corner}{floor * width}", style="dim"))
    console.print(Text(" " * (margin + 1) + _ticks(last, width), style="dim"))
    console.print(
        Text(f"{'':{margin + 1}}{figure.x_label}, log scale; height: {figure.y_label}", style="dim")
    )
    for number, series in enumerate(figure.series):
        mark = ("━━" if has_unicode(console) else "--") if fine else _mark(number, figure)
        ends = f"{series.y[0]:.4f} at {series.x[0]:g}, {series.y[-1]:.4f} at {series.x[-1]:g}"
        console.print(
            Text.assemble(" " * (margin + 1), (mark, curve_colour(number)), f" {series.name}: {ends}")
        )


def _mark(number: int, figure: Lines) -> str:
    return "*" if len(figure.series) == 1 else chr(ord("a") + number % 26)


def _strokes(series: Series, plane: Plane) -> list[tuple[int, int]]:
    """For each column the first and last row of dots of a curve, so that it has no gaps."""
    column = np.round(np.log2(series.x) / np.log2(plane.last) * (plane.across - 1)).astype(int)
    seen = np.isfinite(series.y)
    count = np.bincount(column[seen], minlength=plane.across)
    total = np.bincount(column[seen], weights=np.array(series.y)[seen], minlength=plane.across)
    known = np.flatnonzero(count)
    if not known.size:
        return []
    reach = np.arange(column.max() + 1)
    height = np.interp(reach, known, total[known] / count[known])
    spread = (plane.high - plane.low) or 1.0
    rows = np.round((plane.high - height) / spread * (plane.down - 1)).astype(int)
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


# ---------------------------------------------------------------------------- maps


def heat_maps(maps: Sequence[tuple[str, np.ndarray]], console: Console) -> None:
    """Matrices of numbers from 0 to 1, side by side: colours on a terminal, characters elsewhere.

    Brightness is the square root, so that small numbers show; a cell of a large matrix is the largest
    number that it covers.
    """
    shown = [(caption, pooled(weights, MOST_CELLS)) for caption, weights in maps]
    width = max(*(cells.shape[1] for _, cells in shown), *(len(caption) for caption, _ in shown))
    abreast = max(1, (console.width + 2) // (width + 2))
    for row in (shown[i : i + abreast] for i in range(0, len(shown), abreast)):
        console.print()
        console.print(Text("  ".join(caption.ljust(width) for caption, _ in row).rstrip()))
        for parts in zip(*(_drawn(cells, console) for _, cells in row), strict=True):
            line = Text()
            for part in parts:
                part.pad_right(width + 2 - part.cell_len)
                line.append_text(part)
            line.rstrip()
            console.print(line)


def _drawn(cells: np.ndarray, console: Console) -> list[Text]:
    """A line for each row of cells, or for each two where half blocks can be coloured."""
    bright = np.sqrt(np.clip(cells, 0, 1))
    if console.color_system not in ("256", "truecolor") or console.no_color:
        shades = SHADES if console.is_terminal else ASCII_SHADES
        levels = np.ceil(bright * (len(shades) - 1) - 0.25).astype(int)
        return [Text("".join(shades[level] for level in row)) for row in levels]
    lines = []
    for i in range(0, len(cells), 2):
        line = Text()
        for j in range(cells.shape[1]):
            upper = _heat_colour(bright[i, j])
            lower = _heat_colour(bright[i + 1, j]) if i + 1 < len(cells) else "default"
            line.append("▀", style=f"{upper} on {lower}")
        lines.append(line)
    return lines


def _heat_colour(level: float) -> str:
    """From dark blue to yellow."""
    return f"rgb({int(20 + 235 * level)},{int(20 + 200 * level)},{int(60 - 20 * level)})"


def pooled(weights: np.ndarray, most: int) -> np.ndarray:
    """A matrix as one of at most `most` cells a side, each the largest that it covers."""
    for axis, size in enumerate(weights.shape):
        weights = np.maximum.reduceat(weights, range(0, size, -(-size // most)), axis=axis)
    return weights
