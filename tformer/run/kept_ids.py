"""The ids of a run's text beside its checkpoints: --resume and `eval` do not encode it again.

A file has the name of its key: the hashes of text and tokenizer, which part of the text it is, and the
versions of what encodes. What it holds is verified by its own sha256; what does not fit is as good as not
there, and is made again. A safetensors file with one tensor, `ids`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tokenizers

from tformer import __version__
from tformer.errors import TformerError
from tformer.files import write_file
from tformer.progress import Progress, silent
from tformer.text.corpus import Corpus
from tformer.text.data import documents, slices
from tformer.text.tokenizer import Tokenizer, UnknownCharacterError, id_dtype

LONG = 1 << 20  # characters of a part that is kept: a shorter one is encoded in about a second
DTYPES = {"U16": np.uint16, "U32": np.uint32}
MOST_HEADER = 1 << 16  # bytes
TOLD_EVERY = 1 << 18  # characters that are encoded
LAYOUT = "2"


def key_of(tokenizer: Tokenizer, corpus: Corpus, start: int, stop: int, end_of_text: bool) -> str:
    """What the ids of a part of a text depend on, as a hash."""
    digest = hashlib.sha256()
    for piece in slices(corpus.text, start, stop):  # what was read of the files may be a field of them
        digest.update(piece.encode(errors="surrogatepass"))
    made_by = (LAYOUT, __version__, tokenizers.__version__)
    ends = hashlib.sha256(np.ascontiguousarray(corpus.ends, dtype=np.int64).data).hexdigest()
    parts = (made_by, tokenizer.to_json(), digest.hexdigest(), ends, start, stop, end_of_text)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class KeptIds:
    """Ids that are kept in a folder, `checkpoints/` of a run, and those that are to be."""

    folder: Path
    wanted: dict[str, np.ndarray] = field(default_factory=dict)  # by key: what was asked for
    made: set[str] = field(default_factory=set)  # keys that no file had

    def ids(self, key: str, vocab_size: int, encode: Callable[[], np.ndarray]) -> np.ndarray:
        """The ids of a key: those that are kept, or where there are none such, new ones."""
        found = _read(self.folder / _name(key), key, vocab_size)
        if found is None:
            self.made.add(key)
            found = encode()
        self.wanted[key] = found
        return found

    @property
    def n_bytes(self) -> int:
        """Of the files of all that was asked for."""
        return sum(len(_header(key, ids)) + ids.nbytes for key, ids in self.wanted.items())

    def write(self, folder: Path, spare: int) -> None:
        """Keep what was asked for in `folder`, and there nothing else, where `spare` bytes are left then.

        It does without where the system refuses: nothing of a run depends on it.
        """
        names = {_name(key) for key in self.wanted}
        with suppress(OSError, TformerError):
            for old in folder.glob(_name("*")):
                if old.name not in names:
                    old.unlink()
            for key, ids in self.wanted.items():
                path = folder / _name(key)
                lacking = key in self.made or not path.exists()
                if lacking and shutil.disk_usage(folder).free > ids.nbytes + spare:
                    write_file(path, lambda file, key=key, ids=ids: _write(file, key, ids))  # type: ignore[misc]
                    self.made.discard(key)


def _name(key: str) -> str:
    return f"ids-{key[:16]}.safetensors"


def _header(key: str, ids: np.ndarray) -> bytes:
    dtype = next(name for name, known in DTYPES.items() if ids.dtype == known)
    header = {
        "__metadata__": {"key": key, "sha256": hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest()},
        "ids": {"dtype": dtype, "shape": [len(ids)], "data_offsets": [0, ids.nbytes]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, key: str, ids: np.ndarray) -> None:
    file.write(_header(key, ids))
    file.write(np.ascontiguousarray(ids).data)


def _read(path: Path, key: str, vocab_size: int) -> np.ndarray | None:
    """The ids of a file; None where it is not one of this key, or not whole."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER:
                return None
            header = json.loads(file.read(size))
            said, tensor = header["__metadata__"], header["ids"]
            dtype, (n,) = DTYPES[tensor["dtype"]], tensor["shape"]
            n_bytes = path.stat().st_size - 8 - size
            if said["key"] != key or dtype != id_dtype(vocab_size) or n * np.dtype(dtype).itemsize != n_bytes:
                return None
            data = bytearray(n_bytes)
            if file.readinto(data) != n_bytes:
                return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        return None
    ids = np.frombuffer(data, dtype)
    return ids if n and int(ids.max()) < vocab_size else None


@dataclass
class _Told:
    """Pieces of a text as they are read, told of now and then."""

    tell: Progress
    total: int
    done: int = 0
    told: int = 0

    def of(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            yield piece
            self.done += len(piece)
            if self.done - self.told >= TOLD_EVERY:
                self.told = self.done
                self.tell(self.done, self.total)


def text_ids(
    tokenizer: Tokenizer,
    corpus: Corpus,
    start: int,
    stop: int,
    end_of_text: bool,
    kept: KeptIds | None = None,
    tell: Progress = silent,
) -> np.ndarray:
    """The ids of a text from one character to another, with the token between its documents if wanted.

    Those that are `kept` are taken, and those of a long part are to be; `tell` hears of characters as they
    are encoded. Raises RequestError, with file, line and column, for a character that the vocabulary lacks.
    """
    if kept and stop - start >= LONG:
        key = key_of(tokenizer, corpus, start, stop, end_of_text)
        part = (tokenizer, corpus, start, stop, end_of_text)
        return kept.ids(key, tokenizer.vocab_size, lambda: text_ids(*part, tell=tell))
    follow = _Told(tell, stop - start).of
    try:
        if not end_of_text or tokenizer.end_id is None:
            return tokenizer.encode_array(follow(slices(corpus.text, start, stop)))
        found = documents(corpus.text, corpus.ends, start, stop)
        return tokenizer.encode_documents(replace(one, pieces=follow(one.pieces)) for one in found)
    except UnknownCharacterError as error:
        raise error.at(corpus.place(error.character)) from None
