"""A folder of ids: what `tokenize --out DIR/` writes of a corpus larger than memory, and `train` maps.

    tokens/
      index.json            what they are of, how many, hashes; how far it is, while it is being written
      tokenizer.json        what they mean; tokenizer_config.json names its end token
      ids-00000.npy  …      the ids, unsigned, as many in each but the last
      ends-00000.npy …      where in those documents end: after the token that ends one

What is read may come from anyone: the names of the files are not in the index, sizes are bounded and
verified, nothing is unpickled, and every id that is used is compared with the vocabulary.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tformer.errors import RequestError
from tformer.files import read_json
from tformer.text.tokenizer import Tokenizer, id_dtype

IDS_INDEX = "index.json"
IDS_FORMAT = "tformer ids 1"
SHARD = 1 << 25  # ids of a file
MOST_IDS_OF_A_SHARD = 1 << 30
VERIFIED = 1 << 28  # ids up to which all are read and hashed when a folder is opened
DAMAGED_IDS = "tokenize the text again with --overwrite, or into another folder"

Count = Annotated[int, Field(ge=0, lt=1 << 60)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Shard(_Part):
    """How much is in a pair of files, and the sha256 of the ids and of the ends in them."""

    tokens: Annotated[int, Field(gt=0, le=MOST_IDS_OF_A_SHARD)]
    sha256: Sha256
    documents: Count
    ends_sha256: Sha256


class Read(_Part):
    """So many blocks of the text, what is in them, and the sha256 of their text."""

    blocks: Count = 0
    tokens: Count = 0
    documents: Count = 0
    bytes: Count = 0
    characters: Count = 0
    text_sha256: Sha256 | None = None


class BigSource(_Part):
    """A file that was read: its name as it was given, its bytes if they are known."""

    name: str
    bytes: int | None


class OfTokenizer(_Part):
    """Which tokenizer it was."""

    kind: str
    size: Annotated[int, Field(gt=0, le=1 << 24)]
    sha256: Sha256
    end_id: Count | None


class IdsIndex(_Part):
    """`index.json`. `read` is what the files hold together, once it is complete; until then, what is safe."""

    format: str
    complete: bool
    tokenizer: OfTokenizer
    documents: Annotated[str, Field(min_length=1)]  # what one is: `data.documents`, settled
    field: Annotated[str, Field(min_length=1)]
    sources: list[BigSource]
    shard_tokens: Annotated[int, Field(gt=0, le=MOST_IDS_OF_A_SHARD)]
    read: Read
    sha256: Sha256 | None = None  # of all ids, one after another
    shards: list[Shard] = []

    @property
    def n_ids(self) -> int:
        """In all files."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def n_documents(self) -> int:
        """That end in them."""
        return sum(shard.documents for shard in self.shards)


def is_token_folder(name: str | Path) -> bool:
    """Whether a path is a folder of ids, by its index."""
    folder = Path(name)
    others = (folder / "tokenizer.json", ids_file(folder, 0))
    return os.path.isfile(folder / IDS_INDEX) and any(map(os.path.isfile, others))


def ids_file(folder: Path, i: int) -> Path:
    """The ids of a shard."""
    return folder / f"ids-{i:05d}.npy"


def ends_file(folder: Path, i: int) -> Path:
    """Where documents end in it."""
    return folder / f"ends-{i:05d}.npy"


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """By which a tokenizer is known."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def array_sha256(array: np.ndarray) -> str:
    """sha256 of the bytes of an array, little-endian as they lie in a file."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).data).hexdigest()


def read_index(folder: Path) -> IdsIndex:
    """The index of a folder. Raises RequestError for one that is none, or contradicts itself."""
    path = folder / IDS_INDEX
    values = read_json(path)
    if values.get("format") != IDS_FORMAT:
        found = str(values.get("format"))[:60]
        raise RequestError(
            f"{path} is no index of ids", f"expected format {IDS_FORMAT!r}, found {found!r}", DAMAGED_IDS
        )
    try:
        index = IdsIndex.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RequestError(f"{path}: {where}", first["msg"], DAMAGED_IDS) from None
    sizes = [shard.tokens for shard in index.shards]
    if any(size != index.shard_tokens for size in sizes[:-1]) or (sizes and sizes[-1] > index.shard_tokens):
        raise RequestError(
            f"{path}: shards", f"expected {index.shard_tokens:,} ids in all but the last", DAMAGED_IDS
        )
    if any(shard.documents > shard.tokens for shard in index.shards):
        raise RequestError(f"{path}: shards", "more documents than ids", DAMAGED_IDS)
    if index.complete and (index.read.tokens, index.read.documents) != (index.n_ids, index.n_documents):
        found = f"{index.read.tokens:,} tokens, and {index.n_ids:,} in its shards"
        raise RequestError(f"{path} contradicts itself", found, DAMAGED_IDS)
    if index.tokenizer.end_id is not None and index.tokenizer.end_id >= index.tokenizer.size:
        raise RequestError(f"{path}: tokenizer.end_id", "expected an id of its vocabulary", DAMAGED_IDS)
    if index.tokenizer.end_id is None and (n := index.read.documents or index.n_documents):
        found = f"expected the id that ends {n:,} documents, found none"
        raise RequestError(f"{path}: tokenizer.end_id", found, DAMAGED_IDS)
    return index


def map_array(path: Path, dtype: Any, n: int) -> np.ndarray:
    """A .npy of `n` numbers, mapped. Raises RequestError for any other, and for what is a link."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise RequestError(f"{path} is no regular file", "expected a token file", DAMAGED_IDS)
        array = np.lib.format.open_memmap(path, mode="r")  # no zip, no pickle
    except RequestError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0], DAMAGED_IDS) from None
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.shape != (n,):
        found = f"{array.dtype} of shape {array.shape}"
        raise RequestError(
            f"{path} is not what the index says", f"found {found}, expected {n:,}", DAMAGED_IDS
        )
    return array


# ---------------------------------------------------------------------------- read


@dataclass(frozen=True)
class IdView:
    """Parts of mapped files as one array of ids: of a slice or of places it gives an array in memory.

    `starts` and `stops` are the parts, in the ids of all files. An id that the vocabulary lacks is refused
    where it is read.
    """

    files: Sequence[np.ndarray]
    vocab_size: int
    name: str
    starts: np.ndarray
    stops: np.ndarray

    @cached_property
    def edges(self) -> np.ndarray:
        """Where in the view each part begins; the last is its length."""
        return np.concatenate(([0], np.cumsum(self.stops - self.starts)))

    @cached_property
    def file_edges(self) -> np.ndarray:
        """Where in all ids each file begins; the last is how many there are."""
        return np.cumsum([0, *(len(file) for file in self.files)])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ids."""
        return self.files[0].dtype

    def __len__(self) -> int:
        return int(self.edges[-1])

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            assert step == 1
            return self._checked(self._slice(start, max(start, stop)))
        places = np.asarray(key)
        part = np.searchsorted(self.edges, places.ravel(), side="right") - 1
        at = places.ravel() - self.edges[part] + self.starts[part]
        of = np.searchsorted(self.file_edges, at, side="right") - 1
        found = np.empty(len(at), dtype=self.dtype)
        for i in np.unique(of):
            here = of == i
            found[here] = self.files[i][at[here] - self.file_edges[i]]
        return self._checked(found).reshape(places.shape)

    def _slice(self, start: int, stop: int) -> np.ndarray:
        found = np.empty(stop - start, dtype=self.dtype)
        part, at = int(np.searchsorted(self.edges, start, side="right")) - 1, start
        while at < stop:
            first = int(self.starts[part]) + at - int(self.edges[part])
            last = first + min(stop, int(self.edges[part + 1])) - at
            i, low = int(np.searchsorted(self.file_edges, first, side="right")) - 1, first
            while low < last:
                begin, high = int(self.file_edges[i]), min(last, int(self.file_edges[i + 1]))
                to = at - start + low - first
                found[to : to + high - low] = self.files[i][low - begin : high - begin]
                i, low = i + 1, high
            part, at = part + 1, at + last - first
        return found

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if ids.size and (top := int(ids.max())) >= self.vocab_size:
            found = f"the tokenizer has {self.vocab_size} ids"
            raise RequestError(f"{self.name} has id {top}", found, DAMAGED_IDS)
        return ids

    def part(self, start: int, stop: int) -> "IdView":
        """A part of a view that is whole: one part from 0 on."""
        assert len(self.starts) == 1 and self.starts[0] == 0
        return self.of(np.array([start]), np.array([stop]))

    def of(self, starts: np.ndarray, stops: np.ndarray) -> "IdView":
        """Other parts of the same files; empty ones are left out."""
        kept = stops > starts
        return IdView(self.files, self.vocab_size, self.name, starts[kept], stops[kept])


@dataclass(frozen=True)
class TokenFolder:
    """A folder of ids that is whole: its index, its ids, and where documents end."""

    path: Path
    index: IdsIndex
    ids: IdView
    ends_files: Sequence[np.ndarray]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """That of the ids. Raises RequestError where it is not the one that the index names."""
        tokenizer = Tokenizer.load(self.path)
        found, said = tokenizer_sha256(tokenizer), self.index.tokenizer
        if found != said.sha256 or tokenizer.vocab_size != said.size or tokenizer.end_id != said.end_id:
            raise RequestError(
                f"{self.path / 'tokenizer.json'} is not the one that the ids are of",
                f"sha256 {found[:12]}…, the index says {said.sha256[:12]}…",
                f"put it back, or {DAMAGED_IDS}",
            )
        return tokenizer

    @cached_property
    def document_edges(self) -> np.ndarray:
        """How many documents end before each file; the last is how many there are."""
        return np.cumsum([0, *(len(ends) for ends in self.ends_files)])

    def ends(self, documents: np.ndarray) -> np.ndarray:
        """Where some documents end in all ids, after their token; of -1, where the first one begins.

        Raises RequestError for ends that are none.
        """
        of = np.searchsorted(self.document_edges, documents, side="right") - 1
        found = np.ones(len(documents), dtype=np.int64)  # after the token before the first
        for i in np.unique(of[documents >= 0]):
            here = (of == i) & (documents >= 0)
            local = self.ends_files[i][documents[here] - self.document_edges[i]].astype(np.int64)
            if ((local < 1) | (local > self.index.shards[i].tokens)).any():
                raise RequestError(
                    f"{ends_file(self.path, int(i))} has places outside its ids", "", DAMAGED_IDS
                )
            found[here] = local + i * self.index.shard_tokens
        return found


def open_token_folder(path: Path) -> TokenFolder:
    """A folder of ids, mapped. Up to `VERIFIED` ids are read once and verified; of more, the sizes are.

    Raises RequestError where it is not whole.
    """
    index = read_index(path)
    if not index.complete:
        raise RequestError(
            f"{path} is not whole yet",
            f"{index.n_ids:,} ids of {index.read.bytes:,} bytes of text are there",
            "go on with the same tformer tokenize … --out that began it",
        )
    if not index.shards:
        raise RequestError(f"{path} has no ids", "expected some", DAMAGED_IDS)
    if index.n_ids <= VERIFIED:
        verify(path, index)
    files = [map_ids(path, index, i) for i in range(len(index.shards))]
    ends = [map_ends(path, index, i) for i in range(len(index.shards))]
    every = np.array([0]), np.array([index.n_ids])
    return TokenFolder(path, index, IdView(files, index.tokenizer.size, str(path), *every), ends)


def map_ids(path: Path, index: IdsIndex, i: int) -> np.ndarray:
    """The ids of a shard, mapped. Raises RequestError where they are not what the index says."""
    dtype = np.dtype(id_dtype(index.tokenizer.size)).newbyteorder("<")
    return map_array(ids_file(path, i), dtype, index.shards[i].tokens)


def map_ends(path: Path, index: IdsIndex, i: int) -> np.ndarray:
    """Where documents end in a shard, mapped. Raises RequestError as `map_ids` does."""
    return map_array(ends_file(path, i), "<u4", index.shards[i].documents)


def verify(path: Path, index: IdsIndex) -> Any:
    """Read all that the index lists, a shard at a time; what the ids of it are, as a running hash.

    Raises RequestError for a file that is not what was written.
    """
    whole = hashlib.sha256()
    for i, shard in enumerate(index.shards):
        ids = map_ids(path, index, i)  # the shard before is no longer mapped
        whole.update(ids.data)
        for file, found, said in (
            (ids_file(path, i), array_sha256(ids), shard.sha256),
            (ends_file(path, i), array_sha256(map_ends(path, index, i)), shard.ends_sha256),
        ):
            if found != said:
                what = f"{file} is damaged"
                raise RequestError(what, f"sha256 {found[:12]}…, the index says {said[:12]}…", DAMAGED_IDS)
    if index.complete and whole.hexdigest() != index.sha256:
        raise RequestError(f"{path / IDS_INDEX}: sha256", "it is not that of the ids", DAMAGED_IDS)
    return whole
