"""Standard input, looked at before it is read: a table or a list is taken there for what it is in a file.

A file says by its name that it is a table; standard input has none, and is known by its beginning.
"""

import io
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

from tformer.text.plain import BLOCK, STDIN, without_marks
from tformer.text.rows import names_in, table_in

USUAL_FIELD = "text"  # of a table, where nobody names another
WHAT = {".jsonl": "JSON lines", ".csv": "CSV", ".tsv": "TSV"}
AS_IT_IS = "to have it as it is, save it as a file that ends in .txt"


@dataclass(frozen=True)
class Piped:
    """What standard input is: a table of such an ending, or plain text (""); a note for a person, if any."""

    ending: str = ""
    note: str = ""


class _Ahead(io.RawIOBase):
    """A stream whose first bytes, `head`, were read, and are given again."""

    def __init__(self, stream: BinaryIO, keep: object):
        self.stream, self.keep = stream, keep  # a wrapper that is let go closes its stream
        self.head, self.given, self.has_ended = b"", 0, False
        self.head = self._more(BLOCK)

    def _more(self, n: int) -> bytes:
        """What comes next; a terminal is not asked again when it has ended."""
        block = b"" if self.has_ended else self.stream.read(n)
        self.has_ended = len(block) < n
        return block

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def readinto(self, buffer: Any) -> int:
        block = self.head[self.given : self.given + len(buffer)]
        self.given += len(block)
        block = block or self._more(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def beginning() -> str:
    """The text of at most the first MiB of standard input, which is there to be read as it was.

    Empty where that is no text: it is said where it is read.
    """
    raw = getattr(sys.stdin.buffer, "raw", None)
    if not isinstance(raw, _Ahead):
        raw = _Ahead(sys.stdin.buffer, sys.stdin)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(raw, BLOCK), encoding="utf-8")
    head = raw.head
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < BLOCK:  # it is not a character that was cut in two
            return ""
        text = head[: error.start].decode()
    return without_marks(text, STDIN)


def look(field: str) -> Piped:
    """What standard input is by its beginning; `field` is where in a table the texts stand."""
    head = beginning()
    ending = table_in(head, field)
    names = names_in(head)
    if (
        names and not ending and field != USUAL_FIELD
    ):  # whoever names a field has a table: what it lacks is said
        ending = ".jsonl"
    if ending:
        return Piped(ending, f"{STDIN}: {WHAT[ending]}, with the texts under {field!r}; {AS_IT_IS}")
    if names:
        has = f"it is JSON lines without {field!r} (they have {', '.join(names)[:200]})"
        return Piped("", f"{STDIN}: taken for plain text, though {has}; if one has texts: --field NAME")
    return Piped()
