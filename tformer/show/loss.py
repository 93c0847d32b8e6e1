"""What `tformer eval loss` shows: the loss of a run, several compared, a text coloured by its surprise."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tformer.evals.loss import LossResult, octaves
from tformer.evals.tokens import BEFORE, LEVELS, Surprise, Token, level
from tformer.figures import Lines
from tformer.show import terminal
from tformer.show.charts import curves
from tformer.show.colours import LIGHT
from tformer.show.loss_words import EXTREMES, RUN_COLUMNS, Comparison, cells_of
from tformer.show.terminal import has_colours, has_unicode
from tformer.show.words import visible


def loss_table(facts: dict[str, str], result: LossResult, figure: Lines, console: Console) -> None:
    """The loss of a model on a text, and how it falls along the window: a curve, in a pipe a table."""
    terminal.fact_table(console, facts)
    if console.is_terminal and len(result.by_position) > 1:
        console.print()
        curves(figure, console)
    else:
        _positions(result, console)


def _positions(result: LossResult, console: Console) -> None:
    title = "Loss by position in the window"
    grid = terminal.table(console, "position", "loss", "", title=title, right=("loss",))
    spans = octaves(result.by_position)
    most = max(mean for _, _, mean in spans) or 1.0
    for first, last, mean in spans:
        label = str(first) if first == last else f"{first}–{last}"
        grid.add_row(label, f"{mean:.4f}", terminal.Bar(mean / most))
    console.print(grid)


# ---------------------------------------------------------------------------- comparison

NARROW = {
    "parameters": "para-\nmeters",
    "tokens seen": "tokens\nseen",
    "cross-entropy": "cross-\nentropy",
    "perplexity": "perplex-\nity",
    "bits per byte": "bits per\nbyte",
    "difference to best": "to best",
}


def comparison_view(compared: Comparison, console: Console) -> None:
    """Runs under each other, what to mind when comparing them, and on a terminal their curves.

    On a terminal too narrow for that, a standard error stands below its number. A pipe gets every row as
    one line.
    """
    terminal.fact_table(console, compared.facts)
    grid = _run_table(compared.rows, console, narrow=False)
    width = terminal.natural_width(grid, console)
    if not console.is_terminal:
        grid.width = width  # COLUMNS may be less, and then the names of the runs would be the first to go
    elif width > console.width:
        grid = _run_table(compared.rows, console, narrow=True)
    console.print(grid)
    for note in compared.notes:
        console.print(Text(note, style="dim"))
    if console.is_terminal:
        console.print()
        curves(compared.figure, console)


def _run_table(rows: Sequence[Sequence[str]], console: Console, narrow: bool) -> Table:
    grid = terminal.table(console)
    if narrow:
        grid.box, grid.show_edge, grid.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for i, name in enumerate(RUN_COLUMNS):
        head = NARROW.get(name, name) if narrow else name
        grid.add_column(
            head, justify="right" if i else "left", no_wrap=i > 0, overflow="ellipsis" if i else "fold"
        )
    for row in rows:
        grid.add_row(*(Text(cell.replace(" ± ", "\n± ") if narrow else cell) for cell in row))
    return grid


# ---------------------------------------------------------------------------- surprise

# Ink and paper are both given, so that any terminal shows them alike; the middle level is the terminal's own.
LEVEL_STYLES = [" on ".join(LIGHT[i]) if i in LIGHT else "" for i in range(len(LEVELS))]
NO_BREAK = "\u00a0"
LEVEL_MARKS = {4: ("[", "]"), 5: ("[[", "]]")}  # where there are no colours


def surprise_text(surprise: Surprise, console: Console) -> None:
    """The beginning of the text, coloured by what each token cost; then the hardest and easiest of all."""
    coloured = has_colours(console)
    console.print()
    console.print(Text(surprise.summary, style="italic"))
    console.print(legend(coloured))
    console.print()
    unicode = has_unicode(console)
    shown = Text(overflow="fold")
    shown.append(visible(surprise.first, unicode, lines=True), style="dim")
    for token in surprise.stretch:
        append_token(shown, visible(token.raw, unicode, lines=True), token.loss, coloured)
    console.print(shown)
    for title, tokens in (("hardest", surprise.hardest), ("easiest", surprise.easiest)):
        console.print()
        _extremes(f"The {title} of all {surprise.of:,} tokens, each once", tokens, console)


def append_token(shown: Text, text: str, loss: float, coloured: bool) -> None:
    """Add a token's text to what is shown, in the colour of its loss, or in brackets without colours."""
    at = level(loss)
    if coloured:
        shown.append(text, style=LEVEL_STYLES[at])
        return
    opening, closing = LEVEL_MARKS.get(at, ("", ""))
    ink = text.rstrip("\n")  # a bracket stands on the line of what it marks
    shown.append(opening + ink + closing + text[len(ink) :])


def legend(coloured: bool) -> Text:
    """What the colours or brackets of `append_token` mean, in a line."""
    line = Text("probability (nats): ")
    for i, (name, span) in enumerate((name.replace(" ", NO_BREAK), span) for name, span in LEVELS):
        label = f"{name}{NO_BREAK}({span})"
        if coloured:
            line.append(f"{NO_BREAK}{label}{NO_BREAK}", style=LEVEL_STYLES[i])
            line.append(" ")
        elif i in LEVEL_MARKS:
            opening, closing = LEVEL_MARKS[i]
            line.append(f"{opening}{label}{closing} ")
    line.rstrip()
    return line


def _extremes(title: str, tokens: Sequence[Token], console: Console) -> None:
    grid = terminal.table(
        console, *EXTREMES, title=title, right=[c for c, right in EXTREMES.items() if right]
    )
    rows = [cells_of(token, has_unicode(console)) for token in tokens]
    widths = [max(map(cell_len, cells)) for cells in zip(EXTREMES, *rows, strict=True)]
    others = sum(widths) - widths[1] + 3 * len(widths) + 1  # and the frame
    room = max(8, min(BEFORE, console.width - others)) if console.is_terminal else BEFORE
    for place, before, *rest in rows:
        grid.add_row(*map(Text, (place, before[-room:], *rest)))
    console.print(grid)
