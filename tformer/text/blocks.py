"""Texts of any size in blocks that can be encoded each by itself, with the ids that the whole would have.

A block is whole documents, or a stretch of one that is long; it ends where a document ends or where no token
can span. Memory is bounded by the size of a block and the longest row of a table. Knows nothing of ids.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tformer.errors import RequestError
from tformer.text.documents import AUTO, WAYS, between, check_separator, cut, has_line, suited
from tformer.text.engines import END_OF_TEXT
from tformer.text.packed import packing
from tformer.text.pieces import SAFE_CUT
from tformer.text.piped import Piped, beginning, look
from tformer.text.plain import STDIN, Folder, existing, open_file, place_in, read_folder, read_text
from tformer.text.rows import is_rows, read_rows, rows_in

BLOCK_CHARACTERS = 1 << 20  # characters of a block, about
LONG_DOCUMENT = 4 * BLOCK_CHARACTERS  # characters of a document that is cut into stretches
LOOKED_BACK = 1 << 16  # characters in which the end of a document is looked for first
BEFORE_LINE_END = re.compile(r"(?<=\w)(?=\n)")  # a safe cut that no line of its own can follow


@dataclass(frozen=True)
class TextBlock:
    """Texts that are cut into documents as `how` says, or where that is empty a stretch of one document.

    `closes`: the document of a stretch ends with it. `lines` are where the texts begin in the file `label`.
    """

    texts: tuple[str, ...]
    how: str
    closes: bool
    label: str
    lines: tuple[int, ...] = (1,)
    column: int = 1

    def documents(self) -> Iterator[str]:
        """Of a block of whole documents, these."""
        return (document for text in self.texts for document, _ in cut(text, self.how))

    def pieces(self) -> Iterator[str]:
        """Its documents, or the stretch."""
        return self.documents() if self.how else iter(self.texts)

    def place(self, character: str) -> str:
        """Where a character of it stands first: "poem.txt, line 3, column 5"; empty if nowhere."""
        for text, line in zip(self.texts, self.lines, strict=True):
            if (at := text.find(character)) >= 0:
                return place_in(text, at, self.label, line, self.column)
        return ""


@dataclass(frozen=True)
class BigFile:
    """A file that is read in blocks, or standard input (no path), and its size in bytes if that is known."""

    label: str
    path: Path | None
    size: int | None

    @property
    def text_size(self) -> int | None:
        """Bytes that are read of it; None where it is packed, or a pipe."""
        return None if self.path and packing(self.path) else self.size


def text_size(files: Iterable[BigFile]) -> int | None:
    """Bytes that are read of all; None where that is not known."""
    sizes = [file.text_size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


def big_files(names: Iterable[str]) -> tuple[list[BigFile], list[Folder]]:
    """The files that are named, and the texts of folders; and these folders, for a person."""
    files: list[BigFile] = []
    folders: list[Folder] = []
    for name in names:
        if name == "-":
            files.append(BigFile(STDIN, None, None))
            continue
        path = existing(Path(name))
        if path.is_dir():
            folders.append(read_folder(path))
        for file in folders[-1].files if path.is_dir() else [path]:
            size = os.path.getsize(file) if file.is_file() else None
            files.append(BigFile(str(file), file, size))
    return files, folders


class BigText:
    """Files as one text in blocks. `how` says what a document is; auto is settled by how the files begin.

    `tell(n)` is told of n bytes more that were read. With `cuts` off nothing is cut but between documents,
    for tokenizers whose tokens may reach anywhere.
    """

    def __init__(
        self,
        files: list[BigFile],
        field: str = "text",
        how: str = AUTO,
        cuts: bool = True,
        tell: Callable[[int], object] = lambda n: None,
    ):
        self.files, self.field, self.cuts, self.tell = files, field, cuts, tell
        self.piped = look(field) if any(file.path is None for file in files) else Piped()
        self.is_auto = how == AUTO
        self.how = END_OF_TEXT  # such lines are allowed, until it is known
        self.how = self._suited() if self.is_auto else how
        check_separator(self.how, [])
        self.n_gaps = 0  # blocks with a line that separates
        self.characters: Counter[str] = Counter()  # in the blocks, by file

    def blocks(self) -> Iterator[TextBlock]:
        """All of it, once, in order. RequestError where a file cannot be read or has not what it should."""
        plain = [file for file in self.files if not self._is_rows(file)]
        for file in self.files:
            for block in self._rows(file) if self._is_rows(file) else self._plain(file):
                self.characters[file.label] += sum(map(len, block.texts))
                yield block
        if plain and not self.n_gaps and self.how not in WAYS:
            what = f"no line of the text is {self.how[:60]!r}, and nothing else"
            raise RequestError(what, "expected the line that separates documents", "see --documents")

    def notes(self, folders: Iterable[Folder]) -> list[str]:
        """For a person, when all blocks were read: what was read of folders, and what not."""
        read = [folder.note(sum(self.characters[str(file)] for file in folder.files)) for folder in folders]
        return [*read, self.piped.note] if self.piped.note else read

    def _is_rows(self, file: BigFile) -> bool:
        return bool(self.piped.ending) if file.path is None else is_rows(file.path)

    def _suited(self) -> str:
        heads = []
        for file in self.files:
            if self._is_rows(file):
                continue
            if file.path is None:
                heads.append(beginning())
                continue
            with open_file(file.path) as stream:
                heads.append(next(read_text(stream, file.label), ""))
        return suited(heads)

    def _pieces(self, file: BigFile) -> Iterator[str]:
        with nullcontext(sys.stdin.buffer) if file.path is None else open_file(file.path) as stream:
            counted = cast(BinaryIO, _Counted(stream, self.tell))
            for piece in read_text(counted, file.label):
                if self.is_auto and self.how != END_OF_TEXT and has_line(piece, END_OF_TEXT):
                    raise RequestError(
                        f"{file.label} has a line {END_OF_TEXT}, and none near its beginning",
                        f"documents were taken to be: {self.how}",
                        f"say what one is: --documents '{END_OF_TEXT}', or --documents {self.how}",
                    )
                yield piece

    def _rows(self, file: BigFile) -> Iterator[TextBlock]:

        def update(raw: bytes) -> None:
            self.tell(len(raw))

        rows = (
            rows_in(sys.stdin.buffer, self.piped.ending, file.label, self.field, update)
            if file.path is None
            else read_rows(file.path, self.field, update)
        )
        if self.how == "none":
            yield from self._stretches((f"{row.text}\n" for row in rows), file.label)
            return
        texts: list[str] = []
        lines: list[int] = []
        size = 0
        for row in rows:
            if not row.text.strip():
                continue
            texts.append(row.text)
            lines.append(row.line)
            size += len(row.text)
            if size >= BLOCK_CHARACTERS:
                yield TextBlock(tuple(texts), "file", True, file.label, tuple(lines))
                texts, lines, size = [], [], 0
        if texts:
            yield TextBlock(tuple(texts), "file", True, file.label, tuple(lines))

    def _plain(self, file: BigFile) -> Iterator[TextBlock]:
        if self.how in ("none", "file"):
            return self._stretches(self._pieces(file), file.label)
        return self._documents(self._pieces(file), file.label)

    def _stretches(self, pieces: Iterator[str], label: str) -> Iterator[TextBlock]:
        """One document, or none that ends."""
        chunks = _chunks(pieces) if self.cuts else iter(["".join(pieces)])
        here, ahead = _Place(label), next(chunks, "")
        while ahead:
            text, ahead = ahead, next(chunks, "")
            yield here.stretch(text, closes=self.how == "file" and not ahead)
            here.after(text)

    def _documents(self, pieces: Iterator[str], label: str) -> Iterator[TextBlock]:
        """Whole documents, many at a time; of one that goes on for long, stretches."""
        here, held, inside, enough = _Place(label), "", False, BLOCK_CHARACTERS
        for piece in pieces:
            held += piece
            if len(held) < enough:
                continue
            if inside and (gap := _first_gap(held, self.how)):
                yield here.stretch(_end_cleaned(held[: gap[0]], self.how), closes=True)
                held, inside = here.after(held, gap[1]), False
                self.n_gaps += 1
            if not inside and (stop := _last_gap(held, self.how)):
                yield here.whole(held[:stop], self.how)
                held = here.after(held, stop)
                self.n_gaps += 1
            while self.cuts and len(held) > LONG_DOCUMENT:
                safe = (SAFE_CUT if self.how == "line" else BEFORE_LINE_END).search(held, BLOCK_CHARACTERS)
                if safe is None:
                    break
                begin = 0 if inside or self.how == "line" else len(held) - len(held.lstrip("\r\n"))
                here.after(held, begin)
                yield here.stretch(held[begin : safe.start()], closes=False)
                held, inside = here.after(held[begin:], safe.start() - begin), True
            # Text without a place to cut is searched again only once it has doubled.
            enough = max(BLOCK_CHARACTERS, 2 * len(held))
        if inside:
            gap = _first_gap(held, self.how, at_end=True) or (len(held), len(held))
            yield here.stretch(_end_cleaned(held[: gap[0]], self.how), closes=True)
            held = here.after(held, gap[1])
        if held:
            self.n_gaps += self.how not in WAYS and has_line(held, self.how)
            yield here.whole(held, self.how)


@dataclass
class _Place:
    """Where in a file a block begins."""

    label: str
    line: int = 1
    column: int = 1

    def whole(self, text: str, how: str) -> TextBlock:
        return TextBlock((text,), how, True, self.label, (self.line,), self.column)

    def stretch(self, text: str, closes: bool) -> TextBlock:
        return TextBlock((text,), "", closes, self.label, (self.line,), self.column)

    def after(self, text: str, stop: int | None = None) -> str:
        """What is left of the text from `stop` on, which is where the next block begins."""
        stop = len(text) if stop is None else stop
        if lines := text.count("\n", 0, stop):
            self.line += lines
            self.column = stop - text.rfind("\n", 0, stop)
        else:
            self.column += stop
        return text[stop:]


class _Counted:
    """A stream that tells how much was read of it."""

    def __init__(self, stream: BinaryIO, tell: Callable[[int], object]):
        self.stream, self.tell = stream, tell

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        self.tell(len(block))
        return block


def _chunks(pieces: Iterator[str]) -> Iterator[str]:
    """The same text in chunks of about the size of a block, cut where no token can span."""
    held, enough = "", BLOCK_CHARACTERS
    for piece in pieces:
        held += piece
        while len(held) > enough:
            safe = SAFE_CUT.search(held, BLOCK_CHARACTERS)
            if safe is None:  # it is searched again only once it has doubled
                enough = 2 * len(held)
                break
            yield held[: safe.start()]
            held, enough = held[safe.start() :], BLOCK_CHARACTERS
    if held:
        yield held


def _end_cleaned(text: str, how: str) -> str:
    """The end of a document as `documents.cut` leaves it."""
    return text.removesuffix("\r") if how == "line" else text.rstrip("\r\n")


def _is_whole(text: str, gap: "re.Match[str]", how: str) -> bool:
    """Whether what separates documents ends where it was found to end, whatever follows the text."""
    if how == "line":
        return True
    if how == "paragraph":
        return re.compile(r"[^ \t\r\n]").search(text, gap.end()) is not None
    return text.startswith("\n", gap.end())


def _first_gap(text: str, how: str, at_end: bool = False) -> tuple[int, int] | None:
    """Where the first document ends, and what separates it from the next one; `at_end` of all text."""
    gaps = between(how).finditer(text)
    return next((gap.span() for gap in gaps if at_end or _is_whole(text, gap, how)), None)


def _last_gap(text: str, how: str) -> int:
    """Where the last whole document, and what separates it from the next, ends; 0 if there is none."""
    if how == "line":
        return text.rfind("\n") + 1
    back = LOOKED_BACK
    while True:
        start = max(0, len(text) - back)
        ends = [gap.end() for gap in between(how).finditer(text, start) if _is_whole(text, gap, how)]
        if ends or not start:
            return ends[-1] if ends else 0
        back *= 8
