"""Errors a person can act on, and the exit codes they become.

An error is one line: WHAT (what was expected, what was found); WHAT TO DO. Only `cli.py` prints an
error and makes it an exit code.
"""

import errno
import re

from tformer.signals import SIGNALLED

DONE, FAILED, REQUEST = 0, 1, 2


# What moves a cursor, begins a sequence or turns the direction of a line: C0 but line ends and tabs, DEL, C1,
# and the overrides of writing direction. Joiners, no-break spaces and new emoji are ordinary text.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "unable to allocate", "bad_alloc")
OF_DEVICE = re.compile("(CUDA|HIP|cuDNN|CUBLAS|NCCL|MPS)[^\n]*error", re.IGNORECASE)
OF_PROGRAM = "device-side assert"  # an error of a program's that a device tells


def lacks_memory(error: BaseException) -> bool:
    """Whether host or device had none left: Python, NumPy, torch and the system say it each in its way."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in NO_MEMORY)


def lacks_device(error: BaseException) -> bool:
    """Whether a device failed, or is gone, while something was computed on it."""
    told = str(error)
    return isinstance(error, RuntimeError) and OF_PROGRAM not in told and bool(OF_DEVICE.match(told))


def asked_for(error: BaseException) -> str:
    """How much memory was asked for that was not there, and how much was, where it is told; else empty."""
    told = str(error)
    asked = re.search(r"allocate ([\d.]+) ?([kKMGT]?i?B|bytes)", told)
    free = re.search(r"of which ([\d.]+ [kKMGT]?i?B) is free", told)
    parts = [f"{_readable(*asked.groups())} were asked for"] if asked else []
    return ", ".join(parts + ([f"{free[1]} are free"] if free else []))


def _readable(number: str, unit: str) -> str:
    return f"{int(number) / 1e9:,.1f} GB" if unit == "bytes" else f"{number} {unit}"


def harmless(text: str) -> str:
    """Text of others for a terminal: what could do something there is U+FFFD, and CR LF a line end."""
    return UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def short(text: str, most: int = 80) -> str:
    """The beginning of what somebody wrote, for a line that names it."""
    return text if len(text) <= most else text[: most - 1] + "…"


class TformerError(Exception):
    """It could not be done: I/O, memory, a diverged training (exit 1)."""

    exit_code = FAILED

    def __init__(self, what: str, found: str = "", advice: str = ""):
        super().__init__(what + (f" ({found})" if found else "") + (f"; {advice}" if advice else ""))


class RequestError(TformerError):
    """The request is wrong: usage, configuration, bad or missing input (exit 2)."""

    exit_code = REQUEST


class Stopped(BaseException):
    """A signal asked the program to stop; whatever had to be saved has been saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = SIGNALLED + signal_number
