"""Ids to batches, and the reversal task.

A batch is a pure function of (seed, step): no loader, no iterator, no state to save. Knows nothing of
models; arrays are numpy until the trainer moves them.
"""

import hashlib
import itertools
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.files import check_regular, write_file
from tformer.text.engines import char_engine
from tformer.text.permutation import Permutation
from tformer.text.pieces import Document
from tformer.text.shards import IdView
from tformer.text.tokenizer import Tokenizer, id_dtype

# What a random stream is for; each has its own, so that none can disturb another.
STREAM_ORDER, STREAM_OFFSET, STREAM_REVERSAL, STREAM_REVERSAL_EVAL, STREAM_DROPOUT, STREAM_SAMPLE = range(6)
STREAM_SPLIT, STREAM_VOCABULARY = 6, 7

SLICE = 1 << 20  # characters of a text at a time
MOST_STORED = 1 << 20  # windows whose order is drawn and kept; that of more is computed where it is asked for


def rng(seed: int, stream: int, index: int) -> np.random.Generator:
    """The generator of one (seed, stream, index), the same whatever was drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, index])))


@runtime_checkable
class Batches(Protocol):
    """Where a trainer takes its batches from."""

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step, each (batch_size, n_ctx) of int64."""


@dataclass(frozen=True)
class Split:
    """A text cut once, before any tokenizer sees it, so that every tokenizer is judged on one text."""

    train: str
    val: str
    train_documents: Sequence[str] = ()  # where it is cut into some
    val_documents: Sequence[str] = ()


def split_text(text: str, val_fraction: float) -> Split:
    """The last `val_fraction` of the characters for validation: cut at int((1 - val_fraction) · n)."""
    cut = split_at(len(text), val_fraction)
    return Split(text[:cut], text[cut:])


def split_at(n: int, val_fraction: float) -> int:
    """Where n characters or ids are cut: what comes after is for validation."""
    return int((1 - val_fraction) * n)


def slices(text: str, start: int, end: int) -> Iterator[str]:
    """A part of a text piece by piece, so that it is not in memory twice."""
    return (text[i : min(i + SLICE, end)] for i in range(start, end, SLICE))


def documents(text: str, ends: np.ndarray, start: int, stop: int) -> Iterator[Document]:
    """The part of a text between two characters as documents, with a token between each two of them.

    `ends` are where the documents of the whole text end, in characters. The token stands before the first one
    of a part as well, so that each begins after one; and after the last. A text that is one document has no
    end that could be learned, and none is put there.
    """
    if start == stop:
        return
    if len(ends) < 2:
        yield Document(slices(text, start, stop), begins=start == 0)
        return
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
    edges = [start, *ends[first:last].tolist(), stop]
    at_start = start == 0 or (first > 0 and ends[first - 1] == start)
    at_stop = bool(last < len(ends) and ends[last] == stop)
    for i, (begin, end) in enumerate(itertools.pairwise(edges)):
        is_last = i == len(edges) - 2
        yield Document(slices(text, begin, end), i == 0 and bool(at_start), at_stop if is_last else True)


@dataclass
class Windows:
    """Windows of `n_ctx` inputs with their shifted targets, over ids of shape (n,), in memory or mapped.

    An epoch holds `per_epoch` windows that start `stride` apart, in an order of its own and shifted by
    an offset of its own. With the default stride, n_ctx, no position is a target twice
    in an epoch; what the offset leaves over at the ends is reached in other epochs.
    """

    ids: np.ndarray | IdView
    n_ctx: int
    seed: int = 0
    stride: int = 0
    _order: dict[int, tuple[int, np.ndarray | Permutation]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.stride = self.stride or self.n_ctx
        last_start = len(self.ids) - 1 - self.n_ctx
        if last_start < 0:
            raise RequestError(
                f"the training text has {counted(len(self.ids), 'token')}",
                f"expected at least n_ctx + 1 = {self.n_ctx + 1:,}",
            )
        # As many as fit at any offset below the stride: all epochs are equally long.
        self.per_epoch = max(1, (last_start - (self.stride - 1)) // self.stride + 1)
        self.offsets = last_start - (self.per_epoch - 1) * self.stride + 1

    def starts(self, step: int, batch_size: int) -> np.ndarray:
        """Where the windows of a step begin. Windows are numbered through all epochs."""
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), self.per_epoch)
        starts = np.empty(batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            offset, order = self._epoch(int(epoch))
            starts[here] = offset + self.stride * order[places[here]].astype(np.int64)
        return starts

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step; a batch that crosses the end of an epoch goes on in the next."""
        places = self.starts(step, batch_size)[:, None] + np.arange(self.n_ctx + 1)
        windows = self.ids[places].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray | Permutation]:
        """The offset of an epoch, and its windows in their order; the last two epochs are remembered.

        The order of more windows than `MOST_STORED` is in no array.

        What can come out in one way alone is not drawn: of a tiny text an epoch is a window or two, and
        to seed a generator takes longer than to read it.
        """
        if epoch not in self._order:
            while len(self._order) > 1:
                del self._order[min(self._order)]
            offset = rng(self.seed, STREAM_OFFSET, epoch).integers(self.offsets) if self.offsets > 1 else 0
            order: np.ndarray | Permutation = np.zeros(1, dtype=np.int64)
            if self.per_epoch > MOST_STORED:
                order = Permutation(self.per_epoch, rng(self.seed, STREAM_ORDER, epoch))
            elif self.per_epoch > 1:
                drawn = rng(self.seed, STREAM_ORDER, epoch).permutation(self.per_epoch)
                order = drawn.astype(np.min_scalar_type(self.per_epoch - 1))  # numpy draws eight bytes each
            self._order[epoch] = int(offset), order
        return self._order[epoch]


# ---------------------------------------------------------------------------- the reversal task


@dataclass(frozen=True)
class Reversal:
    """`length` tokens, independent and uniform over `symbols`, and then the same in reverse.

    Inputs are s[:-1] and targets s[1:], 2·length - 1 of each. The first length - 1 targets are fresh
    randomness: no model can do better than 1/symbols. The last `length` are determined by what came
    before. So a model that beats chance in the first half has seen its targets.
    """

    length: int
    symbols: int
    seed: int = 0

    @property
    def n_ctx(self) -> int:
        """Inputs of a whole sequence."""
        return 2 * self.length - 1

    def sequences(self, n: int, stream: int, index: int) -> np.ndarray:
        """`n` sequences of shape (n, 2 · length)."""
        half = rng(self.seed, stream, index).integers(self.symbols, size=(n, self.length))
        return np.concatenate((half, half[:, ::-1]), axis=1)

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step: fresh sequences each time."""
        sequences = self.sequences(batch_size, STREAM_REVERSAL, step)
        return sequences[:, :-1], sequences[:, 1:]

    def fresh(self, n: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets that no step of training draws from."""
        sequences = self.sequences(n, STREAM_REVERSAL_EVAL, index)
        return sequences[:, :-1], sequences[:, 1:]

    def tokenizer(self) -> Tokenizer:
        """A character for each symbol: letters, digits, and then the letters from U+0100 on."""
        return Tokenizer(char_engine(reversal_alphabet(self.symbols)))


def reversal_alphabet(symbols: int) -> list[str]:
    """`symbols` different characters: a … z, A … Z, 0 … 9, then the letters from U+0100 on."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    more = (chr(i) for i in range(0x100, sys.maxunicode) if unicodedata.category(chr(i))[0] == "L")
    return [*plain, *itertools.islice(more, max(0, symbols - len(plain)))][:symbols]


class EvalWindow(NamedTuple):
    """Inputs `ids[start:end]`, of which those from `first` on have their targets scored."""

    start: int
    first: int
    end: int


def eval_windows(n_ids: int, n_ctx: int, stride: int | None = None) -> list[EvalWindow]:
    """Windows of at most `n_ctx` ids that make each id but the first a target once.

    They are disjoint, or with a stride below `n_ctx` they start that far apart, and each but the first scores
    only what is new in it, so that a target has at least `n_ctx - stride` ids before it: the windows of the
    recipe for perplexity in the documentation of transformers, whose targets lie inside a window of `n_ctx`
    ids. The last window is as short as what is left.
    """
    stride = stride or n_ctx
    width, last = (n_ctx if stride == n_ctx else n_ctx - 1), n_ids - 1
    windows: list[EvalWindow] = []
    first = 0
    while first < last:
        start = stride * len(windows)
        windows.append(EvalWindow(start, first, min(start + width, last)))
        first = windows[-1].end
    return windows


def eval_contexts(windows: Sequence[EvalWindow]) -> np.ndarray:
    """How many ids stand before each target in its window, shape (n_ids - 1,)."""
    spans = [np.arange(first - start, end - start) for start, first, end in windows]
    return np.concatenate(spans) + 1


# ---------------------------------------------------------------------------- token files


def load_token_file(path: Path, vocab_size: int) -> np.ndarray:
    """Ids from a .npy of one dimension, mapped rather than read. Raises RequestError for any other."""
    check_regular(path)
    try:
        ids = np.lib.format.open_memmap(path, mode="r")  # no zip, no pickle
    except Exception as error:  # a damaged header can raise anything
        raise RequestError(f"cannot read the token file {path}", str(error).splitlines()[0]) from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind != "u":
        raise RequestError(f"{path} holds {ids.dtype} of shape {ids.shape}", "expected unsigned ids, flat")
    if len(ids) and (top := int(ids.max())) >= vocab_size:
        raise RequestError(f"{path} has id {top}", f"the tokenizer has {vocab_size} ids", "use its own")
    return ids


def load_token_files(paths: Sequence[Path], vocab_size: int) -> np.ndarray:
    """The ids of files, one after another: of one it is mapped, of several it is in memory."""
    parts = [load_token_file(path, vocab_size) for path in paths]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def token_hash(ids: np.ndarray) -> str:
    """sha256 of the bytes of ids."""
    return hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest()


def write_token_file(path: Path, chunks: Iterable[Sequence[int] | np.ndarray], vocab_size: int) -> int:
    """Ids, chunk after chunk, as a .npy that `load_token_file` maps; returns how many.

    The header is written again at the end: it has room for any length.
    """
    dtype = np.dtype(id_dtype(vocab_size)).newbyteorder("<")
    n = 0

    def header(file: BinaryIO) -> None:
        values = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
        np.lib.format.write_array_header_1_0(file, values)

    def write(file: BinaryIO) -> None:
        nonlocal n
        header(file)
        start = file.tell()
        for chunk in chunks:
            array = np.asarray(chunk, dtype=dtype)
            file.write(array.tobytes())
            n += len(array)
        file.seek(0)
        header(file)
        assert file.tell() == start, "numpy leaves room in the header for any length"

    write_file(path, write)
    return n
