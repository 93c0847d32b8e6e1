"""Runs judged by their loss on a text, alone or several on the same one: which text, and what each was worth.

The measure is that of `loss.py`. Knows nothing of terminals.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tformer.errors import RequestError
from tformer.evals.loss import LossResult, loss_result, refuse_larger_logits, token_losses
from tformer.evals.statistics import Difference, Scored, difference
from tformer.files import finite
from tformer.progress import Progress, silent
from tformer.run.loaded import LoadedRun
from tformer.run.own_tokenizer import run_tokenizer
from tformer.run.record import Record, read_metrics, read_record
from tformer.run.source import ANOTHER_TEXT, Source, given_source, recorded_source
from tformer.text.corpus import Corpus
from tformer.text.data import eval_contexts, eval_windows, token_hash
from tformer.text.documents import TextReading
from tformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class OneText:
    """A text as each of several runs reads it.

    `ids` are every run's own, by its folder; `on` says in words which text it is; `seen_by` are the runs
    that were trained on this very text, or on these very ids.
    """

    ids: dict[Path, np.ndarray]
    on: str
    seen_by: list[Path]
    notes: tuple[str, ...] = ()  # for a person: what was read of a folder, and what not


def one_text(
    folders: Sequence[Path], data: Sequence[str], field: str | None = None, tell: Progress = silent
) -> OneText:
    """All of `data`, or where nothing is given the validation part of what the runs were trained on.

    Each run reads `data` as it has read its own text: what a document is, and which `field` of a table has it
    where none is named. `tell` hears of characters as they are encoded.

    Raises RequestError where there is no such text, where several runs have none in common, and where one
    of them cannot read it.
    """
    records = {folder: read_record(folder) for folder in folders}
    tokenizers = {folder: run_tokenizer(folder, records[folder]) for folder in folders}
    first = folders[0]
    if not data:
        _check_same_text(records)
    sources = {folder: _source(folder, records[folder], data, field) for folder in folders}
    source = sources[first]
    notes: tuple[str, ...] = ()
    if source.is_ids:
        _check_same_vocabulary(tokenizers, source.names[0])
        ids = source.ids(tokenizers[first])
        of_runs, digest = dict.fromkeys(folders, ids), token_hash(ids)
    else:
        corpora: dict[TextReading, Corpus] = {}  # one text, cut into what each run takes for documents

        def encoded(folder: Path) -> np.ndarray:
            reading = sources[folder].reading
            if reading not in corpora:
                corpora[reading] = sources[folder].corpus()
            has_ends = records[folder].end_of_text and reading.documents != "none"
            return source.text_ids(corpora[reading], tokenizers[folder], has_ends, tell)

        if len(folders) == 1:
            of_runs = {first: encoded(first)}
        else:
            of_runs = {folder: _explained(folder, encoded) for folder in folders}
        corpus = corpora[source.reading]
        digest, notes = corpus.sha256, corpus.notes if data else ()
    # A validation part is of a text that was trained on, and was not trained on itself.
    seen_by = [f for f in folders if source.fraction == 1 and records[f].data.sha256 == digest]
    return OneText(of_runs, source.on, seen_by, notes)


def each_text(folders: Sequence[Path], data: Sequence[str], field: str | None = None) -> list[OneText]:
    """Each of several texts by itself; none where one is standard input, which is read once."""
    if len(data) < 2 or "-" in data:
        return []
    return [one_text(folders, [name], field) for name in data]


def _source(folder: Path, record: Record, data: Sequence[str], field: str | None) -> Source:
    """`data`, read as the run has read its own, but for the field of a table if that is given."""
    if not data:
        return _validation_part(folder, record)
    reading = record.reading if field is None else replace(record.reading, field=field)
    return given_source(data, reading=reading)


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
        own = [records[folder].data.val_sha256 for folder in (first, other)]
        fractions = [records[folder].val_fraction for folder in (first, other)]
        splits = [records[folder].val_split for folder in (first, other)]
        if None in hashes:
            silent = (first, other)[hashes.index(None)]
            raise RequestError(f"{silent} does not say what it was trained on", "", ANOTHER_TEXT)
        if len({*hashes}) > 1:
            found = " and ".join(f"sha256 {str(h)[:12]}…" for h in hashes)
            raise RequestError(f"{first} and {other} have different data", found, ANOTHER_TEXT)
        if len({*own}) > 1:
            found = " and ".join(f"sha256 {h[:12]}…" if h else "a part of its text" for h in own)
            raise RequestError(f"{first} and {other} have different validation texts", found, ANOTHER_TEXT)
        ways = [_way(records[folder]) for folder in (first, other)]
        if len({*fractions}) > 1 or len({*splits}) > 1 or len({*ways}) > 1:
            found = f"data.val_fraction {fractions[0]:g} and {fractions[1]:g}"
            if len({*splits}) > 1:
                found = f"data.val_split {splits[0]} and {splits[1]}"
            elif len({*ways}) > 1:
                found = f"data.documents {ways[0]} and {ways[1]}"
            what = f"{first} and {other} have different validation parts"
            raise RequestError(what, found, ANOTHER_TEXT)


def _way(record: Record) -> str:
    """What a document is to a run; files and none are the same text, cut at the same place."""
    documents = record.reading.documents
    return "file" if documents == "none" else documents


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


def _explained(folder: Path, encoded: Callable[[Path], np.ndarray]) -> np.ndarray:
    try:
        return encoded(folder)
    except RequestError as error:
        raise RequestError(f"{folder} cannot read this text: {error}") from None


@dataclass(frozen=True)
class Judged:
    """A run and what it was worth on a text."""

    folder: Path
    step: int | None  # of the checkpoint that was judged; None for the weights that the run keeps
    name: str  # as a person knows the run
    shown: str  # the same by its directory
    result: LossResult
    scored: Scored
    seconds: float
    parameters: int
    tokens_seen: int | None
    stride: int  # from window to window: the model's n_ctx where they are disjoint
    contexts: np.ndarray  # `data.eval_contexts` of the windows
    difference: Difference | None = None  # to the best of several
    parts: tuple[tuple[str, LossResult], ...] = ()  # of a text that is several: each of them, by itself

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it; what is no finite number is null."""
        values = asdict(self.result) | {
            "perplexity": self.result.perplexity,
            "stride": self.stride,
            "parameters": self.parameters,
            "tokens_seen": self.tokens_seen,
            "tokens_per_second": self.tokens_per_second,
        }
        parts = [_finite({"data": name} | _figures(result)) for name, result in self.parts]
        return _finite(values) | ({"parts": parts} if parts else {})

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


def _figures(result: LossResult) -> dict[str, Any]:
    values = asdict(result) | {"perplexity": result.perplexity}
    return {name: value for name, value in values.items() if name != "by_position"}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}


def judge(
    run: LoadedRun,
    ids: np.ndarray,
    precision: str = "fp32",
    progress: Progress = silent,
    stride: int | None = None,
) -> Judged:
    """Score a text, as the ids of the run's own tokenizer, in windows a `stride` apart or disjoint ones."""
    model, n_ctx = run.model, run.model.config.n_ctx
    refuse_larger_logits(model, len(ids) - 1)
    token_losses(model, ids[: n_ctx + 1], precision)  # the first pass is slow
    start = time.perf_counter()
    losses = token_losses(model, ids, precision, progress, stride)
    seconds = time.perf_counter() - start
    sizes = run.n_bytes
    places = np.cumsum(sizes[ids])  # in the text, to compare models at
    if ids[0] == run.tokenizer.end_id:  # before the first document stands nothing
        places -= sizes[ids[0]]
    return Judged(
        run.folder,
        run.step,
        run.name,
        run.shown,
        loss_result(losses, ids, sizes, n_ctx, stride),
        Scored(losses, places, n_ctx),
        seconds,
        model.n_parameters,
        tokens_seen(run),
        stride or n_ctx,
        eval_contexts(eval_windows(len(ids), n_ctx, stride)),
    )


def ranked(judged: Sequence[Judged]) -> list[Judged]:
    """Runs by bits per byte, the best first, each other with its difference to that one."""
    best, *others = sorted(judged, key=lambda j: (math.isnan(j.result.bits_per_byte), j.result.bits_per_byte))
    return [best, *(replace(j, difference=difference(j.scored, best.scored)) for j in others)]


def tokens_seen(run: LoadedRun) -> int | None:
    """Tokens of the steps that made the weights; None where nothing says so."""
    result = run.record.result
    step = result.kept_step if run.step is None and result else run.step
    for line in read_metrics(run.folder / "metrics.jsonl") if step is not None else ():
        if line.get("step") == step:
            return line.get("tokens")
    return result.tokens if result and run.step is None else None
