"""The signals that end a process, and leaving at once, with nothing left half made. Imports nothing slow.

No exception: one that a handler raises comes anywhere, in a module that is half imported (PyTorch swallows it
there, and goes on with half of NumPy), in a callback of Matplotlib's, in the removal of a generator. It is
lost there, or called a bug. Whatever is written is whole at any moment, so the process may end at any.

Python calls a handler between two of its own steps, and a step that is one call of PyTorch's or of the
tokenizers' may take minutes. A thread waits beside it for the system's word of a signal, and answers in its
place where it does not come to that.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]  # Windows has no SIGHUP
SIGNALLED = 128  # a process ended by signal n exits with 128 + n, as a shell reports it
SHOW_CURSOR = b"\x1b[?25h"  # a live line hides it
CALLED_WITHIN = 0.3  # seconds in which Python comes to its next step, or is in one that takes long

Handler = Callable[[int, FrameType | None], object]
Before = dict[int, "Handler | int | None"]
_undo: list[tuple[int, Callable[[], object]]] = []  # the process that has begun something, and what undoes it


def answered_by(handler: Handler) -> Before:
    """Have a handler called for each that is not ignored, as under `nohup`; what answered them before.

    It may be called in another thread than the main one.
    """
    _watch()
    return {
        n: signal.signal(n, _Answer(handler)) for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN
    }


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


# ---------------------------------------------------------------------------- beside what takes long


class _Answer:
    """A handler, called once for each signal: by Python, or by the thread that watches, whoever is first."""

    def __init__(self, handler: Handler):
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        with _told.lock:
            if _told.ahead[number]:  # the thread has answered what Python comes to now
                _told.ahead[number] = 0
                return
            _told.answered[number] += 1
        self.handler(number, frame)

    def instead_of_python(self, number: int) -> None:
        """Called by the thread, when Python had the time to."""
        with _told.lock:
            if _told.answered[number] >= _told.came[number]:
                return
            _told.answered[number] += 1
            _told.ahead[number] = 1
        self.handler(number, None)


class _Told:
    """How many of each signal came and were answered, and of which Python has still to come to one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a handler may come in the middle of a handler
        self.came, self.answered, self.ahead = Counter[int](), Counter[int](), Counter[int]()
        self.process = 0  # the one that is watched


_told = _Told()


def _watch() -> None:
    """Start the thread, once in a process."""
    global _told
    if os.name == "nt" or _told.process == os.getpid():
        return
    _told = _Told()
    _told.process = os.getpid()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_answer_what_waits, args=(reading, _told), daemon=True).start()


def _answer_what_waits(reading: int, told: _Told) -> None:
    moment = threading.Event()
    with suppress(OSError):  # somebody has closed it
        while numbers := os.read(reading, 1):
            number = numbers[0]
            told.came[number] += 1
            until = time.monotonic() + CALLED_WITHIN
            while told.answered[number] < told.came[number]:
                answer = signal.getsignal(number)
                if not isinstance(answer, _Answer):  # another handler has it, and counts nothing
                    told.answered[number] = told.came[number]
                elif time.monotonic() > until:
                    answer.instead_of_python(number)
                else:
                    moment.wait(CALLED_WITHIN / 10)


def _as_a_copy() -> None:
    """In a copy of the process, whose signals are not the business of the first one's thread."""
    global _told
    if _told.process:
        _told = _Told()
        with suppress(ValueError):  # a thread that is not the main one was copied
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_as_a_copy)
