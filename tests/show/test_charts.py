"""Figures made of characters fit their terminal and show what the numbers do."""

import math

import numpy as np
import pytest

from tests.conftest import printed
from tformer.figures import Lines, Series
from tformer.show.charts import PLOT_ROWS, curves, pooled


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_curve_fits_its_terminal_and_falls_where_the_numbers_do(width, encoding):
    n = 300
    y = tuple(5 - math.log2(i) / 2 for i in range(1, n + 1))
    figure = Lines("F", "position", "nats", (Series("a", tuple(range(1, n + 1)), y),), log_x=True)
    options = {"width": width, "force_terminal": True, "color_system": None, "encoding": encoding}
    lines = printed(curves, figure, **options).splitlines()
    assert all(len(line) <= width for line in lines)
    side = "│" if encoding == "utf-8" else "|"
    rows = [line.partition(side)[2] for line in lines if side in line]
    assert len(rows) == PLOT_ROWS and all(row.strip() for row in rows), "no gap"
    starts = [len(row) - len(row.lstrip(" ⠀")) for row in rows]
    assert starts == sorted(starts) and starts[0] == 0 and len(rows[-1]) > 0.8 * (min(width, 110) - 8)
    ticks = lines[PLOT_ROWS + 2].split()
    assert ticks[0] == "1" and ticks[-1] == "300"


def test_several_curves_without_colour_are_letters():
    series = [Series(name, (1, 2, 3, 4), (at, at, at, at)) for name, at in (("x", 1.0), ("y", 2.0))]
    figure = Lines("F", "position", "nats", tuple(series), log_x=True)
    lines = printed(curves, figure, width=60, force_terminal=True, color_system=None).splitlines()
    assert set(lines[1].partition("│")[2]) == {"b"} and set(lines[12].partition("│")[2]) == {"a"}
    assert "a x:" in lines[-2] and "b y:" in lines[-1]


def test_nothing_finite_draws_nothing():
    figure = Lines("F", "x", "y", (Series("a", (1, 2), (math.nan, math.inf)),))
    assert printed(curves, figure, width=60).splitlines() == ["F"]
    half = Lines("F", "x", "y", (Series("a", (1, 2, 3), (math.nan, 2.0, 1.0)),))
    assert len(printed(curves, half, width=60).splitlines()) > 12


def test_pooling_keeps_the_largest_weight_of_each_cell():
    weights = np.zeros((100, 100))
    weights[99, 3] = 0.7
    small = pooled(weights, 32)
    assert small.shape == (25, 25) and small[24, 0] == 0.7
    assert pooled(np.eye(32), 32).shape == (32, 32)
