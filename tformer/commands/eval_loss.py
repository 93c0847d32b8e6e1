"""`tformer eval loss`: cross-entropy, perplexity and bits per byte of a text; of several runs, compared."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import Outcome, Request
from tformer.errors import RequestError
from tformer.figures import Lines, Series
from tformer.files import finite

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from tformer.evals.loss import LossResult
    from tformer.evals.statistics import Difference, Scored
    from tformer.run.data import Source
    from tformer.run.record import Record
    from tformer.text.tokenizer import Tokenizer

TOKENS_OF_A_PAGE = 300  # that --out shows if --tokens does not say


@dataclass(frozen=True)
class Judged:
    """A run and what it was worth on a text."""

    folder: Path
    result: "LossResult"
    scored: "Scored"
    seconds: float
    parameters: int
    tokens_seen: int | None
    difference: "Difference | None" = None  # to the best of several

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it; what is no finite number is null."""
        values = asdict(self.result) | {
            "perplexity": self.result.perplexity,
            "parameters": self.parameters,
            "tokens_seen": self.tokens_seen,
            "tokens_per_second": self.tokens_per_second,
        }
        return {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}

    @property
    def tokens_per_second(self) -> float:
        """Of scoring alone: the text was read and the model loaded before."""
        return self.result.tokens / max(self.seconds, 1e-9)

    def curve(self, per_byte: bool) -> Series:
        """The loss at each position, in nats per token or in bits per byte."""
        y = self.result.by_position
        if per_byte:
            losses, sizes, n_ctx = self.scored.losses, self.scored.sizes, self.scored.n_ctx
            nats = [(float(losses[i::n_ctx].sum()), int(sizes[i::n_ctx].sum())) for i in range(len(y))]
            y = [loss / math.log(2) / max(1, size) for loss, size in nats]
        return Series(self.folder.name or str(self.folder), tuple(range(1, len(y) + 1)), tuple(y))


def loss(request: Request) -> Outcome:
    """Score the run's validation part, or all of `--data`."""
    from tformer.evals.tokens import surprise
    from tformer.show import loss as render_loss

    folder, tokenizer = request.run.folder, request.run.tokenizer
    source = source_of(folder, request.run.record, request.data)
    ids = (
        source.ids(tokenizer)
        if source.is_ids
        else tokenizer.encode_array([_text(source, {folder: request.run.record})])
    )
    judged = _score(request, tokenizer, ids)
    result, n = judged.result, request.tokens or (TOKENS_OF_A_PAGE if request.out else 0)
    facts = {
        "run": str(folder),
        "text": source.on,
        "tokens": f"{result.tokens:,} scored, {result.bytes:,} bytes",
        "cross-entropy": f"{_spread(result.loss, result.loss_stderr)} nats per token",
        "perplexity": f"{result.perplexity:.3f}",
        "bits per byte": _spread(result.bits_per_byte, result.bits_per_byte_stderr),
        "speed": f"{judged.tokens_per_second:,.0f} tokens/s",
    }
    found = None
    if n:
        losses, table = judged.scored.losses, tokenizer.token_bytes
        found = surprise(request.run.model, ids, losses, table, n, precision=request.precision)
    figure = _figure([judged])
    if request.out is not None:
        from tformer.show.loss_page import loss_page

        _write(request.out, loss_page(f"{folder.name}: loss on a text", facts, figure, found))

    def show(console: "Console") -> None:
        render_loss.loss_table(facts, result, figure, console)
        if found is not None and request.tokens:
            render_loss.surprise(found, console)

    return Outcome(
        judged.as_dict(),
        show,
        on=source.on,
        also=found.as_dict() if found is not None and request.tokens else {},
    )


def compare(
    folders: Sequence[Path],
    data: list[str],
    out: Path | None,
    request_of: Callable[[Path], Request],
    keep: Callable[[Request, Outcome], None],
) -> tuple[list[dict[str, Any]], "Callable[[Console], None]"]:
    """Score several runs on one text, a model at a time; returns their objects, the best first, and a view.

    Raises RequestError if they have no text in common, before any is scored.
    """
    from tformer.evals.statistics import difference, same_cuts
    from tformer.run.record import read_record
    from tformer.show import loss as render_loss
    from tformer.text.tokenizer import Tokenizer

    records = {folder: read_record(folder) for folder in folders}
    tokenizers = {folder: Tokenizer.load(folder) for folder in folders}
    source = source_of(folders[0], records[folders[0]], data)
    if not data:
        _same_text(records)
        source = replace(source, on="their validation part")
    if source.is_ids:
        _same_vocabulary(tokenizers, source.names[0])
        shared = source.ids(tokenizers[folders[0]])
        ids_of = dict.fromkeys(folders, shared)
    else:
        text = _text(source, records)
        ids_of = {folder: _encoded(folder, tokenizer, text) for folder, tokenizer in tokenizers.items()}
    judged = []
    for folder in folders:
        request = request_of(folder)
        _ = request.run.tokenizer  # no larger than the model
        one = _score(request, tokenizers[folder], ids_of[folder])
        on = source.on if data else "its validation part"
        keep(request, Outcome(one.as_dict(), lambda console: None, on=on))
        judged.append(one)
        del request  # and its model, before the next
    judged.sort(key=lambda j: (math.isnan(j.result.bits_per_byte), j.result.bits_per_byte))
    best = judged[0]
    judged[1:] = [replace(j, difference=difference(j.scored, best.scored)) for j in judged[1:]]
    facts = {"text": f"{source.on}, {int(best.scored.ends[-1]):,} bytes"}
    notes = [
        "Sorted by bits per byte. ± is one standard error, from stretches of whole windows; a difference is "
        "paired over the same bytes, and one beyond 2 standard errors is hardly chance."
    ]
    alike = all(same_cuts(j.scored, best.scored) for j in judged)
    if not alike:
        notes.append(
            "These runs read the text as different tokens: their cross-entropy, perplexity and tokens/s are "
            "per token and do not compare; bits per byte do."
        )
    skipped = {int(j.scored.ends[0]) for j in judged}
    if len(skipped) > 1:
        notes.append(
            "The first token of a text is never scored: the runs leave out its first "
            f"{min(skipped)} to {max(skipped)} bytes, and differences leave out what any of them does."
        )
    rows, figure = _rows(judged), _figure(judged, per_byte=not alike)
    if out is not None:
        from tformer.show.loss_page import comparison_page

        _write(out, comparison_page("Runs compared on one text", facts, COLUMNS, rows, notes, figure))
    results = [
        {"run": str(j.folder)}
        | j.as_dict()
        | {
            "difference_to_best": finite(j.difference.bits_per_byte) if j.difference else None,
            "difference_to_best_stderr": j.difference.stderr if j.difference else None,
        }
        for j in judged
    ]
    return results, lambda console: render_loss.comparison(facts, COLUMNS, rows, notes, figure, console)


def source_of(folder: Path, record: "Record", data: list[str]) -> "Source":
    """All of `--data`, or the validation part of what a run was trained on."""
    from tformer.run.data import given_source, recorded_source

    if data:
        return given_source(data)
    source = recorded_source(folder, record)
    if source.fraction == 0:
        raise RequestError(
            f"{folder} keeps no text for validation", "data.val_fraction is 0", "give --data FILE"
        )
    return source


def _text(source: "Source", records: "dict[Path, Record]") -> str:
    """What is scored of a text; a run that has seen all of it is named."""
    from tformer.show import terminal

    corpus = source.corpus()
    for folder, record in records.items() if source.fraction == 1 else ():
        if record.data.sha256 == corpus.sha256:
            terminal.warn(f"{folder} was trained on this very text: its loss here says little of new text")
    return source.text(corpus)


def tokens_seen(folder: Path, record: "Record") -> int | None:
    """Tokens of the steps that made the weights which were kept; None where nothing says so."""
    from tformer.run.record import read_lines

    result = record.result
    if result is None:
        return None
    for line in read_lines(folder / "metrics.jsonl"):
        if line.get("step") == result.kept_step:
            return line.get("tokens")
    return result.tokens


def _score(request: Request, tokenizer: "Tokenizer", ids: "np.ndarray") -> Judged:
    import numpy as np

    from tformer.evals.loss import loss_result, token_losses
    from tformer.evals.statistics import Scored
    from tformer.show.progress import steps_progress

    model = request.run.model
    token_losses(model, ids[: model.config.n_ctx + 1], request.precision)  # the first pass is slow
    with steps_progress(f"scoring {request.run.folder.name}") as shown:
        start = time.perf_counter()
        losses = token_losses(model, ids, request.precision, shown)
        seconds = time.perf_counter() - start
    sizes = np.array([len(raw) for raw in tokenizer.token_bytes], dtype=np.int64)
    n_ctx = model.config.n_ctx
    return Judged(
        request.run.folder,
        loss_result(losses, ids, tokenizer.n_bytes, n_ctx),
        Scored(losses, np.cumsum(sizes[ids]), n_ctx),
        seconds,
        model.n_parameters,
        tokens_seen(request.run.folder, request.run.record),
    )


def _same_text(records: "dict[Path, Record]") -> None:
    """Raises RequestError unless all runs recorded the same text, cut at the same place."""
    first, *others = records
    for other in others:
        hashes = [records[folder].data.sha256 for folder in (first, other)]
        fractions = [records[folder].val_fraction for folder in (first, other)]
        if None in hashes:
            silent = (first, other)[hashes.index(None)]
            raise RequestError(f"{silent} does not say what it was trained on", "", "give --data FILE")
        if len({*hashes}) > 1:
            found = " and ".join(f"sha256 {str(h)[:12]}…" for h in hashes)
            raise RequestError(f"{first} and {other} have different data", found, "give --data FILE")
        if len({*fractions}) > 1:
            found = f"data.val_fraction {fractions[0]:g} and {fractions[1]:g}"
            what = f"{first} and {other} have different validation parts"
            raise RequestError(what, found, "give --data FILE")


def _same_vocabulary(tokenizers: "dict[Path, Tokenizer]", name: str) -> None:
    """Raises RequestError unless the ids of a token file mean the same to all runs."""
    first, *others = tokenizers
    for other in others:
        if tokenizers[first].token_bytes != tokenizers[other].token_bytes:
            raise RequestError(
                f"{name} holds ids, which are other tokens to {other} than to {first}",
                "expected runs with one tokenizer",
                "give the text itself as --data FILE",
            )


def _encoded(folder: Path, tokenizer: "Tokenizer", text: str) -> "np.ndarray":
    try:
        return tokenizer.encode_array([text])
    except RequestError as error:
        raise RequestError(f"{folder} cannot read this text: {error}") from None


# ---------------------------------------------------------------------------- what is shown

COLUMNS = (
    "run",
    "parameters",
    "tokens seen",
    "cross-entropy",
    "perplexity",
    "bits per byte",
    "difference to best",
    "tokens/s",
)


def _rows(judged: Sequence[Judged]) -> list[list[str]]:
    names = [j.folder.name for j in judged]
    return [
        [
            j.folder.name if names.count(j.folder.name) == 1 else str(j.folder),
            _large(j.parameters),
            "–" if j.tokens_seen is None else _large(j.tokens_seen),
            _spread(j.result.loss, j.result.loss_stderr),
            f"{j.result.perplexity:.3f}",
            _spread(j.result.bits_per_byte, j.result.bits_per_byte_stderr),
            _spread(j.difference.bits_per_byte, j.difference.stderr, "+") if j.difference else "best",
            f"{j.tokens_per_second:,.0f}",
        ]
        for j in judged
    ]


def _large(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number:,}"


def _spread(value: float, stderr: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if stderr is None else f"{value:{sign}.4f} ± {stderr:.4f}"


def _figure(judged: Sequence[Judged], per_byte: bool = False) -> Lines:
    title = "Loss by position in the window: what more context is worth"
    unit = "bits per byte" if per_byte else "nats per token"
    return Lines(title, "position", unit, tuple(j.curve(per_byte) for j in judged), log_x=True)


def _write(out: Path, text: str) -> None:
    from tformer.files import write_file
    from tformer.show import terminal

    write_file(out, text.encode())
    terminal.say(f"wrote {out}")
