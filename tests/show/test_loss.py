"""A loss as it is shown: a text in the colours of its surprise, runs compared, and the page of both."""

import re

import pytest

from tests.conftest import printed
from tests.evals.test_tokens import found_in_random_text
from tests.show.test_page import check
from tformer.evals.tokens import level
from tformer.figures import Lines, Series
from tformer.show.colours import DARK, LIGHT
from tformer.show.loss import LEVEL_STYLES, comparison_view, surprise_text
from tformer.show.loss_page import loss_page
from tformer.show.loss_words import Comparison
from tformer.show.words import visible

CURVE = Lines("Falling", "position", "nats", (Series("one", (1, 2, 3, 4), (4.0, 3.0, 2.0, 1.0)),), log_x=True)


@pytest.fixture(scope="module")
def judged():
    """A model, its text and losses, and what was found of them."""
    return found_in_random_text()


def test_without_colour_the_hard_tokens_stand_in_brackets(judged):
    found = judged[-1]
    text = printed(surprise_text, found, width=80)
    assert "\x1b" not in text and "\u202e" not in text
    body = text.split("\n\n")[1]
    marked = body.count("[") - body.count("[2J")
    levels = [level(t.loss) for t in found.stretch]
    assert levels.count(4) + 2 * levels.count(5) == marked > 0
    assert "hardest of all 49" in text and "easiest of all 49" in text


def test_with_colour_every_level_has_its_paper(judged):
    found = judged[-1]
    text = printed(surprise_text, found, width=80, force_terminal=True, color_system="truecolor")
    for at in {level(t.loss) for t in found.stretch} - {2}:
        red, green, blue = bytes.fromhex(LEVEL_STYLES[at].rpartition("#")[2])
        assert f"48;2;{red};{green};{blue}m" in text
    assert "\x1b[2J" not in text, "the text of a token cannot move the cursor"


def test_windows_line_ends_are_named():
    assert visible(b"O\r\n", lines=True) == "O␍⏎\n"
    assert visible(b"O\r\n", unicode=False) == "O\\r\\n"


@pytest.mark.parametrize("width", [80, 120, 160])
def test_no_name_is_broken_where_errors_can_stand_below(width):
    row = [
        "shakespeare",
        "2.90 M",
        "2.66 M",
        "3.3238 ± 0.0654",
        "27.766",
        "3.4268 ± 0.0896",
        "+1.1145 ± 0.0783",
        "1,508",
    ]
    compared = Comparison({"text": "x"}, [row], [], CURVE)
    text = printed(comparison_view, compared, width=width, force_terminal=True, color_system=None)
    assert "shakespeare" in text and all(len(line) <= width for line in text.splitlines())
    assert ("3.4268 ± 0.0896" in text) == (width == 160)


def test_ink_can_be_read_on_its_paper():
    def light(colour):
        linear = [(c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [style.split(" on ") for style in LEVEL_STYLES if style]
    for ink, paper in [*pairs, *LIGHT.values(), *DARK.values()]:
        a, b = sorted(light(bytes.fromhex(c[1:])) for c in (ink, paper))
        assert (b + 0.05) / (a + 0.05) >= 4.5, f"{ink} on {paper} (WCAG 2, AA)"


def test_the_page_shows_text_and_obeys_none(judged):
    found = judged[-1]
    text = loss_page("<i>run</i>", {"text": "<u>mine</u>"}, CURVE, found)
    check(text)
    assert not re.search(r"<(i|u|b)>", text) and "\x1b" not in text and "\u202e" not in text
    assert "&lt;b&gt;&amp;" in text and "\\xe2\\x80" in text
    spans = re.findall(r'<span class="l(\d)" title="([^"]*)">', text)
    assert [int(at) for at, _ in spans] == [level(t.loss) for t in found.stretch]
    shown = sum(float(re.search(r": ([\d.]+) nats", title)[1]) for _, title in spans)
    assert shown == pytest.approx(sum(t.loss for t in found.stretch), abs=0.01)
    assert f"rank {found.stretch[0].rank} of 49" in spans[0][1]
    assert "prefers-color-scheme: dark" in text
