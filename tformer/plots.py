"""Pictures of a run. matplotlib is imported only where something is drawn."""

import io
from collections.abc import Sequence
from typing import Any

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
