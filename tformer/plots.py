"""Pictures of a run. matplotlib is imported only where something is drawn."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

TRAIN, VAL, RATE = "#7aa6c2", "#c0392b", "#9a9a9a"  # readable on light and dark


def loss_svg(metrics: Sequence[dict[str, Any]], title: str) -> str:
    """Training and validation loss and the learning rate against the step, as an SVG."""
    import matplotlib

    matplotlib.use("svg", force=True)
    matplotlib.rcParams["svg.hashsalt"] = "tformer"  # the same curve gives the same bytes
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [m["step"] for m in metrics]
    axes.plot(steps, [m["loss"] for m in metrics], color=TRAIN, linewidth=1, label="training")
    evaluated = [m for m in metrics if m.get("val_loss") is not None]
    if evaluated:
        axes.plot(
            [m["step"] for m in evaluated], [m["val_loss"] for m in evaluated],
            color=VAL, marker="o", markersize=3, label="validation",
        )  # fmt: skip
        best = min(evaluated, key=lambda m: m["val_loss"])
        axes.annotate(
            f"{best['val_loss']:.4f}", (best["step"], best["val_loss"]),
            textcoords="offset points", xytext=(0, -14), ha="right", color=VAL,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)", title=title)
    axes.grid(alpha=0.25)
    rate = axes.twinx()
    rate.plot(
        steps, [m["lr"] for m in metrics], color=RATE, linewidth=1, linestyle=":", label="learning rate"
    )
    rate.set_ylabel("learning rate", color=RATE)
    rate.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rate.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", framealpha=0.6)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of a token that the font has no glyph for
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def pooled(weights: np.ndarray, most: int) -> np.ndarray:
    """A square of weights as one of at most `most` cells a side, each the largest that it covers."""
    step = -(-len(weights) // most)
    edges = range(0, len(weights), step)
    return np.maximum.reduceat(np.maximum.reduceat(weights, edges, axis=0), edges, axis=1)
