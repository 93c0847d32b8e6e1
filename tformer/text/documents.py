r"""What a document is, and texts cut into documents.

Much of what people have is many short texts: names, jokes, poems, stories. A document is a file, a row of a
table, a line, a paragraph, or what stands between lines that separate. Knows nothing of where texts are from.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from tformer.errors import RequestError
from tformer.text.engines import END_OF_TEXT
from tformer.text.tokenizer import Tokenizer

WAYS = ("none", "line", "paragraph", "file")
AUTO = "auto"
WHAT_THEY_ARE = f"{', '.join(WAYS)}, or the line that separates them"
LINE_END = re.compile(r"\n")
BETWEEN_PARAGRAPHS = re.compile(r"\n(?:[ \t\r]*\n)+")

# A text is a list, of names or of words, where nearly all of its lines are short, and no two alike.
LOOKED_AT = 1 << 20  # characters of a text
LEAST_LINES = 100
SHARE_OF_LINES = 0.95
MOST_WORDS, MOST_CHARACTERS = 3, 40  # of a line
SHARE_OF_DIFFERENT = 0.9
IN_A_MESSAGE = 60  # characters of a separator, in a message


@dataclass(frozen=True)
class TextReading:
    """How files are read: where in a table its texts stand, and what a document is.

    `documents` is one of `WAYS`, a line that separates them, or auto: what suits the texts (`suited`).
    """

    field: str = "text"
    documents: str = "file"


def suited(texts: Iterable[str]) -> str:
    """What a document is in plain texts where nobody says.

    What stands between lines `<|endoftext|>` where any has such a line, a line where all are lists; else a
    file.
    """
    is_list = []
    for text in texts:
        if has_line(text, END_OF_TEXT):
            return END_OF_TEXT
        is_list.append(looks_like_a_list(text))
    return "line" if is_list and all(is_list) else "file"


def looks_like_a_list(text: str) -> bool:
    """Whether nearly all lines have a few short words, and nearly no two are alike: names, and no verse."""
    head = text[:LOOKED_AT]
    lines = head.removesuffix("\n").split("\n")  # what `cut` takes for lines, and no other
    if len(text) > LOOKED_AT:
        lines.pop()  # it is cut
    few = sum(0 < len(line.split()) <= MOST_WORDS and len(line) <= MOST_CHARACTERS for line in lines)
    return (
        len(lines) >= LEAST_LINES
        and few >= SHARE_OF_LINES * len(lines)
        and len({*lines}) >= SHARE_OF_DIFFERENT * len(lines)
        and all(line.strip() for line in lines)
    )


def has_line(text: str, line: str) -> bool:
    """Whether a line of the text is that one, but for blanks around it."""
    return line in text and re.search(_alone(line), text) is not None


def between(how: str) -> re.Pattern[str]:
    """What separates documents in a plain text: a line end, blank lines, or a line that is `how` alone."""
    return {"line": LINE_END, "paragraph": BETWEEN_PARAGRAPHS}.get(how) or _alone(how)


@cache
def _alone(line: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*{re.escape(line)}[ \t\r]*$", re.MULTILINE)


def cut(text: str, how: str) -> Iterator[tuple[str, int]]:
    r"""The documents of a plain text, each with the line on which it begins, from 1. Blank ones are left out.

    What separates them is in none of them, nor are line ends at their ends. A file (`none` and `file`) is
    taken as it is.

    >>> list(cut("Anna\n\nBo\n", "line"))
    [('Anna', 1), ('Bo', 3)]
    """
    if how in ("none", "file"):
        if text:
            yield text, 1
        return
    if how == "line":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield line.removesuffix("\r"), number
        return
    start, number = 0, 1
    for stop, after in [*((gap.start(), gap.end()) for gap in between(how).finditer(text)), (len(text),) * 2]:
        piece = text[start:stop]
        document = piece.lstrip("\r\n")
        if document.strip():
            yield document.rstrip("\r\n"), number + piece[: len(piece) - len(document)].count("\n")
        number += text.count("\n", start, after)
        start = after


def check_separator(how: str, texts: Iterable[str]) -> None:
    """Raises RequestError for a separator that is no line, or that no plain text has; tables need none."""
    if how in WAYS:
        return
    if not how.strip() or len(how.splitlines()) > 1:
        raise RequestError(f"data.documents is {how[:IN_A_MESSAGE]!r}", f"expected {WHAT_THEY_ARE}")
    plain = list(texts)
    if plain and not any(has_line(text, how) for text in plain):
        raise RequestError(
            f"no line of the text is {how[:IN_A_MESSAGE]!r}, and nothing else",
            f"expected of data.documents: {WHAT_THEY_ARE}",
        )


def separator(how: str) -> str:
    """What stands between two documents of a text; auto is taken for lines."""
    known = {"none": "", "file": "", AUTO: "\n", "line": "\n", "paragraph": "\n\n"}
    return known.get(how, f"\n{how}\n")


def separator_bytes(how: str) -> int:
    """Bytes of a text that the token after a document stands for, of bits per byte.

    A line end is one, an empty line another one; a line that separates has its own. Between files, and
    between the rows of a table, stands nothing of a text.
    """
    return len(separator(how).encode())


def sizes_of(tokenizer: Tokenizer, how: str) -> np.ndarray:
    """`Tokenizer.n_bytes` with the bytes that its end token stands for between such documents."""
    if tokenizer.end_id is None or not separator_bytes(how):
        return tokenizer.n_bytes
    sizes = tokenizer.n_bytes.copy()
    sizes[tokenizer.end_id] = separator_bytes(how)
    return sizes


def documents_in(ids: np.ndarray, end_id: int | None) -> list[np.ndarray]:
    """The ids of each document, of ids in which one ends each."""
    parts = np.split(ids, np.flatnonzero(ids == end_id))
    return [part[part != end_id] for part in parts if (part != end_id).any()]


def lengths_in(ids: np.ndarray, end_id: int) -> np.ndarray:
    """How many ids each document has, of ids in which one ends each; what is after the last is none."""
    ends = np.flatnonzero(ids == end_id)
    lengths = np.diff(ends, prepend=-1) - 1
    return lengths[lengths > 0]
