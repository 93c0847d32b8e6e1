"""Maps of heads, on a terminal, in a pipe and as a picture."""

import io

import numpy as np
import pytest
from rich.console import Console

from tformer.show.attention import attention_maps
from tformer.show.svg import attention_picture

ESCAPE = "\x1b"


@pytest.mark.parametrize(("kind", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_picture_is_what_its_name_says_and_the_same_each_time(kind, begins):
    weights = np.tril(np.full((2, 3, 4, 4), 0.25))
    tokens = ["a", "\n", "$x$", "\u6f22"]
    pictures = [attention_picture(weights, tokens, "run", kind) for _ in range(2)]
    assert pictures[0].startswith(begins)
    assert pictures[0] == pictures[1]


def drawn(maps, **console):
    """What the maps look like."""
    file = io.StringIO()
    attention_maps(maps, Console(file=file, width=40, **console))
    return file.getvalue()


def test_without_a_terminal_the_maps_are_ascii_characters():
    text = drawn([("1.1", np.eye(3)), ("1.2", np.eye(3)[::-1])])
    assert text.isascii() and ESCAPE not in text
    assert "@      @" in text, "side by side"


def test_on_a_terminal_the_maps_are_coloured_blocks_and_without_colour_shades(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = drawn([("1.1", np.eye(3))], force_terminal=True, color_system="truecolor")
    assert "▀" in coloured and ESCAPE in coloured
    plain = drawn([("1.1", np.eye(3))], force_terminal=True, color_system=None)
    assert "█" in plain and ESCAPE not in plain


def test_heads_that_do_not_fit_are_counted():
    text = drawn([(f"{i}.1", np.eye(50)) for i in range(20)])
    assert "4 more heads" in text
    assert max(map(len, text.splitlines()[:-2])) <= 40
