"""Standard error for work that goes on when nobody listens any more: a pipe that was closed, a full disk."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Listener:
    """A stream whose loss is noted and ends nothing; what is written from then on goes nowhere."""

    def __init__(self, stream: TextIO):
        self.stream, self.is_gone = stream, False

    def write(self, text: str) -> int:
        """As a stream writes, while there is one."""
        if not self.is_gone:
            try:
                return self.stream.write(text)
            except (OSError, ValueError):  # closed is a ValueError
                self._lose()
        return len(text)

    def flush(self) -> None:
        """As a stream is flushed, while there is one."""
        if not self.is_gone:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self._lose()

    def _lose(self) -> None:
        """What is still waiting to be written would be tried again at the end of the process."""
        self.is_gone = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def whoever_listens() -> Iterator[Listener]:
    """Standard error as a Listener while the block runs."""
    before = sys.stderr
    listener = Listener(before)
    sys.stderr = listener
    try:
        yield listener
    finally:
        sys.stderr = before
