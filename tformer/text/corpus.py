"""Texts: the named ones with their download and cleaning, and all that DATA may name as one text.

Knows nothing of tokens.
"""

import hashlib
import os
import re
import sys
import time
import urllib.error
import urllib.request
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from tformer.errors import RequestError, TformerError
from tformer.files import cannot_write, write_file
from tformer.progress import DownloadProgress
from tformer.text.documents import (
    AUTO,
    TextReading,
    check_separator,
    cut,
    has_line,
    looks_like_a_list,
    suited,
)
from tformer.text.engines import END_OF_TEXT
from tformer.text.piped import Piped, beginning, look
from tformer.text.plain import (
    MARK,
    STDIN,
    Folder,
    existing,
    open_file,
    place_in,
    read_folder,
    read_text,
    whole_text,
)
from tformer.text.rows import Row, is_rows, read_rows, rows_in


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
    return text.removeprefix(MARK).replace("\r\n", "\n").replace("\r", "\n")


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

WHAT_DATA_IS = f"a file, a folder, - or one of reversal, {', '.join(CORPORA)}"

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
    """A whole text in memory, and the sha256 of the bytes that it came from.

    `ends`, shape (documents,), are the places, in characters, where its documents end; the last ends with the
    text. What stood between them is in none. `documents` says what one is (`documents.WAYS`, or what
    separates them). Where there are none, a file is one all the same. `file_ends` are those of the files.
    One whose validation part was put to its end (`split.kept_apart`) says how that was chosen, and has the
    `cut` between the parts and the text as it was.
    """

    name: str
    text: str
    sha256: str
    source: str
    ends: np.ndarray
    labels: tuple[str, ...] = ()  # of the files
    notes: tuple[str, ...] = ()  # for a person: what was read of a folder, and what not
    how: str = "end"
    cut: int | None = None
    whole: "Corpus | None" = None
    documents: str = "file"
    file_ends: tuple[int, ...] = ()
    lines: np.ndarray | None = None  # of its file, on which each document begins; None: the first
    is_of_rows: bool = False  # all of it: no plain text is in it

    @property
    def n_documents(self) -> int:
        """How many documents it has."""
        return len((self.whole or self).ends)

    def place(self, character: str) -> str:
        """Where a character is first, as an editor counts: "poem.txt, line 3, column 5"; empty if nowhere."""
        if self.whole:
            return self.whole.place(character)
        at = self.text.find(character)
        if at < 0 or not self.labels:
            return ""
        document = int(np.searchsorted(self.ends, at, side="right"))
        start = int(self.ends[document - 1]) if document else 0
        line = 1 if self.lines is None else int(self.lines[document])
        label = self.labels[bisect_right(self.file_ends, at)]
        return place_in(self.text[start : int(self.ends[document])], at - start, label, line)


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


@dataclass(frozen=True)
class _File:
    """What was read of a file: a plain text, or the rows of a table."""

    label: str
    text: str = ""
    rows: tuple[Row, ...] = ()

    def documents(self, how: str) -> list[tuple[str, int]]:
        """Its documents with the lines on which they begin."""
        if not self.rows:
            return list(cut(self.text, how))
        if how == "none":
            return [("".join(f"{row.text}\n" for row in self.rows), self.rows[0].line)]
        return [(row.text, row.line) for row in self.rows if row.text.strip()]


def load_corpus(
    names: Sequence[str],
    progress: DownloadProgress = lambda done, total: None,
    reading: TextReading | None = None,
    must_be_separated: bool = True,
) -> Corpus:
    """One text from a corpus name, files, folders (their texts, in natural order) or `-`, joined in order.

    Files are taken as they are but for a byte order mark, and cut into documents; a row of a table is one.
    Raises RequestError for what is missing, empty or not UTF-8, and where no text has the separator, unless
    it need not.
    """
    reading = reading or TextReading()
    digest = hashlib.sha256()
    files: list[_File] = []
    notes: list[str] = []
    for name in names:
        folder: Folder | None = None
        piped = Piped()
        if name in CORPORA:
            paths: list[Path | None] = [download(CORPORA[name], progress)]
        elif name == "-":
            paths, piped = [None], look(reading.field)
            notes += [piped.note] if piped.note else []
        elif (path := existing(Path(name), WHAT_DATA_IS)).is_dir():
            folder = read_folder(path)
            paths = [*folder.files]
        else:
            paths = [path]
        before = len(files)
        for one in paths:
            label = name if name in CORPORA else str(one or STDIN)
            if piped.ending or (one is not None and is_rows(one)):
                digest.update(f"{reading.field}\n".encode())  # other texts of one file are another text
                found = (
                    rows_in(sys.stdin.buffer, piped.ending, STDIN, reading.field, digest.update)
                    if one is None
                    else read_rows(one, reading.field, digest.update)
                )
                files.append(_File(label, rows=tuple(found)))
            else:
                text = whole_text(one, digest.update)
                files.append(_File(label, CORPORA[name].clean(text) if name in CORPORA else text))
        if folder:
            notes.append(folder.note(sum(map(_characters, files[before:]))))
    plain = [file.text for file in files if file.text]
    how = suited(plain) if reading.documents == AUTO else reading.documents
    if must_be_separated:
        check_separator(how, plain)
    texts: list[str] = []
    lines: list[int] = []
    labels: list[str] = []
    counts: list[int] = []  # of the documents up to the end of each file
    for file in files:
        if parts := file.documents(how):
            texts += (text for text, _ in parts)
            lines += (line for _, line in parts)
            labels.append(file.label)
            counts.append(len(texts))
    if not texts:
        read = " ".join(STDIN if name == "-" else str(name) for name in names)
        raise RequestError(f"{read} is empty", "expected text")
    ends = np.cumsum([len(text) for text in texts])
    return Corpus(
        corpus_name(names),
        "".join(texts),
        digest.hexdigest(),
        " ".join(names),
        ends,
        tuple(labels),
        tuple(notes),
        documents=how,
        file_ends=tuple(int(ends[count - 1]) for count in counts),
        lines=np.array(lines),
        is_of_rows=not plain,
    )


def _characters(file: _File) -> int:
    return len(file.text) + sum(len(row.text) + 1 for row in file.rows)


def are_lists(names: Sequence[str], field: str) -> bool:
    """Whether DATA is plain texts of which each is a list, by its beginning; a table has its `field`."""
    for name in names:
        path, is_piped = Path(name), name == "-"
        if not is_piped and (name in CORPORA or not path.is_file() or is_rows(path) or path.suffix == ".npy"):
            return False
        try:
            if is_piped:
                head = "" if look(field).ending else beginning()
            else:
                with open_file(path) as stream:
                    head = next(read_text(stream, name), "")
            if has_line(head, END_OF_TEXT) or not looks_like_a_list(head):
                return False
        except TformerError:  # it is said where the text is read
            return False
    return True


def shadowed(names: Sequence[str]) -> tuple[str, ...]:
    """For a person: what a name means that is a name of ours, and of a file or folder here as well."""
    ours = {"reversal": "the task", **{name: corpus.title for name, corpus in CORPORA.items()}}
    return tuple(
        f"{name} is taken for {ours[name]}; for the {_kind(name)} of that name give ./{name}"
        for name in dict.fromkeys(names)
        if name in ours and os.path.exists(name)
    )


def _kind(path: str) -> str:
    return "folder" if os.path.isdir(path) else "file"


def corpus_name(names: Sequence[str]) -> str:
    """A short name for a run on these texts: the corpus, or the stem of the first file."""
    first = names[0]
    stem = "stdin" if first == "-" else (first if first in CORPORA else Path(first).resolve().stem)
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-") or "text"
