"""Errors a person can act on, and the exit codes they become.

An error is one line: WHAT (what was expected, what was found); WHAT TO DO. Only `cli.py` prints an
error and makes it an exit code.
"""

import re

from tformer.signals import SIGNALLED

DONE, FAILED, REQUEST = 0, 1, 2


# What moves a cursor, begins a sequence or turns the direction of a line: C0 but line ends and tabs, DEL, C1,
# and the overrides of writing direction. Joiners, no-break spaces and new emoji are ordinary text.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


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
