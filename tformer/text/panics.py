"""What the tokenizers' engine prints of its own panics, kept off standard error.

A panic of Rust's is an exception in Python, and is told in a line like any other; but before that Rust has
written lines of its own to descriptor 2, which no setting prevents. Around a call on foreign input that may
panic the descriptor leads into a file: what else comes meanwhile is passed on when the call is over.
"""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tformer.signals import undone_by_signal

STDERR = 2
# The first one in a process ends in a note, and so does a backtrace; later ones end with the text.
PANIC = re.compile(
    rb"\n?thread '[^\n]*panicked at .*?(note: [^\n]*`RUST_BACKTRACE[^\n]*(\n|\Z)|(?=\n?thread ')|\Z)",
    re.DOTALL,
)
_alone = threading.Lock()  # one thread at a time: the descriptor is the process's


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """Keep off standard error what Rust prints of a panic in the block, and nothing else."""
    if os.environ.get("TFORMER_DEBUG"):  # whoever looks for a fault sees them
        yield
        return
    with _alone:
        try:
            held = _Held()
        except OSError:  # it is closed, or there is no place for a file
            held = None
        if held is None:
            yield
            return
        try:
            with undone_by_signal(held.give_back):
                yield
        finally:
            held.give_back()


class _Held:
    """Standard error, which leads into a file until it is given back."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it is closed as it is given back)
        _flush()
        self.real: int | None = os.dup(STDERR)
        os.dup2(self.file.fileno(), STDERR)

    def give_back(self) -> None:
        """Once; what was written meanwhile follows, without panics."""
        if self.real is None:
            return
        real, self.real = self.real, None
        _flush()
        os.dup2(real, STDERR)
        os.close(real)
        with self.file as file, suppress(OSError):
            file.seek(0)
            rest = PANIC.sub(b"", file.read())
            while rest:
                rest = rest[os.write(STDERR, rest) :]


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
