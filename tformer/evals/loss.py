"""Cross-entropy of a text: nats per token, perplexity, bits per byte, the mean at each position.

First the measure, a function from model and ids to a small dataclass; then runs that are judged by it, alone
or compared on one text. Knows nothing of terminals.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tformer.device import autocast
from tformer.errors import RequestError
from tformer.evals.statistics import Difference, Scored, difference, stretch_stderr
from tformer.files import finite
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.run.data import ANOTHER_TEXT, Source, given_source, recorded_source
from tformer.run.loaded import LoadedRun
from tformer.run.record import Record, read_metrics, read_record
from tformer.text.data import eval_windows
from tformer.text.tokenizer import Tokenizer

TOKENS_AT_ONCE = 1 << 13  # of a forward pass in evaluation, padding included
Progress = Callable[[int, int], None]  # done, in all


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


@torch.inference_mode()
def token_losses(
    model: Transformer,
    ids: np.ndarray,
    precision: str = "fp32",
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """The loss in nats of every id but the first, shape (n - 1,), over disjoint windows of n_ctx.

    Each id but the first is a target exactly once; the last window may be short. Raises RequestError for
    fewer than two ids: the first one is never a target.
    """
    if len(ids) < 2:
        raise RequestError(f"the text has {len(ids)} tokens", "expected at least 2: one to predict from")
    device = next(model.parameters()).device
    model.eval()
    windows = eval_windows(len(ids), model.config.n_ctx)
    out = np.empty(len(ids) - 1, dtype=np.float64)
    at_once = max(1, TOKENS_AT_ONCE // model.config.n_ctx)
    full = [w for w in windows if w[1] - w[0] == model.config.n_ctx]
    groups = [full[i : i + at_once] for i in range(0, len(full), at_once)]
    groups += [[w] for w in windows[len(full) :]]
    for group in groups:
        block = np.stack([ids[start : end + 1] for start, end in group]).astype(np.int64)
        inputs, targets = (torch.from_numpy(b).to(device) for b in (block[:, :-1], block[:, 1:]))
        with autocast(precision, device):
            logits = model(inputs)
        losses = cross_entropy(logits, targets).cpu().double().numpy()  # MPS has no float64
        for (start, end), row in zip(group, losses, strict=True):
            out[start:end] = row
        progress(group[-1][1], len(out))
    return out


def text_loss(
    model: Transformer,
    ids: np.ndarray,
    n_bytes: np.ndarray,
    precision: str = "fp32",
    progress: Progress = lambda done, total: None,
) -> LossResult:
    """Cross-entropy over all of `ids`; `n_bytes[id]` is what each id stands for, for bits per byte.

    Raises RequestError for fewer than two ids.
    """
    losses = token_losses(model, ids, precision, progress)
    return loss_result(losses, ids, n_bytes, model.config.n_ctx)


def loss_result(losses: np.ndarray, ids: np.ndarray, n_bytes: np.ndarray, n_ctx: int) -> LossResult:
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
        by_position=[float(losses[i::n_ctx].mean()) for i in range(min(n_ctx, len(losses)))],
    )


def octaves(by_position: Sequence[float]) -> list[tuple[int, int, float]]:
    """(first, last, mean) of positions 1, 2, 3–4, 5–8, …; the last one as far as there are any.

    >>> octaves([4.0, 3.0, 2.0, 1.0, 0.5])
    [(1, 1, 4.0), (2, 2, 3.0), (3, 4, 1.5), (5, 5, 0.5)]
    """
    n = len(by_position)
    edges = [0, *(1 << i for i in range(n.bit_length()) if 1 << i < n), n]
    return [(a + 1, b, sum(by_position[a:b]) / (b - a)) for a, b in itertools.pairwise(edges) if b > a]


@torch.inference_mode()
def batch_loss(
    model: Transformer, inputs: np.ndarray, targets: np.ndarray, n_bytes: np.ndarray, precision: str
) -> tuple[float, float]:
    """Mean loss in nats a token, and bits per byte, of one batch of shape (batch, position)."""
    device = next(model.parameters()).device
    model.eval()
    with autocast(precision, device):
        logits = model(torch.from_numpy(inputs).to(device))
    losses = cross_entropy(logits, torch.from_numpy(targets).to(device)).cpu().double()
    return float(losses.mean()), float(losses.sum()) / math.log(2) / int(n_bytes[targets].sum())


# ---------------------------------------------------------------------------- runs on a text


@dataclass(frozen=True)
class OneText:
    """A text as each of several runs reads it.

    `ids` are every run's own, by its folder; `on` says in words which text it is; `seen_by` are the runs
    that were trained on this very text.
    """

    ids: dict[Path, np.ndarray]
    on: str
    seen_by: list[Path]


def one_text(folders: Sequence[Path], data: Sequence[str]) -> OneText:
    """All of `data`, or where nothing is given the validation part of what the runs were trained on.

    Raises RequestError where there is no such text, where several runs have none in common, and where one
    of them cannot read it.
    """
    records = {folder: read_record(folder) for folder in folders}
    tokenizers = {folder: Tokenizer.load(folder) for folder in folders}
    first = folders[0]
    source = given_source(data) if data else _validation_part(first, records[first])
    if not data:
        _check_same_text(records)
    if source.is_ids:
        _check_same_vocabulary(tokenizers, source.names[0])
        return OneText(dict.fromkeys(folders, source.ids(tokenizers[first])), source.on, [])
    corpus = source.corpus()
    seen_by = [f for f in folders if source.fraction == 1 and records[f].data.sha256 == corpus.sha256]
    text = source.text(corpus)
    if len(folders) == 1:
        return OneText({first: tokenizers[first].encode_array([text])}, source.on, seen_by)
    return OneText({f: _encoded(f, tokenizers[f], text) for f in folders}, source.on, seen_by)


def _validation_part(folder: Path, record: Record) -> Source:
    source = recorded_source(folder, record)
    if source.fraction == 0:
        what = f"{folder} keeps no text for validation"
        raise RequestError(what, "data.val_fraction is 0", ANOTHER_TEXT)
    return source


def _check_same_text(records: dict[Path, Record]) -> None:
    """Raises RequestError unless all runs recorded the same text, cut at the same place."""
    first, *others = records
    for other in others:
        hashes = [records[folder].data.sha256 for folder in (first, other)]
        fractions = [records[folder].val_fraction for folder in (first, other)]
        if None in hashes:
            silent = (first, other)[hashes.index(None)]
            raise RequestError(f"{silent} does not say what it was trained on", "", ANOTHER_TEXT)
        if len({*hashes}) > 1:
            found = " and ".join(f"sha256 {str(h)[:12]}…" for h in hashes)
            raise RequestError(f"{first} and {other} have different data", found, ANOTHER_TEXT)
        if len({*fractions}) > 1:
            found = f"data.val_fraction {fractions[0]:g} and {fractions[1]:g}"
            what = f"{first} and {other} have different validation parts"
            raise RequestError(what, found, ANOTHER_TEXT)


def _check_same_vocabulary(tokenizers: dict[Path, Tokenizer], name: str) -> None:
    """Raises RequestError unless the ids of a token file mean the same to all runs."""
    first, *others = tokenizers
    for other in others:
        if tokenizers[first].token_bytes != tokenizers[other].token_bytes:
            raise RequestError(
                f"{name} holds ids, which are other tokens to {other} than to {first}",
                "expected runs with one tokenizer",
                "give the text itself as --data FILE",
            )


def _encoded(folder: Path, tokenizer: Tokenizer, text: str) -> np.ndarray:
    try:
        return tokenizer.encode_array([text])
    except RequestError as error:
        raise RequestError(f"{folder} cannot read this text: {error}") from None


@dataclass(frozen=True)
class Judged:
    """A run and what it was worth on a text."""

    folder: Path
    result: LossResult
    scored: Scored
    seconds: float
    parameters: int
    tokens_seen: int | None
    difference: Difference | None = None  # to the best of several

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it; what is no finite number is null."""
        values = asdict(self.result) | {
            "perplexity": self.result.perplexity,
            "parameters": self.parameters,
            "tokens_seen": self.tokens_seen,
            "tokens_per_second": self.tokens_per_second,
        }
        return {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}

    def compared(self) -> dict[str, Any]:
        """As `--json` has a run among several."""
        return self.as_dict() | {
            "difference_to_best": finite(self.difference.bits_per_byte) if self.difference else None,
            "difference_to_best_stderr": self.difference.stderr if self.difference else None,
        }

    @property
    def tokens_per_second(self) -> float:
        """Of scoring alone: the text was read and the model loaded before."""
        return self.result.tokens / max(self.seconds, 1e-9)


def judge(
    run: LoadedRun,
    ids: np.ndarray,
    precision: str = "fp32",
    progress: Progress = lambda done, total: None,
) -> Judged:
    """Score a text, as the ids of the run's own tokenizer."""
    model, n_ctx, token_bytes = run.model, run.model.config.n_ctx, run.tokenizer.token_bytes
    token_losses(model, ids[: n_ctx + 1], precision)  # the first pass is slow
    start = time.perf_counter()
    losses = token_losses(model, ids, precision, progress)
    seconds = time.perf_counter() - start
    sizes = np.array([len(raw) for raw in token_bytes], dtype=np.int64)
    return Judged(
        run.folder,
        loss_result(losses, ids, run.tokenizer.n_bytes, n_ctx),
        Scored(losses, np.cumsum(sizes[ids]), n_ctx),
        seconds,
        model.n_parameters,
        tokens_seen(run.folder, run.record),
    )


def ranked(judged: Sequence[Judged]) -> list[Judged]:
    """Runs by bits per byte, the best first, each other with its difference to that one."""
    best, *others = sorted(judged, key=lambda j: (math.isnan(j.result.bits_per_byte), j.result.bits_per_byte))
    return [best, *(replace(j, difference=difference(j.scored, best.scored)) for j in others)]


def tokens_seen(folder: Path, record: Record) -> int | None:
    """Tokens of the steps that made the weights which were kept; None where nothing says so."""
    result = record.result
    if result is None:
        return None
    for line in read_metrics(folder / "metrics.jsonl"):
        if line.get("step") == result.kept_step:
            return line.get("tokens")
    return result.tokens
