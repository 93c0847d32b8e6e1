"""Cross-entropy of a text: nats per token, perplexity, bits per byte, the mean at each position.

A function from model and ids to a small dataclass; runs that are judged by it are in `judged.py`. Knows
nothing of files or terminals.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tformer.config import ModelConfig
from tformer.counted import counted
from tformer.device import autocast, to_device
from tformer.errors import RequestError
from tformer.evals.statistics import stretch_stderr
from tformer.free_memory import amount, free_bytes, refuse_larger_than
from tformer.loss import check_finite, cross_entropy
from tformer.model import Transformer
from tformer.progress import Progress, silent
from tformer.ranks import BY_ITSELF, Ranks
from tformer.text.data import eval_contexts, eval_windows

TOKENS_AT_ONCE = 1 << 13  # of a forward pass in evaluation, padding included
LOGITS_AT_ONCE = 1 << 26  # of a forward pass: a large vocabulary has its windows in smaller groups
LOGIT_COPIES = 3  # in memory, of each logit: itself, its exponential, what is made of them


@dataclass(frozen=True)
class LossResult:
    """Cross-entropy over a text. `loss` is nats per token; `by_position` the mean at each position.

    Standard errors are those of `statistics.stretch_stderr`; None for a text of a single window.
    """

    loss: float
    loss_stderr: float | None
    bits_per_byte: float
    bits_per_byte_stderr: float | None
    tokens: int
    bytes: int
    by_position: list[float]

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def token_losses(
    model: Transformer,
    ids: np.ndarray,
    precision: str = "fp32",
    progress: Progress = silent,
    stride: int | None = None,
) -> np.ndarray:
    """The loss in nats of every id but the first, shape (n - 1,), over the windows of `data.eval_windows`.

    Each id but the first is a target exactly once. Raises RequestError for fewer than two ids: the first one
    is never a target. Raises TformerError where a loss is not finite.
    """
    losses = _window_losses(model, ids, precision, progress, stride)
    check_finite(torch.from_numpy(losses), "logits", "scored")
    return losses


@torch.no_grad()  # not inference_mode: what a sharded model puts together in it could not be trained with
def _window_losses(
    model: Transformer,
    ids: np.ndarray,
    precision: str,
    progress: Progress,
    stride: int | None = None,
    ranks: Ranks = BY_ITSELF,
) -> np.ndarray:
    if len(ids) < 2:
        raise RequestError(
            f"the text has {counted(len(ids), 'token')}", "expected at least 2: one to predict from"
        )
    device = next(model.parameters()).device
    model.eval()
    windows = eval_windows(len(ids), model.config.n_ctx, stride)
    out = np.zeros(len(ids) - 1, dtype=np.float64)
    at_once = windows_at_once(model.config)
    full = [w for w in windows if w.end - w.start == windows[0].end]
    groups = [full[i : i + at_once] for i in range(0, len(full), at_once)]
    groups += [[w] for w in windows[len(full) :]]
    for turn in range(ranks.rank, -(-len(groups) // ranks.world) * ranks.world, ranks.world):
        # A sharded model goes forward in all processes or none: who has no group left joins in all the same.
        group = groups[min(turn, len(groups) - 1)]
        block = np.stack([ids[start : end + 1] for start, _, end in group]).astype(np.int64)
        inputs, targets = (to_device(b, device) for b in (block[:, :-1], block[:, 1:]))
        with autocast(precision, device):
            logits = model(inputs)
        if turn >= len(groups):
            break
        losses = cross_entropy(logits, targets).cpu().double().numpy()  # MPS has no float64
        for (start, first, end), row in zip(group, losses, strict=True):
            out[first:end] = row[first - start :]
        progress(group[-1].end, len(out))
    ranks.sum(torch.from_numpy(out))  # each target was scored by one of them
    return out


def windows_at_once(config: ModelConfig) -> int:
    """How many windows go forward together, at most."""
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // config.vocab_size) // config.n_ctx)


def refuse_larger_logits(model: Transformer, n_tokens: int) -> None:
    """Raises RequestError where there is no room for the logits that scoring so many tokens makes at once."""
    config, device = model.config, next(model.parameters()).device
    tokens = min(windows_at_once(config) * config.n_ctx, n_tokens)
    needed = LOGIT_COPIES * 4 * tokens * config.vocab_size
    what = f"scoring {counted(tokens, 'token')} at once takes at least {amount(needed)} for their logits"
    advice = "give a shorter text, or a run with a smaller vocabulary or context"
    refuse_larger_than(free_bytes(device), needed, what, advice)


def text_loss(
    model: Transformer,
    ids: np.ndarray,
    n_bytes: np.ndarray,
    precision: str = "fp32",
    progress: Progress = silent,
    ranks: Ranks = BY_ITSELF,
) -> LossResult:
    """Cross-entropy over all of `ids`; `n_bytes[id]` is what each id stands for, for bits per byte.

    Several processes score a part each, and all get the whole.

    Raises RequestError for fewer than two ids. Losses that are not finite are given as they are: training
    says after which step they came.
    """
    losses = _window_losses(model, ids, precision, progress, ranks=ranks)
    return loss_result(losses, ids, n_bytes, model.config.n_ctx)


def loss_result(
    losses: np.ndarray, ids: np.ndarray, n_bytes: np.ndarray, n_ctx: int, stride: int | None = None
) -> LossResult:
    """What the losses of `token_losses` on `ids` come to.

    Bits are divided by the bytes of exactly the targets scored.
    """
    sizes = n_bytes[ids[1:]]
    scored_bytes = int(sizes.sum())
    stderr = stretch_stderr(losses, sizes, n_ctx)
    return LossResult(
        loss=float(losses.mean()),
        loss_stderr=stretch_stderr(losses, np.ones(len(losses)), n_ctx),
        bits_per_byte=float(losses.sum()) / math.log(2) / max(1, scored_bytes),
        bits_per_byte_stderr=None if stderr is None else stderr / math.log(2),
        tokens=len(losses),
        bytes=scored_bytes,
        by_position=_by_position(losses, eval_contexts(eval_windows(len(ids), n_ctx, stride))),
    )


def _by_position(losses: np.ndarray, contexts: np.ndarray) -> list[float]:
    return (np.bincount(contexts, losses)[1:] / np.bincount(contexts)[1:]).tolist()


def octaves(by_position: Sequence[float]) -> list[tuple[int, int, float]]:
    """(first, last, mean) of positions 1, 2, 3–4, 5–8, …; the last one as far as there are any.

    >>> octaves([4.0, 3.0, 2.0, 1.0, 0.5])
    [(1, 1, 4.0), (2, 2, 3.0), (3, 4, 1.5), (5, 5, 0.5)]
    """
    n = len(by_position)
    edges = [0, *(1 << i for i in range(n.bit_length()) if 1 << i < n), n]
    return [(a + 1, b, sum(by_position[a:b]) / (b - a)) for a, b in itertools.pairwise(edges) if b > a]


class BatchLoss(NamedTuple):
    """What one batch comes to: nats per token, and bits per byte."""

    loss: float
    bits_per_byte: float


@torch.no_grad()
def batch_loss(
    model: Transformer, inputs: np.ndarray, targets: np.ndarray, n_bytes: np.ndarray, precision: str
) -> BatchLoss:
    """The mean over one batch; `inputs` and `targets` have shape (batch, position)."""
    device = next(model.parameters()).device
    model.eval()
    with autocast(precision, device):
        logits = model(torch.from_numpy(inputs).to(device))
    losses = cross_entropy(logits, torch.from_numpy(targets).to(device)).cpu().double()
    bits = float(losses.sum()) / math.log(2)
    return BatchLoss(float(losses.mean()), bits / int(n_bytes[targets].sum()))
