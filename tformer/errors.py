"""Errors a person can act on, and the exit codes they become.

An error is one line: WHAT (what was expected, what was found); WHAT TO DO. Only `cli.py` prints an
error and makes it an exit code.
"""

DONE, FAILED, REQUEST = 0, 1, 2
SIGNALLED = 128  # a process ended by signal n exits with 128 + n, as a shell reports it


class TformerError(Exception):
    """It could not be done: I/O, memory, a diverged training, a check that failed (exit 1)."""

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
