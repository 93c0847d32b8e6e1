"""`tformer tokenize --out DIR/`: a text that is larger than memory into a folder of ids that `train` maps."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tformer.commands.options import print_json
from tformer.counted import counted
from tformer.errors import RequestError, harmless
from tformer.files import cannot_write, write_file, write_json
from tformer.temporary import lock

if TYPE_CHECKING:
    from tformer.text.blocks import BigFile, TextBlock
    from tformer.text.shards import IdsIndex
    from tformer.text.tokenizer import Tokenizer

OF_A_TOKEN_FOLDER = ("ids-*.npy", "ends-*.npy", "index.json", "tokenizer.json", "tokenizer_config.json")


def is_folder(out: str) -> bool:
    """Whether --out names a folder: one that is there, or a name that ends in a slash."""
    return out.endswith(("/", os.sep)) or os.path.isdir(out)


def write_shards(
    names: list[str],
    field: str,
    documents: str | None,
    tokenizer: "Tokenizer",
    folder: Path,
    overwrite: bool,
    processes: int | None,
    json: bool,
) -> None:
    """Encode the texts into a folder, or go on where that was ended."""
    from tformer.show.progress import bytes_progress
    from tformer.text.blocks import BigText, big_files, text_size
    from tformer.text.documents import AUTO
    from tformer.text.shard_writer import ShardWriter
    from tformer.text.workers import encode_blocks, n_processors

    files, folders = big_files(names)
    how = documents or (AUTO if tokenizer.end_id is not None else "none")
    with bytes_progress(f"tokenizing into {folder}", text_size(files)) as tell, _alone(folder):
        cuts = tokenizer.cuts_safely or tokenizer.kind == "char"  # of which every token is a character
        text = BigText(files, field, how, cuts, tell)
        index = _index(tokenizer, text.how, field, files)
        before = _begun(folder, index, overwrite)
        if before and before.complete:
            _tell(folder, before, json, "was whole already")
            return
        if documents is None and text.how != "none":
            what = {"file": "files or rows", "line": "lines"}.get(text.how, f"between lines {text.how!r}")
            print(harmless(f"documents: {what}; otherwise: --documents"), file=sys.stderr)
        if not before:
            _put_tokenizer(folder, tokenizer)
        writer = ShardWriter(folder, before or index)
        if before:
            done = f"{before.n_ids:,} ids of {before.read.bytes:,} bytes are there"
            print(harmless(f"going on in {folder}: {done}"), file=sys.stderr)
        else:
            writer.write_index()
        writer.begin(tokenizer.end_id if text.how != "none" else None)
        blocks = writer.remaining(text.blocks())
        if before:
            blocks = _once_begun(blocks, tell.from_here)
        for encoded in encode_blocks(folder, blocks, processes or n_processors()):
            writer.add(encoded)
        for note in text.notes(folders):
            print(harmless(note), file=sys.stderr)
        _tell(folder, writer.finish(), json)


def _once_begun(blocks: "Iterable[TextBlock]", begin: Callable[[], None]) -> "Iterator[TextBlock]":
    """The same; `begin` is called when the first of them is there."""
    for n, block in enumerate(blocks):
        if n == 0:
            begin()
        yield block


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder, made if it is not there, for this process alone while the block runs."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise RequestError(f"{folder} is a file", "expected a folder to write ids in", "give another --out")
    try:
        folder.mkdir(exist_ok=True)
        descriptor = lock(folder)
    except BlockingIOError:
        raise RequestError(f"{folder} is being written", "another process does", "wait for it") from None
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _index(tokenizer: "Tokenizer", how: str, field: str, files: "list[BigFile]") -> "IdsIndex":
    from tformer.text.shards import (
        IDS_FORMAT,
        SHARD,
        BigSource,
        IdsIndex,
        OfTokenizer,
        Read,
        tokenizer_sha256,
    )

    return IdsIndex(
        format=IDS_FORMAT,
        complete=False,
        tokenizer=OfTokenizer(
            kind=tokenizer.kind,
            size=tokenizer.vocab_size,
            sha256=tokenizer_sha256(tokenizer),
            end_id=tokenizer.end_id,
        ),
        documents=how,
        field=field,
        sources=[BigSource(name=file.label, bytes=file.size) for file in files],
        shard_tokens=SHARD,
        read=Read(),
    )


def _begun(folder: Path, wanted: "IdsIndex", overwrite: bool) -> "IdsIndex | None":
    """The index of a folder that goes on; None for one that is new.

    Raises RequestError for a folder of something else, and where it was begun with something else.
    """
    from tformer.text.shard_writer import checked_same
    from tformer.text.shards import IDS_INDEX, read_index

    named = {path for pattern in OF_A_TOKEN_FOLDER for path in folder.glob(pattern)}
    ours = {path for path in named if path.is_symlink() or not path.is_dir()}
    others = [path for path in folder.iterdir() if path not in ours and not path.name.startswith(".tmp-")]
    if others:
        found = f"{others[0].name} is in it"
        raise RequestError(f"{folder} is no folder of ids alone", found, "give another --out")
    if overwrite:
        for path in sorted(ours, key=lambda path: path.name != IDS_INDEX):  # it is none any more from here on
            path.unlink()
        return None
    if not (folder / IDS_INDEX).exists():
        return None
    index = read_index(folder)
    if not index.shards and not index.read.blocks:  # nothing is in it that could be of something else
        return None
    checked_same(index, wanted, folder)
    return index


def _put_tokenizer(folder: Path, tokenizer: "Tokenizer") -> None:
    write_file(folder / "tokenizer.json", tokenizer.to_json().encode())
    end = None if tokenizer.end_id is None else tokenizer.engine.id_to_token(tokenizer.end_id)
    splits = {"split_special_tokens": True} if tokenizer.engine.encode_special_tokens else {}
    write_json(folder / "tokenizer_config.json", {"eos_token": end, **splits})


def _tell(folder: Path, index: "IdsIndex", json: bool, how: str = "") -> None:
    read, shards = index.read, len(index.shards)
    if json:
        counts = {"tokens": read.tokens, "documents": read.documents, "bytes": read.bytes}
        print_json({"out": str(folder), **counts, "characters": read.characters, "shards": shards})
        return
    ends = f"{counted(read.documents, 'document')}, " if read.documents else ""
    said = f"{ends}{counted(read.tokens, 'id')} of {counted(read.bytes, 'byte')}, {counted(shards, 'file')}"
    print(harmless(f"{folder}{' ' * bool(how)}{how}: {said}"), file=sys.stderr)
