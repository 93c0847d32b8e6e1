"""The picture of who changes whom, and what is said beside it."""

import io

import pytest
from rich.console import Console

from tests.conftest import tiny_model
from tests.evals.test_causality import hiding_by, one_too_far
from tformer import model as room
from tformer.evals.causality import causality
from tformer.show.causality import causality_picture


def drawn(result, **settings):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, **settings)
    causality_picture(result, console)
    return console.file.getvalue()


def test_a_terminal_gets_coloured_blocks_unless_it_has_no_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(room, "causal_mask", one_too_far)
    result = causality(tiny_model(n_layers=1))
    blocks = drawn(result, color_system="standard")
    assert blocks.count("\x1b[1;31m██") == 15 + 1, "one leak before each changed position, and the legend"
    plain = drawn(result, no_color=True)
    assert "█" not in plain
    assert plain.count(" X") == 15


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1e4, "finite: -10,000 in blocks 1, 2, safe for scores up to 9,896; here they reach"),
        (-10.0, "finite: -10 in blocks 1, 2, safe at no score"),
    ],
)
def test_a_finite_mask_is_said_with_its_safe_score(monkeypatch, value, said):
    monkeypatch.setattr(room, "attention", hiding_by(value))
    assert said in " ".join(drawn(causality(tiny_model()), no_color=True).split())


def test_more_than_rounding_between_cache_and_full_forward_is_said():
    model = tiny_model()
    right = drawn(causality(model), no_color=True)
    model.embed.register_forward_hook(lambda module, args, output: output * (1 + output.shape[1] / 16))
    wrong = drawn(causality(model), no_color=True)
    assert "more than rounding" in wrong
    assert "more than rounding" not in right
