"""Texts: the named ones with their download and cleaning, and any file, folder or standard input.

Knows nothing of tokens. A text arrives in pieces, so that one larger than memory can be read.
"""

import codecs
import hashlib
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from tformer.errors import RequestError, TformerError
from tformer.files import cannot_write, write_file
from tformer.progress import DownloadProgress

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class NamedCorpus:
    """A text with a public home: where it is, how it is recognised, how it is cleaned."""

    name: str
    title: str
    urls: tuple[str, ...]
    min_bytes: int
    max_bytes: int
    landmark: bytes  # stands in every edition, and not in an error page
    clean: Callable[[str], str]
    file: str = ""  # its name in the cache; NAME.txt if left out
    sha256: str = ""  # of the one edition there is; empty where there are several
    otherwise: str = "train on any text with: tformer train FILE"  # if it cannot be had

    @property
    def path(self) -> Path:
        """Where the file is kept, and where one put by hand is found."""
        return cache_folder() / (self.file or f"{self.name}.txt")


def cache_folder() -> Path:
    """`TFORMER_CACHE`, or ~/.cache/tformer."""
    return Path(os.environ.get("TFORMER_CACHE") or Path.home() / ".cache" / "tformer")


def normalise_line_ends(text: str) -> str:
    r"""No byte order mark, and every line ends in \n."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def clean_gutenberg(text: str) -> str:
    """A Project Gutenberg file without what is not the work.

    Removes everything before the START line and after the END line, the licence called "small print"
    that editions of the 1990s carry after START, credits, the `<<THIS ELECTRONIC VERSION …>>` notices
    between the works, and blank space at both ends.
    """
    text = normalise_line_ends(text)
    start = re.search(r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\n", text, re.M)
    text = text[start.end() :] if start else text
    end = re.search(r"^\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG EBOOK", text, re.M)
    text = text[: end.start()] if end else text
    text = re.sub(r"\n\s*End of (?:the |this )?Project Gutenberg[^\n]*(?:\n[^\n]+)*\s*\Z", "\n", text)
    fine_print = re.search(r"^\*+ *SMALL PRINT! FOR[^\n]*\*+\n(?:\[\"Small Print\"[^\n]*\n)?", text, re.M)
    text = text[fine_print.end() :] if fine_print else text
    text = re.sub(r"\A\s*Produced by [^\n]+\n(?:[^\n]+\n)*", "", text)
    text = re.sub(r"<<THIS ELECTRONIC VERSION.*?>>", "", text, flags=re.S)
    return text.strip() + "\n"


CORPORA = {
    corpus.name: corpus
    for corpus in (
        NamedCorpus(
            name="shakespeare",
            title="the complete works of William Shakespeare (Project Gutenberg 100)",
            urls=(
                "https://www.gutenberg.org/files/100/100-0.txt",
                "https://www.gutenberg.org/cache/epub/100/pg100.txt",
                "https://gutenberg.pglaf.org/1/0/100/100-0.txt",
                "https://aleph.pglaf.org/1/0/100/100-0.txt",
            ),
            min_bytes=4_000_000,
            max_bytes=12_000_000,
            landmark=b"PROJECT GUTENBERG EBOOK",
            clean=clean_gutenberg,
        ),
        NamedCorpus(
            name="tinyshakespeare",
            title="40,000 lines of Shakespeare, 1.1 MB, the usual benchmark",
            urls=(
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
            ),
            min_bytes=1_000_000,
            max_bytes=2_000_000,
            landmark=b"First Citizen:",
            clean=normalise_line_ends,
        ),
    )
}

LAMBADA = NamedCorpus(  # to judge by, not to train on: JSON lines, read by lambada.py
    name="lambada",
    title="the LAMBADA test set, 5,153 passages, 1.8 MB",
    urls=(
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        "https://raw.githubusercontent.com/cybertronai/bflm/master/lambada_test.jsonl",
    ),
    min_bytes=1_819_752,
    max_bytes=1_819_752,
    landmark=b'{"text": ',
    clean=str,
    file="lambada_test.jsonl",
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    otherwise="name another with: --data FILE",
)


@dataclass(frozen=True)
class Corpus:
    """A whole text in memory, and the sha256 of the bytes that it came from."""

    name: str
    text: str
    sha256: str
    source: str


# ---------------------------------------------------------------------------- download


def download(
    corpus: NamedCorpus,
    progress: DownloadProgress = lambda done, total: None,
    attempts: int = 3,
    timeout: float = 20.0,
    pause: float = 1.0,
) -> Path:
    """The cached file of a corpus, downloaded if it is not there.

    Every address is tried, the whole list up to `attempts` times with growing pauses. What arrives is
    checked (size, length promised, landmark) before it takes its name, so a file in the cache is whole.
    Raises TformerError, with the way out, if no address serves it.
    """
    if corpus.path.exists():
        return corpus.path
    failures: dict[str, str] = {}
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        for url in corpus.urls:
            try:
                data = _fetch(url, corpus, progress, timeout)
            except (OSError, ValueError, EOFError, HTTPException) as error:  # URLError is an OSError
                failures[url] = str(getattr(error, "reason", None) or error) or type(error).__name__
                continue
            try:
                corpus.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(corpus.path, error) from None
            write_file(corpus.path, data)
            return corpus.path
    raise TformerError(
        f"could not download {corpus.title}",
        "; ".join(f"{url}: {why}" for url, why in failures.items()),
        f"put the file at {corpus.path} by hand, or {corpus.otherwise}",
    )


def _fetch(url: str, corpus: NamedCorpus, progress: DownloadProgress, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "tformer"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        data = bytearray()
        while block := response.read(1 << 16):
            data += block
            if len(data) > corpus.max_bytes:
                raise ValueError(f"larger than {corpus.max_bytes:,} bytes")
            progress(len(data), total)
    if total is not None and len(data) != total:
        raise EOFError(f"ended after {len(data):,} of {total:,} bytes")
    if len(data) < corpus.min_bytes:
        raise ValueError(f"only {len(data):,} bytes")
    if corpus.landmark not in data:
        raise ValueError(f"not the text: {corpus.landmark.decode()!r} does not occur")
    if corpus.sha256 and (found := hashlib.sha256(data).hexdigest()) != corpus.sha256:
        raise ValueError(f"not the text: sha256 {found[:12]}…, expected {corpus.sha256[:12]}…")
    return bytes(data)


# ---------------------------------------------------------------------------- read


def read_text(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text of a UTF-8 stream in pieces, nothing changed.

    Raises RequestError with the offset of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        try:
            block = stream.read(BLOCK)
        except OSError as error:
            raise TformerError(f"cannot read {name}", error.strerror or str(error)) from None
        pending = len(decoder.getstate()[0])
        try:
            piece = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise _not_utf8(name, at, error.object[error.start]) from None
        if piece:
            yield piece
        if not block:
            return
        offset += len(block)


def read_file_text(stream: BinaryIO, name: str) -> Iterator[str]:
    """What every command takes for the text of a file: `read_text` without a byte order mark at its start."""
    at_start = True
    for piece in read_text(stream, name):
        text = without_mark(piece) if at_start else piece
        at_start = False
        if text:
            yield text


def _not_utf8(name: str, at: int, byte: int) -> RequestError:
    advice = f"convert it with: iconv -f ENCODING -t utf-8 {name}"
    return RequestError(f"{name} is not UTF-8 at byte {at}", f"found 0x{byte:02x}", advice)


def open_file(path: Path) -> BinaryIO:
    """A file for reading; RequestError where there is none."""
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder", "expected a file")
        return path.open("rb")
    except OSError as error:
        raise RequestError(f"cannot read {path}", error.strerror or str(error)) from None


def load_corpus(names: Sequence[str], progress: DownloadProgress = lambda done, total: None) -> Corpus:
    """One text from a corpus name, files, folders (their *.txt and *.md, sorted) or `-`, joined in order.

    Files are taken as they are but for a byte order mark. Raises RequestError for what is missing,
    empty or not UTF-8.
    """
    digest = hashlib.sha256()
    texts = []
    for name in names:
        clean = CORPORA[name].clean if name in CORPORA else without_mark
        if name in CORPORA:
            paths: list[Path | None] = [download(CORPORA[name], progress)]
        else:
            paths = [None] if name == "-" else [*files_of(Path(name))]
        for path in paths:
            label = str(path) if path else "standard input"
            texts.append(clean(_whole_text(path, label, digest.update)))
    text = "".join(texts)
    if not text:
        raise RequestError(f"{' '.join(names)} is empty", "expected text")
    return Corpus(name=corpus_name(names), text=text, sha256=digest.hexdigest(), source=" ".join(names))


def _whole_text(path: Path | None, label: str, update: Callable[[bytes], object]) -> str:
    """A file, or standard input, of which `update` gets the bytes; they are gone when the text is there."""
    try:
        raw = path.read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise RequestError(f"cannot read {label}", error.strerror or str(error)) from None
    update(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(label, error.start, raw[error.start]) from None


def without_mark(text: str) -> str:
    """A text without the byte order mark that Windows puts before it."""
    return text.removeprefix("\ufeff")


def files_of(path: Path) -> list[Path]:
    """The file itself, or the text files of a folder, at any depth, in the order of their names."""
    if not os.path.exists(path):
        raise RequestError(
            f"no data at {path}",
            f"expected a file, a folder, - or one of reversal, {', '.join(CORPORA)}",
        )
    if not path.is_dir():
        return [path]
    files = sorted(p for suffix in ("*.txt", "*.md") for p in path.rglob(suffix) if p.is_file())
    if not files:
        raise RequestError(f"no text in {path}", "expected files that end in .txt or .md")
    return files


def find_character(character: str, names: Sequence[str], stdin: str = "") -> str:
    """Where a character is first in these texts, as an editor counts: "poem.txt, line 3, column 5".

    They are read again, but for standard input, which is `stdin`. An empty string where it is not found.
    """
    texts: Iterable[tuple[str, str]]
    for name in names:
        if name == "-":
            texts = [("standard input", stdin)]
        elif name in CORPORA:
            whole = _whole_text(CORPORA[name].path, name, lambda raw: None)
            texts = [(name, CORPORA[name].clean(whole))]
        else:
            paths = ((str(path), path) for path in files_of(Path(name)))
            texts = (
                (label, without_mark(_whole_text(path, label, lambda raw: None))) for label, path in paths
            )
        for label, text in texts:
            if (at := text.find(character)) >= 0:
                column = at - text.rfind("\n", 0, at)
                return f"{label}, line {text.count(chr(10), 0, at) + 1}, column {column}"
    return ""


def corpus_name(names: Sequence[str]) -> str:
    """A short name for a run on these texts: the corpus, or the stem of the first file."""
    first = names[0]
    stem = "stdin" if first == "-" else (first if first in CORPORA else Path(first).resolve().stem)
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-") or "text"
