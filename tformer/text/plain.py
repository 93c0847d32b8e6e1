"""Plain texts as they lie on a disk or come through a pipe.

Which files a folder gives and in which order, what a file is by its first bytes, its UTF-8 as text, and where
in it a character stands. Knows nothing of named texts or tokens.
"""

import codecs
import os
import re
import shlex
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tformer.counted import counted
from tformer.errors import RequestError, TformerError
from tformer.files import refuse_address
from tformer.text.packed import inner_ending, packing, unpack

BLOCK = 1 << 20  # bytes read at a time
STDIN = "standard input"  # as messages name it
MARK = "\ufeff"  # that Windows puts before a text: the byte order mark
TEXT_ENDINGS = (".txt", ".text", ".md", ".markdown")  # of files that a folder gives, in any case
TABLE_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # the same, of texts in rows

# ---------------------------------------------------------------------------- files and folders


@dataclass(frozen=True)
class Folder:
    """The text files of a folder in their order, and how much else lies there."""

    path: Path
    files: tuple[Path, ...]
    others: Counter[str]  # how many of each ending, "" where a name has none
    hidden: int  # files, and folders of which nothing is counted
    again: int  # links to what is read already

    @property
    def left_out(self) -> str:
        """What is not read, in words; empty where there is nothing."""
        endings = [ending for ending, _ in self.others.most_common() if ending]
        shown = ", ".join(endings[:4]) + " …" * (len(endings) > 4)
        n = self.others.total()
        parts = [
            counted(n, "other") + f" ({shown})" * bool(shown) if n else "",
            f"{self.hidden:,} hidden" if self.hidden else "",
            f"{self.again:,} linked to again" if self.again else "",
        ]
        return ", ".join(part for part in parts if part)

    def note(self, characters: int) -> str:
        """For a person, when so many characters were read."""
        n = len(self.files)
        read = f"{self.path}: read {counted(n, 'file')}, {counted(characters, 'character')}"
        return read + f"; left out: {self.left_out}" * bool(self.left_out)


def list_folder(path: Path) -> Folder:
    """The text files of a folder at any depth, in natural order: chapter2 before chapter10.

    Hidden files and folders are left out, and what programs keep: `__pycache__`, virtual environments, runs.
    Links are followed; what is reached twice is read once, under its own name where it has one in the folder.
    Raises RequestError where a folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise RequestError(f"cannot read {error.filename}", error.strerror or str(error))

    found: list[str] = []
    links: list[str] = []
    seen: set[str] = set()
    hidden = again = 0
    waiting = deque([str(path)])
    while waiting:
        for place, folders, names in os.walk(waiting.popleft(), onerror=refuse):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                again += 1
                continue
            seen.add(real)
            shown = sorted(name for name in folders if not _is_hidden(place, name))
            waiting.extend(os.path.join(place, name) for name in shown if _is_link(place, name))
            visible = [name for name in names if not name.startswith(".")]
            hidden += len(folders) - len(shown) + len(names) - len(visible)
            folders[:] = [name for name in shown if not _is_link(place, name)]
            for name in visible:
                (links if _is_link(place, name) else found).append(os.path.join(place, name))
    once = {os.path.realpath(file): file for file in found}
    for file in sorted(links, key=natural_order):
        again += os.path.realpath(file) in once
        once.setdefault(os.path.realpath(file), file)
    texts, others = [], Counter[str]()
    for file in once.values():
        ending = os.path.splitext(file)[1].lower()
        if inner_ending(file) in (*TEXT_ENDINGS, *TABLE_ENDINGS) and os.path.isfile(file):
            texts.append(file)
        else:
            others[ending] += 1
    return Folder(path, tuple(map(Path, sorted(texts, key=natural_order))), others, hidden, again)


def _is_link(place: str, name: str) -> bool:
    return os.path.islink(os.path.join(place, name))


def _is_hidden(place: str, folder: str) -> bool:
    """Whether a folder is none that a person filled with texts."""
    if folder.startswith(".") or folder == "__pycache__":
        return True
    return any(os.path.isfile(os.path.join(place, folder, name)) for name in ("pyvenv.cfg", "tformer.yaml"))


def natural_order(path: str) -> tuple[object, ...]:
    """A key that sorts numbers by their value and letters without their case, folder by folder.

    >>> sorted(["b/10.txt", "b/9.txt", "B.txt", "a.txt"], key=natural_order)
    ['a.txt', 'b/9.txt', 'b/10.txt', 'B.txt']
    """
    # Of each part, text and numbers by turns, so that like is compared with like.
    parts = [re.split("([0-9]+)", part.casefold()) for part in path.split(os.sep)]
    return [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts], path


def files_of(path: Path) -> list[Path]:
    """The file itself, whatever its name, or the text files of a folder. RequestError where there is none."""
    return list(read_folder(path).files) if path.is_dir() else [existing(path)]


def existing(path: Path, expected: str = "a file, a folder or -") -> Path:
    """The path. Raises RequestError where nothing is there."""
    if not os.path.exists(path):
        refuse_address(path)
        raise RequestError(f"no data at {path}", f"expected {expected}")
    return path


def read_folder(path: Path) -> Folder:
    """`list_folder` of one with text in it. Raises RequestError where there is none."""
    folder = list_folder(path)
    if not folder.files:
        *most, last = TEXT_ENDINGS
        there = f", found {folder.left_out}" if folder.left_out else ""
        advice = "name the files themselves, which may end in anything" if folder.others else ""
        raise RequestError(
            f"no text in {path}",
            f"expected files that end in {', '.join(most)} or {last}, or tables{there}",
            advice,
        )
    return folder


def open_file(path: Path) -> BinaryIO:
    """A file for reading, unpacked where its name says .gz and the like; RequestError where there is none."""
    refuse_address(path)
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder", "expected a file")
        return unpack(path)
    except OSError as error:
        raise RequestError(f"cannot read {path}", error.strerror or str(error)) from None


# ---------------------------------------------------------------------------- bytes as text


def read_text(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text of a UTF-8 stream in pieces, as it is but for a byte order mark.

    One stands at the start of a file, and wherever one begins in a standard input that several were joined
    to. Raises RequestError for what is no text, with the offset of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, at_start = 0, True
    while True:
        try:
            block = stream.read(BLOCK)
        except OSError as error:
            raise TformerError(f"cannot read {name}", error.strerror or str(error)) from None
        if offset == 0:
            refuse_other_than_text(block, name)
        pending = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise _not_utf8(name, at, error.object[error.start]) from None
        if piece:
            text = without_marks(piece, name) if at_start or name == STDIN else piece
            at_start = False
            if text:
                yield text
        if not block:
            return
        offset += len(block)


def whole_text(path: Path | None, update: Callable[[bytes], object] = lambda raw: None) -> str:
    """`read_text` in one piece, of a file or of standard input (None); `update` gets the bytes.

    They are gone when the text is there.
    """
    name = str(path) if path else STDIN
    refuse_address(name)
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open_file(path) as stream:
            raw = bytearray(stream.read(BLOCK))
            refuse_other_than_text(bytes(raw), name)  # before all of what is no text is read
            while block := stream.read(16 * BLOCK):
                raw += block
    except OSError as error:
        raise RequestError(f"cannot read {name}", error.strerror or str(error)) from None
    update(raw)  # type: ignore[arg-type]  # as good as bytes
    try:
        return without_marks(raw.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error.start, raw[error.start]) from None


def without_marks(text: str, name: str) -> str:
    """The beginning of a file without a mark; standard input (`name` says so) without any."""
    return text.replace(MARK, "") if name == STDIN else text.removeprefix(MARK)


def _not_utf8(name: str, at: int, byte: int) -> RequestError:
    advice = "if it is in another encoding, convert it: " + _made_by("iconv -f WINDOWS-1252 -t UTF-8", name)
    return RequestError(f"{name} is not UTF-8 at byte {at}", f"found 0x{byte:02x}", advice)


# What a file is by its first bytes; the command that writes its text, given the file; the same as a filter,
# if it is one, or where there is no command what to do, in words.
OFFICE = rb"PK\x03\x04.{26}(?:\[Content_Types\]\.xml|mimetype|_rels/|docProps/|word/)"
KNOWN = (
    (rb"\x1f\x8b", "packed with gzip", "zcat", "zcat"),
    (rb"BZh[1-9]1AY&SY", "packed with bzip2", "bzcat", "bzcat"),
    (rb"\xfd7zXZ\0", "packed with xz", "xzcat", "xzcat"),
    (rb"\x28\xb5\x2f\xfd", "packed with zstd", "zstdcat", "zstdcat"),
    (OFFICE, "a document of an office program, or a book", "pandoc -t plain", ""),
    (rb"PK\x03\x04", "a zip archive", "unzip -p", "funzip"),
    (rb"%PDF-\d", "a PDF", "", "write its text into a file first, as pdftotext does"),
    (rb"PAR1[\0-\x1f]", "a Parquet table", "", "write its column of text into a file first"),
    (rb"\x89PNG\r\n|\xff\xd8\xff", "a picture", "", "give a file of text"),
    (
        rb"\x93NUMPY",
        "a NumPy array",
        "",
        "train takes it by a name in .npy, and tokenize --decode writes its text",
    ),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8", "iconv -f UTF-32 -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8", "iconv -f UTF-16 -t UTF-8"),
)
NULS = 16  # in the first block: fewer may be the text's own
SHARE_OF_NULS = 0.05


def refuse_other_than_text(head: bytes, name: str) -> None:
    """Raises RequestError for a file, or standard input, that by its first bytes is no plain text.

    It says what it is, and the command that makes text of it.
    """
    known = next((found for first, *found in KNOWN if re.match(first, head, re.DOTALL)), None)
    nuls = head.count(0)
    if known is None and (nuls < NULS or nuls < SHARE_OF_NULS * len(head)):
        return
    what, command, otherwise = known or _of_nuls(head)
    if not command:
        advice = otherwise
    elif name == STDIN and not otherwise:
        advice = f"save it as a file, and then: {command} FILE > TEXT.txt"
    else:
        advice = "make text of it: " + _made_by(otherwise if name == STDIN else command, name)
    raise RequestError(f"{name} is {what}", "expected text in UTF-8", advice)


def _of_nuls(head: bytes) -> tuple[str, str, str]:
    """UTF-16 or UTF-32 without a mark, by which bytes of four are mostly NUL; or nothing that is known."""
    shares = [head[i::4].count(0) / max(1, len(head[i::4])) for i in range(4)]
    often = [share > 0.5 for share in shares]
    ways = {
        "UTF-16LE": [False, True, False, True],
        "UTF-16BE": [True, False, True, False],
        "UTF-32LE": [False, True, True, True],
        "UTF-32BE": [True, True, True, False],
    }
    encoding = next((name for name, way in ways.items() if often == way), None)
    if encoding is None:
        return "no text: it has many NUL bytes", "", "give a file of text"
    command = f"iconv -f {encoding} -t UTF-8"
    return f"{encoding} without a byte order mark", command, command


def _made_by(command: str, name: str) -> str:
    """The whole line that makes a file of text of a file; of standard input, what to put before it.

    A file with the name of a text keeps it, and what was in it has another.
    """
    if name == STDIN:
        return f"… | {command} | tformer …"
    path = Path(name)
    if path.suffix.lower() in TEXT_ENDINGS:  # a folder would give both
        kept = _quoted(_free_name(path.with_name(f"{path.name}.orig")))
        return f"mv {_quoted(path)} {kept} && {command} {kept} > {_quoted(path)}"
    unpacked = path.with_suffix("") if packing(path) else path
    text = unpacked if unpacked != path and unpacked.suffix else path.with_suffix(".txt")
    return f"{command} {_quoted(path)} > {_quoted(_free_name(text))}"


def _quoted(path: Path) -> str:
    """A path as a shell takes it for one, whatever it begins with."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _free_name(wanted: Path) -> Path:
    """A name that nothing has: poem.txt, or poem-2.txt where there is one."""
    path, n = wanted, 1
    while os.path.lexists(path):
        n += 1
        path = wanted.with_stem(f"{wanted.stem}-{n}")
    return path


# ---------------------------------------------------------------------------- where in a text


def place_in(text: str, at: int, label: str, line: int = 1, column: int = 1) -> str:
    """A place as an editor counts: "poem.txt, line 3, column 5"; `line` and `column` are the text's first.

    >>> place_in("To be,\\nor not", 10, "poem.txt")
    'poem.txt, line 2, column 4'
    """
    lines = text.count("\n", 0, at)
    column = at - text.rfind("\n", 0, at) if lines else column + at
    return f"{label}, line {line + lines}, column {column}"


@dataclass
class Trail:
    """Where a character of texts stands that are read in pieces, one after another: file, line, column.

    Only the last pieces are kept, enough for an encoder that is not far behind.
    """

    characters: int = 0
    _kept: deque[tuple[int, str, str, int, int]] = field(default_factory=deque)

    def of(self, pieces: Iterable[str], label: str) -> Iterator[str]:
        """The pieces of one text, unchanged."""
        line = column = 1
        for piece in pieces:
            self._kept.append((self.characters, piece, label, line, column))
            self.characters += len(piece)
            while len(self._kept) > 2 and self._kept[2][0] < self.characters - 2 * BLOCK:
                self._kept.popleft()
            yield piece
            line += piece.count("\n")
            last = piece.rfind("\n")
            column = len(piece) - last if last >= 0 else column + len(piece)

    def at(self, position: int) -> str:
        """The place of a character, counted from the start of the first text; empty where it is not known."""
        for start, piece, label, line, column in self._kept:
            if start <= position < start + len(piece):
                return place_in(piece, position - start, label, line, column)
        return ""
