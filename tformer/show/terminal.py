"""Everything a person sees: tables, pictures made of characters. It and `progress.py` import rich.

Results go to stdout, everything said to a person goes to stderr; a stream that is no terminal gets
plain lines.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from tformer.errors import visible
from tformer.show.svg import pooled

if TYPE_CHECKING:  # they import torch, and tokenize needs none
    from tformer.evals.attention import Mirror
    from tformer.evals.causality import CausalityResult
    from tformer.evals.masks import MaskResult
    from tformer.evals.reversal import PositionResult, ReversalResult

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


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
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
    err().print(Text(visible(message)))


def warn(message: str) -> None:
    """A line that a person should not miss."""
    err().print(Text(visible(f"warning: {message}"), style="yellow"))


def table(console: Console, *columns: str, title: str = "", right: Sequence[str] = ()) -> Table:
    """A table: framed on a terminal, plain columns elsewhere."""
    grid = Table(
        title=title or None,
        box=box.ROUNDED if console.is_terminal else None,
        title_justify="left",
        pad_edge=console.is_terminal,
    )
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left")
    return grid


def fact_table(console: Console, facts: dict[str, str], title: str = "") -> None:
    """Names and values, a line each."""
    grid = Table(title=title or None, box=None, show_header=False, title_justify="left", pad_edge=False)
    for name, value in facts.items():
        grid.add_row(Text(visible(name), style="dim"), Text(visible(value)))
    console.print(grid)


def bar(fraction: float, width: int = 20) -> str:
    """A bar of eighth blocks: 0 is empty, 1 is full."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def percent(fraction: float) -> str:
    """Two decimals: 99.95 % is not 100 %."""
    return f"{100 * fraction:.2f} %"


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s or 5.6 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.1f} s"


# ---------------------------------------------------------------------------- results


def reversal_table(result: "ReversalResult", console: Console) -> None:
    """Accuracy by position, then the verdict."""
    grid = table(
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
        style = "green" if _as_expected(row, result) else "red"
        grid.add_row(
            str(row.position),
            row.half,
            expected,
            Text(percent(row.accuracy), style=style),
            Text(bar(row.accuracy), style=style),
        )
    console.print(grid)
    low, high = result.interval
    verdict = "passed" if result.passed else "FAILED"
    meaning = (
        "the mask is right: what can be known is known, and nothing else"
        if result.passed
        else _what_went_wrong(result)
    )
    console.print(
        Text(
            f"first half {percent(result.first_half)}, chance is {percent(result.chance)} "
            f"({_range(low, high)} in 99.9 % of cases); second half {percent(result.second_half)}"
        )
    )
    console.print(Text(f"{verdict}: {meaning}", style="bold green" if result.passed else "bold red"))


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _as_expected(row: "PositionResult", result: "ReversalResult") -> bool:
    if row.half == "second":
        return row.accuracy >= 0.999
    return result.position_interval[0] <= row.accuracy <= result.position_interval[1]


def _what_went_wrong(result: "ReversalResult") -> str:
    if result.first_half > result.interval[1]:
        return "the first half is predicted better than chance, so the model sees its targets"
    if result.first_half < result.interval[0]:
        return "the first half is predicted worse than chance, which guessing cannot be"
    return "the second half is not learned yet (train.steps), so nothing is proven"


CELLS = {  # their character, their colour, what they mean
    "allowed": ("+", "blue", "allowed to change"),
    "unchanged": (".", "green", "the same to the bit"),
    "leak": ("X", "bold red", "leak"),
}
PICTURE = 32  # rows and columns at most
ROUNDING = {"fp32": 1e-2, "bf16": 0.2}  # of the largest logit: more is something else


def causality_picture(result: "CausalityResult", console: Console) -> None:
    """Who changes whom, as coloured blocks or as characters; the other measurements; the verdict."""
    blocks = console.is_terminal and console.color_system is not None and not console.no_color
    cells = result.cells(min(PICTURE, max(8, (console.width - 8) // 2)))
    console.print(Text("Row: the first token that changes. Column: where logits are compared."))
    margin = len(str(result.n_ctx)) + 2
    for label, row in cells:
        line = Text().append(f"{label:>{margin - 1}}" + " " * blocks, style="dim")
        for kind in row:
            mark, style, _ = CELLS[kind]
            line.append("██" if blocks else f" {mark}", style=style)
        console.print(line)
    legend = Text(" " * margin)
    for mark, style, meaning in CELLS.values():
        legend.append("██" if blocks else mark, style=style)
        legend.append(f" {meaning}   ")
    console.print(legend)
    of = result.n_ctx - 1
    n = len(result.positions)
    facts = {
        "positions": f"all {n} that have any before them" if n == of else f"{n} of {of}, evenly spread",
        "full forward": _leaked(result.full_leak),
        "KV cache": f"{_leaked(result.cached.max_leak)} ({len(result.cached.pieces)} ways to cut it, "
        "and padded)",
        "rounding": f"cached and full logits agree to {result.cached.difference:.1g} of the largest "
        f"({result.precision})",
        "gradients": "from earlier logits to later embeddings exactly 0"
        if result.max_gradient == 0
        else f"up to {result.max_gradient:.3g} from earlier logits to later embeddings",
        "mask": _mask_finding(result.mask),
    }
    fact_table(console, facts)
    if result.passed and not _is_safe(result.mask):
        console.print(
            Text("scores are beyond what the mask is safe for: other tokens may leak", style="yellow")
        )
    if result.cached.difference > ROUNDING[result.precision]:
        console.print(
            Text(
                "more than rounding: the cache is wrong, or logits depend on how many tokens follow",
                style="yellow",
            )
        )
    if result.reached < 1:
        console.print(
            Text(
                f"at {percent(1 - result.reached)} of the positions a changed token does not even change its "
                "own logits, so this says little",
                style="yellow",
            )
        )
    verdict = "passed: no logit depends on a later token" if result.passed else "FAILED: the future leaks"
    console.print(Text(verdict, style="bold green" if result.passed else "bold red"))


def _leaked(leak: float) -> str:
    return f"earlier logits change by up to {leak:.3g}" if leak else "no bit of an earlier logit changes"


def _mask_finding(mask: "MaskResult") -> str:
    where = f"in block{'s' * (len(mask.blocks) > 1)} {', '.join(map(str, mask.blocks))}"
    if mask.kind == "unseen":
        return "not measured: the model does not use tformer.model.attention"
    if mask.kind == "exact":
        return "exact: a later key has weight 0, whatever it scores"
    if mask.kind == "open":
        return f"open: some later keys are not hidden {where}"
    safe = f"safe for scores up to {mask.safe_score:,.5g}" if mask.safe_score else "safe at no score"
    here = f"here they reach {mask.largest_score:,.3g}" + ", beyond it" * (not _is_safe(mask))
    return f"finite: {mask.value:,.5g} {where}, {safe}; {here}"


def _is_safe(mask: "MaskResult") -> bool:
    return mask.safe_score is None or mask.largest_score <= mask.safe_score


MOST_MAPS, MOST_CELLS = 16, 32  # heads on a screen, and cells along each side of one
ASCII_SHADES, SHADES = " .:-=+*#%@", " ░▒▓█"


def attention_maps(maps: Sequence[tuple[str, np.ndarray]], console: Console) -> None:
    """Captions and weights (query, key) of heads, and what the rows and columns are."""
    rest = f"; {len(maps) - MOST_MAPS} more heads in --out and --json" if len(maps) > MOST_MAPS else ""
    heat_maps(maps[:MOST_MAPS], console)
    console.print(Text(f"\nlayer.head; rows are queries, columns the keys that they look at{rest}"))


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
            upper = _colour(bright[i, j])
            lower = _colour(bright[i + 1, j]) if i + 1 < len(cells) else "default"
            line.append("▀", style=f"{upper} on {lower}")
        lines.append(line)
    return lines


def _colour(level: float) -> str:
    """From dark blue to yellow."""
    return f"rgb({int(20 + 235 * level)},{int(20 + 200 * level)},{int(60 - 20 * level)})"


def mirror_verdict(result: "Mirror", console: Console) -> None:
    """Which heads carry the reversal."""
    alike = f"a head that looks everywhere alike: {percent(result.uniform)}; {result.n} fresh sequences"
    if result.carriers:
        names = ", ".join(f"{head.layer}.{head.head} ({percent(head.share)})" for head in result.carriers)
        said = (
            f"the reversal is carried by {names}: the share of attention on the mirrored position ({alike})"
        )
    else:
        best = result.heads[0]
        said = (
            "no head has half of its attention on the mirrored position; the most is "
            f"{best.layer}.{best.head} with {percent(best.share)} ({alike})"
        )
    console.print(Text(said))


def token_table(rows: Sequence[tuple[int, str]], console: Console) -> None:
    """Tokens with their ids."""
    grid = table(console, "id", "token", right=("id",))
    for i, text in rows:
        grid.add_row(str(i), Text(text))
    console.print(grid)


def markdown(text: str, console: Console) -> None:
    """Prose; rendered on a terminal, as it is written elsewhere."""
    console.print(Markdown(text) if console.is_terminal else Text(text))


def printable(text: str, terminal: bool) -> str:
    """Generated text, made visible for a terminal."""
    return visible(text) if terminal else text


def list_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console) -> None:
    """Any rows under any columns."""
    grid = table(console, *columns, title=title)
    for row in rows:
        grid.add_row(*(Text(visible(str(cell))) for cell in row))
    console.print(grid)
