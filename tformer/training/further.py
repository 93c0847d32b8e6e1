"""The recipe of a training that goes on from trained weights, where nothing else was asked for.

It is for text of one's own, which is short: a low rate that leaves what the weights know, some passes over
the text, and a window that suits both. `examples/benchmarks/LOG.md` has the pairs of model and text that it
was tried on.
"""

from typing import Any

import torch

from tformer.layers import Layer

BASE_LR, BASE_WIDTH = (
    1e-3,
    128,
)  # the rate of a model of this width, and of a narrower one; a wider one: in proportion
PASSES = 12  # over the training text
STEPS = 20, 2000  # at least and at most
BATCH = 4  # windows a step
EVALUATIONS = 20  # of a run, and a share of its steps to warm up
WITHOUT_GAIN = 4  # evaluations, and it stops
ON_CPU = 256  # the longest window on a CPU, where a longer one is seldom worth its time
LEAST_WINDOWS = 4  # of a text's training part


def further_layer(d_model: int) -> Layer:
    """The settings that a model of this width brings; the steps follow from the text, by `steps_for`."""
    train = {
        "optimizer": "adamw",
        "lr": BASE_LR * min(1.0, BASE_WIDTH / d_model),
        "batch_size": BATCH,
        "patience": WITHOUT_GAIN,
    }
    return Layer("the recipe of --init-from", {"train": train})


def steps_for(windows: int, batch_size: int) -> dict[str, Any]:
    """Settings of `train` that follow from how many windows a pass over the text has."""
    least, most = STEPS
    steps = min(max(-(-PASSES * windows // batch_size), least), most)
    share = max(1, steps // EVALUATIONS)
    return {"steps": steps, "warmup_steps": share, "eval_every": share}


def window_for(n_ctx: int, n_ids: int, device: torch.device) -> int:
    """How many inputs a window has: the model's context, or less for a short text or a slow device."""
    longest = min(n_ctx, ON_CPU) if device.type == "cpu" else n_ctx
    share = (n_ids - 1) // LEAST_WINDOWS
    if share >= longest:
        return longest
    return max(1, min(longest, n_ids - 1, max(8, 1 << max(0, share.bit_length() - 1))))
