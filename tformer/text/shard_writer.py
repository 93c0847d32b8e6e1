"""Writing a folder of ids, file after file, so that it can be ended at any moment and goes on where it was.

A file of ids is written whole, then the index that lists it. Whoever goes on reads the text again from its
start, which takes a fraction of the time to encode it, and so knows that it is the same text.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.files import write_file, write_json
from tformer.text.blocks import TextBlock
from tformer.text.shards import (
    IDS_INDEX,
    BigSource,
    IdsIndex,
    OfTokenizer,
    Read,
    Shard,
    array_sha256,
    ends_file,
    ids_file,
    verify,
)
from tformer.text.tokenizer import id_dtype
from tformer.text.workers import EncodedBlock

DIFFERENT = "give another folder, or --overwrite to begin again"


@dataclass
class ShardWriter:
    """What is known of a folder that is being written. `index` is that of the file, or a new one."""

    folder: Path
    index: IdsIndex
    _ids: list[np.ndarray] = field(default_factory=list)  # of the file to come, and a little more
    _ends: list[np.ndarray] = field(default_factory=list)  # in them
    _held: int = 0
    _sha256: Any = field(default_factory=hashlib.sha256)  # of all ids that are written
    _hashes: deque[str] = field(default_factory=deque)  # of the text up to each block that is being encoded

    def __post_init__(self) -> None:
        self.dtype = np.dtype(id_dtype(self.index.tokenizer.size)).newbyteorder("<")
        if self.index.shards:
            self._sha256 = verify(self.folder, self.index)
        self.read = self.index.read  # of all blocks that were taken
        self.skipped = self.index.n_ids - self.read.tokens  # ids of the next block that are there
        self.skipped_ends = self.index.n_documents - self.read.documents

    def remaining(self, blocks: Iterable[TextBlock]) -> Iterator[TextBlock]:
        """The blocks that are not in the files yet; those that are, are compared with what they were.

        Raises RequestError where it is another text.
        """
        said, seen, n = self.index.read, RunningText(), 0
        for block in blocks:
            if n == said.blocks and n:
                self._check_same(seen)
            seen.update(block)
            n += 1
            if n > said.blocks:
                self._hashes.append(seen.sha256.hexdigest())
                yield block
        if n < said.blocks:
            raise RequestError(
                f"{self.folder} was begun with a longer text",
                f"it ends after {seen.n_bytes:,} bytes, of which {said.bytes:,} have been encoded",
                DIFFERENT,
            )
        if n == said.blocks and n:
            self._check_same(seen)

    def _check_same(self, seen: "RunningText") -> None:
        said = self.index.read
        if seen.sha256.hexdigest() != said.text_sha256:
            found = f"the first {said.bytes:,} bytes, which have been encoded, are others"
            raise RequestError(f"{self.folder} was begun with another text", found, DIFFERENT)

    def begin(self, end_id: int | None) -> None:
        """The token before the first document, of a folder that is new."""
        if end_id is not None and not self.index.shards and not self.read.blocks:
            self._take(np.array([end_id], dtype=self.dtype), np.zeros(0, dtype=np.int64))
            self.read = self.read.model_copy(update={"tokens": 1})

    def add(self, encoded: EncodedBlock) -> None:
        """The ids of the next block of those that remain."""
        ids, ends = encoded.ids[self.skipped :], encoded.ends[self.skipped_ends :] - self.skipped
        self.skipped = self.skipped_ends = 0
        before = self.read
        after = Read(
            blocks=before.blocks + 1,
            tokens=before.tokens + len(encoded.ids),
            documents=before.documents + len(encoded.ends),
            bytes=before.bytes + encoded.n_bytes,
            characters=before.characters + encoded.n_characters,
            text_sha256=self._hashes.popleft(),
        )
        self._take(ids, ends)
        # The last id may still be taken away: what is written is less than what is held.
        while self._held > self.index.shard_tokens:
            self._write(self.index.shard_tokens)
            self.index = self.index.model_copy(update={"read": before})
            self.write_index()
        self.read = after

    def _take(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self._ids.append(ids.astype(self.dtype, copy=False))
        self._ends.append(ends + self._held)
        self._held += len(ids)

    def _write(self, n: int) -> None:
        """The first `n` ids that are held, as a file; the index, as it is here, lists it."""
        ids, ends = np.concatenate(self._ids), np.concatenate(self._ends)
        here = ends[ends <= n].astype("<u4")
        i = len(self.index.shards)
        write_array(ends_file(self.folder, i), here)
        write_array(ids_file(self.folder, i), ids[:n])
        self._sha256.update(np.ascontiguousarray(ids[:n]).data)
        shard = Shard(
            tokens=n,
            sha256=array_sha256(ids[:n]),
            documents=len(here),
            ends_sha256=array_sha256(here),
        )
        self._ids, self._ends, self._held = [ids[n:].copy()], [ends[ends > n] - n], len(ids) - n
        self.index = self.index.model_copy(update={"shards": [*self.index.shards, shard]})

    def write_index(self) -> None:
        """The index as it is: what it says is on the disk."""
        write_json(self.folder / IDS_INDEX, self.index.model_dump())

    def finish(self) -> IdsIndex:
        """What is left, as the last file, and the index of a folder that is whole.

        A text that is one document has no end that could be learned, and none is left there.
        """
        if self.read.tokens <= (self.index.documents != "none"):
            raise RequestError("the text is empty", "expected text")
        if self.read.documents == 1:
            self._ids.append(np.concatenate(self._ids)[:-1])
            self._ids, self._held = self._ids[-1:], self._held - 1
            self._ends = [np.zeros(0, dtype=np.int64)]
            self.read = self.read.model_copy(update={"tokens": self.read.tokens - 1, "documents": 0})
        if self._held:
            self._write(self._held)
        done = {"complete": True, "read": self.read, "sha256": self._sha256.hexdigest()}
        self.index = self.index.model_copy(update=done)
        assert self.index.n_ids == self.read.tokens, "every id is in a file"
        self.write_index()
        return self.index


class RunningText:
    """The sha256 of blocks that were read, and how many bytes they have."""

    def __init__(self) -> None:
        self.sha256, self.n_bytes = hashlib.sha256(), 0

    def update(self, block: TextBlock) -> None:
        """The next block."""
        self.sha256.update(f"{block.how}\0{block.closes}\0{len(block.texts)}\0".encode())
        for text in block.texts:
            raw = text.encode()
            self.sha256.update(len(raw).to_bytes(8, "little"))
            self.sha256.update(raw)
            self.n_bytes += len(raw)


def write_array(path: Path, array: np.ndarray) -> None:
    """A flat array as a .npy. Raises TformerError where the system refuses."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)

    write_file(path, write)


def checked_same(index: IdsIndex, wanted: IdsIndex, folder: Path) -> None:
    """Raises RequestError, saying what differs, where a folder was begun with something else."""
    differences = [
        (name, _shown(one), _shown(other))
        for name, one, other in (
            ("tokenizer", index.tokenizer, wanted.tokenizer),
            ("--documents", index.documents, wanted.documents),
            ("--field", index.field, wanted.field),
        )
        if one != other
    ]
    old, new = index.sources, wanted.sources
    differences += [("text", _shown(a), _shown(b)) for a, b in zip(old, new, strict=False) if a != b]
    if len(old) != len(new):
        differences.append(("text", counted(len(old), "file"), f"{len(new):,}"))
    if differences:
        name, was, now = differences[0]
        raise RequestError(f"{folder} was begun with another {name}", f"{was}, now {now}", DIFFERENT)


def _shown(value: OfTokenizer | BigSource | str) -> str:
    if isinstance(value, OfTokenizer):
        return f"{value.kind} of {value.size:,}, sha256 {value.sha256[:12]}…"
    if isinstance(value, BigSource):
        return value.name if value.bytes is None else f"{value.name} of {value.bytes:,} bytes"
    return repr(value)
