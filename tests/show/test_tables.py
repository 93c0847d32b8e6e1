"""Tables on terminals of several widths."""

import io

import pytest
from rich.console import Console

from tformer.evals.reversal import PositionResult, ReversalResult
from tformer.show.reversal import reversal_table
from tformer.show.words import bar


def shown(width: int) -> list[str]:
    """The lines of the table of reversal on a terminal so wide."""
    rows = [
        PositionResult(position=1, half="first", accuracy=0.0385, expected=1 / 26, n=2000),
        PositionResult(position=10, half="second", accuracy=1.0, expected=1.0, n=2000),
        PositionResult(position=11, half="second", accuracy=0.5, expected=1.0, n=2000),
    ]
    result = ReversalResult(rows, 0.0385, 1.0, 1 / 26, (0.034, 0.043), (0.025, 0.054), passed=True)
    stream = io.StringIO()
    reversal_table(result, Console(file=stream, force_terminal=True, color_system=None, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize(("width", "longest"), [(100, 20), (80, 20), (70, 16), (60, 6), (56, 2)])
def test_on_a_narrow_terminal_bars_are_shorter_and_no_number_is_cut(width, longest):
    lines = shown(width)
    text = "\n".join(lines)
    assert "…" not in text and "3.85 % (2.5–5.4)" in text
    drawn = [line.split("│")[-2].strip() for line in lines if line.startswith("│") and "second" in line]
    assert drawn == [bar(1.0, longest), bar(0.5, longest)]
