"""`tformer tokenize --decode`: ids, from text or token files, back to exactly their bytes."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from tformer.commands.tokenize_documents import write_documents
from tformer.errors import RequestError, harmless

if TYPE_CHECKING:
    import numpy as np

    from tformer.text.shards import IdView
    from tformer.text.tokenizer import Tokenizer

DECODED = 1 << 16  # bytes or ids decoded at a time


def streams_of(names: Iterable[str]) -> Iterator[tuple[BinaryIO, str]]:
    """Each file that is named or in a folder, open, with what messages call it; - is standard input."""
    from tformer.text.plain import STDIN, files_of, open_file

    for name in names:
        if name == "-":
            yield sys.stdin.buffer, STDIN
            continue
        for path in files_of(Path(name)):
            with open_file(path) as stream:
                yield stream, str(path)


def decode(names: list[str], tokenizer: "Tokenizer", documents: str | None) -> None:
    """Write the bytes of ids to stdout, with what separates documents where it is said what they are.

    A folder of ids says it itself. A terminal gets no character that could do something there.
    """
    from tformer.run.token_folders import are_token_folders, open_folder_ids

    out = cast(BinaryIO, _OnTerminal()) if sys.stdout.isatty() else sys.stdout.buffer
    if are_token_folders(names):
        folders = open_folder_ids(names)
        folders.check_tokenizer(tokenizer, "leave --tokenizer out: the folder has it")
        documents, chunks = documents or folders.documents, _at_a_time(folders.ids)
    else:
        chunks = (
            ids
            for stream, label in streams_of(names)
            for ids in (_token_file_ids(label, tokenizer) if label.endswith(".npy") else _ids(stream, label))
        )
    if documents is None:
        for ids in chunks:
            out.write(tokenizer.decode_bytes(ids))
    else:
        write_documents(chunks, tokenizer, documents, out)
    out.flush()


class _OnTerminal:
    """Bytes as text for a terminal. A carriage return waits until it is known whether it ends a line."""

    def __init__(self) -> None:
        self.decoder, self.held = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""

    def write(self, raw: bytes, is_last: bool = False) -> None:
        text = self.held + self.decoder.decode(raw, final=is_last)
        self.held = "\r" if text.endswith("\r") and not is_last else ""
        sys.stdout.write(harmless(text.removesuffix(self.held)))

    def flush(self) -> None:
        self.write(b"", is_last=True)
        sys.stdout.flush()


def _token_file_ids(label: str, tokenizer: "Tokenizer") -> Iterator[list[int]]:
    from tformer.text.data import load_token_file

    return _at_a_time(load_token_file(Path(label), tokenizer.vocab_size))


def _at_a_time(ids: "np.ndarray | IdView") -> Iterator[list[int]]:
    return (ids[i : i + DECODED].tolist() for i in range(0, len(ids), DECODED))


def _ids(stream: BinaryIO, label: str) -> Iterator[list[int]]:
    """Numbers separated by white space, block after block; one cut in two by a block is put together."""
    rest = b""
    while block := stream.read(DECODED):
        words = (rest + block).split()
        if len(rest) > 20:
            _number(rest, label)
        rest = words.pop() if words and not block[-1:].isspace() else b""
        yield [_number(word, label) for word in words]
    if rest:
        yield [_number(rest, label)]


def _number(word: bytes, label: str) -> int:
    if not word.isdigit() or len(word) > 12:
        raise RequestError(f"{word[:20].decode(errors='replace')!r} in {label} is no id", "expected numbers")
    return int(word)
