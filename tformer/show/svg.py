"""Every picture as SVG or PNG: the curves of a training, maps of heads, the figures of a page.

matplotlib is imported only where something is drawn.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tformer.errors import harmless
from tformer.figures import Bars, Heat, Lines
from tformer.show.colours import PALETTE, curve_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TRAIN, VAL, RATE, WORDS = "#7aa6c2", "#c0392b", "#9a9a9a", "#2a9d6f"  # readable on light and dark


def loss_svg(metrics: Sequence[dict[str, Any]], title: str) -> str:
    """Training and validation loss and the learning rate against the step, as an SVG.

    Below them the loss of last words (`train --eval-data`), where there is one: it is per word.
    """
    import matplotlib

    matplotlib.use("svg", force=True)
    matplotlib.rcParams["svg.hashsalt"] = "tformer"  # the same curve gives the same bytes
    from matplotlib.figure import Figure

    words = [(m["step"], m["next_word_loss"]) for m in metrics if m.get("next_word_loss") is not None]
    figure = Figure(figsize=(8, 6.5 if words else 4.5), layout="constrained")
    ratios = [2, 1] if words else [1]
    axes, *below = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    if words:
        _last_words(below[0], words)
    axes.plot(*_points(metrics, "loss"), color=TRAIN, linewidth=1, label="training")
    evaluated = [m for m in metrics if m.get("val_loss") is not None]
    if evaluated:
        axes.plot(
            [m["step"] for m in evaluated],
            [m["val_loss"] for m in evaluated],
            color=VAL,
            marker="o",
            markersize=3,
            label="validation",
        )
        best = min(evaluated, key=lambda m: m["val_loss"])
        axes.annotate(
            f"{best['val_loss']:.4f}",
            (best["step"], best["val_loss"]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="right",
            color=VAL,
        )
    axes.set_title(title.encode(errors="backslashreplace").decode(), parse_math=False)
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.margins(y=0.1)  # room below for the number
    (below or [axes])[0].set_xlabel("step")
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rate.plot(*_points(metrics, "lr"), color=RATE, linewidth=1, linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate", color=RATE)
    rate.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rate.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", framealpha=0.6)
    return rendered(figure).decode()


def rendered(canvas: "Canvas", kind: str = "svg", **options: Any) -> bytes:
    """The file that matplotlib makes of a figure, most of whose time this is; `kind` is svg or png.

    In a name or a token that it writes, what XML may not hold is U+FFFD.
    The tests that look at no picture put another function in its place.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of a name or token that the font has no glyph for
        canvas.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return harmless(buffer.getvalue().decode()).encode() if kind == "svg" else buffer.getvalue()


def _points(metrics: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps, and what was measured at them."""
    seen = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
    return [step for step, _ in seen], [value for _, value in seen]


def _last_words(axes: Any, words: Sequence[tuple[int, float]]) -> None:
    axes.plot(
        *zip(*words, strict=True),
        color=WORDS,
        marker="o",
        markersize=3,
        label="next_word_loss: last words of passages",
    )
    step, lowest = min(words, key=lambda point: point[1])
    axes.annotate(
        f"{lowest:.4f}", (step, lowest), textcoords="offset points", xytext=(0, 6), ha="right", color=WORDS
    )
    axes.set(ylabel="nats per word")
    axes.margins(y=0.15)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", framealpha=0.6)  # where the curve is not: it may rise


def attention_picture(weights: np.ndarray, tokens: Sequence[str], title: str, kind: str) -> bytes:
    """Every head's weights, shape (layer, head, query, key), a row for each layer; `kind` is svg or png."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "tformer"
    from matplotlib.figure import Figure

    n_layers, n_heads, n, _ = weights.shape
    side = 2.4 if n_heads <= 8 else 1.4
    figure = Figure(figsize=(1 + side * n_heads, 1 + side * n_layers), layout="constrained")
    figure.suptitle(f"{title}: rows are queries, columns the keys that they look at", parse_math=False)
    names = [token if token.isprintable() and token.strip() else repr(token)[1:-1] for token in tokens]
    for layer, row in enumerate(figure.subplots(n_layers, n_heads, squeeze=False)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head], vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            ticks = range(n) if n <= 24 and n_heads <= 8 else []
            axes.set_xticks(ticks, [names[i] for i in ticks], fontsize=6, parse_math=False)
            axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=6, parse_math=False)
    return rendered(figure, kind)


# ---------------------------------------------------------------------------- figures of pages

INK = "#010203"  # stands for the page's own text colour until the SVG is written


def figure_svg(figure: Lines | Bars | Heat, name: str) -> str:
    """An SVG to stand inside a page: transparent, its text in the page's colour and font.

    `name` goes into every id, so that several can stand in one page.
    """
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "tformer"
    style: Any = {
        "svg.fonttype": "none",
        "font.size": 13,
        "text.parse_math": False,
        **{f"{part}color": INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")},
    }
    with matplotlib.rc_context(style):
        svg = rendered(_DRAW[type(figure)](figure), transparent=True).decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'font: ([^;"]*)\'DejaVu Sans\'[^;"]*', r"font: \1inherit", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub(r"\n\s*\n", "\n", svg)  # a blank line would end it in Markdown


def _canvas(width: float, height: float) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def _lines(figure: Lines) -> "Canvas":
    several = len(figure.series) > 1
    canvas = _canvas(6.4, 3.4 + (0.27 * -(-len(figure.series) // 2) if several else 0))
    axes = canvas.subplots()
    for number, series in enumerate(figure.series):
        colour = curve_colour(number)
        marker = "o" if len(series.x) <= 12 else None
        axes.plot(
            series.x, series.y, label=series.name, color=colour, marker=marker, markersize=3, linewidth=1.6
        )
        if series.low:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel=figure.x_label, ylabel=textwrap.fill(figure.y_label, 30))
    if figure.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")  # the default is TeX
    if figure.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    _tidy(axes)
    if several:  # above the curves: inside it would cover some of them
        canvas.legend(loc="outside upper left", ncols=2, framealpha=0, fontsize=12)
    return canvas


def _bars(figure: Bars) -> "Canvas":
    names = [name for name, _ in figure.bars][::-1]
    numbers = [number for _, number in figure.bars][::-1]
    canvas = _canvas(6.4, 1.0 + 0.36 * len(names))
    axes = canvas.subplots()
    around = [[n.mean - n.interval[0] for n in numbers], [n.interval[1] - n.mean for n in numbers]]
    axes.barh(
        names,
        [n.mean for n in numbers],
        xerr=np.maximum(around, 0),
        color=PALETTE[0],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 3},
    )
    axes.set_xlabel(figure.y_label)
    if figure.reference:
        label, value = figure.reference
        axes.axvline(value, color=PALETTE[1], linestyle="--", linewidth=1.2, label=label)
        axes.legend(framealpha=0, fontsize=12)
    _tidy(axes)
    return canvas


def _heat(figure: Heat) -> "Canvas":
    """All matrices as tiles of one image: many axes would take seconds."""
    matrices = [np.array(matrix, dtype=float) for _, matrix in figure.matrices]
    high, wide = (max(m.shape[axis] for m in matrices) for axis in (0, 1))
    abreast = min(len(matrices), 4)
    down = -(-len(matrices) // abreast)
    gap, head = 0.08 * wide, 0.16 * high  # between tiles, and room for a caption above each
    # All are shown at one width: fewer tiles get larger, and the letters stay as they are.
    side = {1: 3.0, 2: 2.6, 3: 2.3}.get(abreast, 1.75)
    canvas = _canvas(6.4 if abreast < 4 else 7.0, 0.4 + side * down)
    axes = canvas.subplots()
    for i, (matrix, (caption, _)) in enumerate(zip(matrices, figure.matrices, strict=True)):
        x, y = i % abreast * (wide + gap), i // abreast * (high + head)
        extent = (x, x + matrix.shape[1], y + matrix.shape[0], y)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", interpolation="nearest", extent=extent)
        axes.text(x, y - 0.03 * high, caption, fontsize=11, va="bottom")
    axes.set(xlim=(-0.5, abreast * (wide + gap) - gap + 0.5), ylim=(down * (high + head) - head + 0.5, -head))
    axes.set(
        xticks=[],
        yticks=[],
        xlabel=figure.column_label,
        ylabel=figure.row_label,
        aspect="equal" if abreast == 1 else "auto",
    )
    axes.spines[:].set_visible(False)
    return canvas


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


_DRAW: dict[type, Any] = {Lines: _lines, Bars: _bars, Heat: _heat}
