"""The hardest and easiest tokens against brute force; coloured text that adds up, in every kind of stream."""

import io
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.conftest import tiny_model
from tests.show.test_page import check
from tformer.commands.eval_loss import COLUMNS
from tformer.evals.loss import text_loss, token_losses
from tformer.evals.tokens import LEVELS, extremes, guesses, level, surprise
from tformer.figures import Lines, Series
from tformer.show import loss as render_loss
from tformer.show.loss_page import loss_page

BYTES = [
    b"<b>&",
    b"\x1b[2J",
    b"\xe2\x80",
    b"\n",
    b"\t",
    b'"',
    "\u202e".encode(),
    *(bytes([65 + i]) for i in range(16)),
]
CURVE = Lines("Falling", "position", "nats", (Series("one", (1, 2, 3, 4), (4.0, 3.0, 2.0, 1.0)),), log_x=True)


@pytest.fixture(scope="module")
def judged():
    """A model, a text of 50 ids in windows of 16, its losses, and what was found."""
    model = tiny_model(std=0.6)
    ids = np.random.default_rng(1).integers(23, size=50)
    losses = token_losses(model, ids)
    return model, ids, losses, surprise(model, ids, losses, BYTES, n=40, most=5)


def printed(show, *args, **options):
    """What a console of these options gets."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=options.pop("encoding", "utf-8"))
    show(*args, Console(file=stream, **options))
    stream.seek(0)
    return stream.read()


# ---------------------------------------------------------------------------- what is found


def test_the_losses_shown_add_up_to_the_loss_of_that_stretch(judged):
    model, ids, _, found = judged
    shown = [token.loss for token in found.stretch]
    assert len(shown) == 40
    assert found.loss == pytest.approx(text_loss(model, ids[:41], np.ones(23, dtype=int)).loss, abs=1e-5)
    assert f"{sum(shown):.2f} together" in found.said
    assert all(token.raw == BYTES[ids[token.place]] for token in found.stretch)
    assert all(token.probability == pytest.approx(math.exp(-token.loss)) for token in found.stretch)


def test_guesses_are_the_most_likely_given_the_window(judged):
    model, ids, losses, _ = judged
    found = guesses(model, ids, range(1, 50))
    for place in range(1, 50):
        start = (place - 1) // 16 * 16
        probabilities = model(torch.from_numpy(ids[None, start:place]))[0, -1].softmax(-1).detach()
        assert found[place].id == int(probabilities.argmax())
        assert found[place].probability == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert found[place].probability >= math.exp(-losses[place - 1]) - 1e-6


def test_the_context_shown_is_what_the_model_saw(judged):
    *_, ids, _, found = judged
    for token in found.stretch:
        assert token.context == (token.place - 1) % 16 + 1
        seen = b"".join(BYTES[i] for i in ids[token.place - token.context : token.place])
        assert seen.endswith(token.before) and (token.before == seen or len(token.before) == 40)


@pytest.mark.parametrize("hardest", [True, False])
def test_extremes_are_each_token_at_its_most_extreme_place(judged, hardest):
    _, ids, losses, _ = judged
    pick = max if hardest else min
    best = {i: pick(losses[ids[1:] == i]) for i in set(ids[1:].tolist())}
    chosen = extremes(losses, ids, 7, hardest)
    assert [losses[p - 1] for p in chosen] == sorted(best.values(), reverse=hardest)[:7]
    assert all(losses[p - 1] == best[ids[p]] for p in chosen)


def test_ranks_count_from_the_hardest(judged):
    _, _, losses, found = judged
    for token in found.stretch:
        assert token.rank == 1 + int((losses > token.loss).sum())
    assert found.hardest[0].rank == 1 and found.easiest[0].rank == found.of == 49


def test_a_level_is_a_range_of_probabilities():
    assert [level(-math.log(p)) for p in (1, 0.91, 0.89, 0.4, 0.05, 0.005, 0.0005)] == [0, 0, 1, 2, 3, 4, 5]
    assert level(math.inf) == 5
    assert [nats for _, nats in LEVELS] == [
        "0–0.11",
        "0.11–0.69",
        "0.69–2.30",
        "2.30–4.61",
        "4.61–6.91",
        "over 6.91",
    ]


# ---------------------------------------------------------------------------- how it is shown


def test_without_colour_the_hard_tokens_stand_in_brackets(judged):
    found = judged[-1]
    text = printed(render_loss.surprise, found, width=80)
    assert "\x1b" not in text and "\u202e" not in text
    body = text.split("\n\n")[1]
    marked = body.count("[") - body.count("[2J")
    levels = [level(t.loss) for t in found.stretch]
    assert levels.count(4) + 2 * levels.count(5) == marked > 0
    assert "hardest of all 49" in text and "easiest of all 49" in text


def test_with_colour_every_level_has_its_paper(judged):
    found = judged[-1]
    text = printed(render_loss.surprise, found, width=80, force_terminal=True, color_system="truecolor")
    for at in {level(t.loss) for t in found.stretch} - {2}:
        red, green, blue = bytes.fromhex(render_loss.LEVEL_STYLES[at].rpartition("#")[2])
        assert f"48;2;{red};{green};{blue}m" in text
    assert "\x1b[2J" not in text, "the text of a token cannot move the cursor"


def test_windows_line_ends_are_named():
    assert render_loss.visible(b"O\r\n", lines=True) == "O␍⏎\n"
    assert render_loss.visible(b"O\r\n", unicode=False) == "O\\r\\n"


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
    text = printed(
        render_loss.comparison,
        {"text": "x"},
        COLUMNS,
        [row],
        [],
        CURVE,
        width=width,
        force_terminal=True,
        color_system=None,
    )
    assert "shakespeare" in text and all(len(line) <= width for line in text.splitlines())
    assert ("3.4268 ± 0.0896" in text) == (width == 160)


def test_ink_can_be_read_on_its_paper():
    def light(colour):
        linear = [(c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from tformer.show.loss_page import DARK, LIGHT

    pairs = [style.split(" on ") for style in render_loss.LEVEL_STYLES if style]
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


# ---------------------------------------------------------------------------- curves


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_curve_fits_its_terminal_and_falls_where_the_numbers_do(width, encoding):
    n = 300
    y = tuple(5 - math.log2(i) / 2 for i in range(1, n + 1))
    figure = Lines("F", "position", "nats", (Series("a", tuple(range(1, n + 1)), y),), log_x=True)
    options = {"width": width, "force_terminal": True, "color_system": None, "encoding": encoding}
    lines = printed(render_loss.curves, figure, **options).splitlines()
    assert all(len(line) <= width for line in lines)
    side = "│" if encoding == "utf-8" else "|"
    rows = [line.partition(side)[2] for line in lines if side in line]
    assert len(rows) == render_loss.PLOT_ROWS and all(row.strip() for row in rows), "no gap"
    starts = [len(row) - len(row.lstrip(" ⠀")) for row in rows]
    assert starts == sorted(starts) and starts[0] == 0 and len(rows[-1]) > 0.8 * (min(width, 110) - 8)
    ticks = lines[render_loss.PLOT_ROWS + 2].split()
    assert ticks[0] == "1" and ticks[-1] == "300"


def test_several_curves_without_colour_are_letters():
    series = [Series(name, (1, 2, 3, 4), (at, at, at, at)) for name, at in (("x", 1.0), ("y", 2.0))]
    figure = Lines("F", "position", "nats", tuple(series), log_x=True)
    lines = printed(render_loss.curves, figure, width=60, force_terminal=True, color_system=None).splitlines()
    assert set(lines[1].partition("│")[2]) == {"b"} and set(lines[12].partition("│")[2]) == {"a"}
    assert "a x:" in lines[-2] and "b y:" in lines[-1]


def test_nothing_finite_draws_nothing():
    figure = Lines("F", "x", "y", (Series("a", (1, 2), (math.nan, math.inf)),))
    assert printed(render_loss.curves, figure, width=60).splitlines() == ["F"]
    half = Lines("F", "x", "y", (Series("a", (1, 2, 3), (math.nan, 2.0, 1.0)),))
    assert len(printed(render_loss.curves, half, width=60).splitlines()) > 12
