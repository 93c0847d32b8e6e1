"""The signals that end a process, and leaving at once, with nothing left half made. Imports nothing slow.

No exception: one that a handler raises comes anywhere, in a module that is half imported (PyTorch swallows it
there, and goes on with half of NumPy), in a callback of Matplotlib's, in the removal of a generator. It is
lost there, or called a bug. Whatever is written is whole at any moment, so the process may end at any.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]  # Windows has no SIGHUP
SIGNALLED = 128  # a process ended by signal n exits with 128 + n, as a shell reports it
SHOW_CURSOR = b"\x1b[?25h"  # a live line hides it

Handler = Callable[[int, FrameType | None], object]
Before = dict[int, "Handler | int | None"]
_undo: list[tuple[int, Callable[[], object]]] = []  # the process that has begun something, and what undoes it


def answered_by(handler: Handler) -> Before:
    """Have a handler called for each that is not ignored, as under `nohup`; what answered them before."""
    return {n: signal.signal(n, handler) for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN}


def restore(before: Before) -> None:
    """Have them answered as before."""
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def undone_by_signal(undo: Callable[[], object]) -> Iterator[None]:
    """What a signal that ends the process in the block calls first. It may come twice, and at any moment."""
    entry = (os.getpid(), undo)
    _undo.append(entry)
    try:
        yield
    finally:
        _undo.remove(entry)


def leave_at_once(number: int, frame: FrameType | None = None) -> None:
    """End the process, silently: what is half made is removed, and nothing else runs any more."""
    own = [undo for process, undo in _undo if process == os.getpid()]  # a copy of a process has begun nothing
    _undo.clear()  # a second signal does not wait
    for undo in reversed(own):
        with suppress(Exception):
            undo()
    with suppress(OSError):
        if os.isatty(2) and os.environ.get("TERM") != "dumb":
            os.write(2, SHOW_CURSOR)  # nothing but the system: a handler may come in the middle of a print
    os._exit(SIGNALLED + number)
