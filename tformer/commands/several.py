"""What `tformer train` does as one of several processes, and the signals that end it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from tformer.errors import Stopped
from tformer.signals import answered_by, leave_at_once, restore

if TYPE_CHECKING:
    from tformer.ranks import Ranks
    from tformer.training.plan import TrainRequest

SPEAKS = 30.0  # seconds in which the first one of a machine says what is wrong
AGAIN = 2.0  # seconds after which a signal to one of several processes is a second one


def follow_first(request: "TrainRequest") -> None:
    """Train as one that is not the first of several: it says nothing but what is wrong with itself."""
    import torch

    from tformer.fast.memory import keep_freed_memory
    from tformer.ranks import together
    from tformer.training.fit import DivergedError, has_steps_left
    from tformer.training.following import follow
    from tformer.training.opening import prepare
    from tformer.training.plan import plan_training

    torch.set_flush_denormal(True)
    keep_freed_memory()
    prepared = prepare(plan_training(request))
    try:
        # A signal ends one that waits for the others to come.
        with together(request.ranks, prepared.device), signals_noted(request.ranks) as seen:
            session = follow(prepared)
            for _ in session.train(stop=lambda: bool(seen)):
                pass
            if has_steps_left(session.state, session.config.train):
                request.ranks.meet()  # the first one saves, and says where it stands
                raise Stopped(seen[0] if seen else signal.SIGTERM)
    except DivergedError as error:
        if is_ended_within(SPEAKS):  # the first one says the same
            raise typer.Exit(error.exit_code) from error
        raise


def is_said_by_another() -> bool:
    """Whether the first of several processes of a machine says of a wrong request what this one would."""
    return (
        {"RANK", "LOCAL_RANK"} <= os.environ.keys()
        and os.environ["LOCAL_RANK"] != "0"
        and is_ended_within(SPEAKS)
    )


def is_ended_within(seconds: float) -> bool:
    """Wait for a signal to end. torchrun sends it to all that are left as soon as one has failed.

    So the first one has the time to speak.
    """
    seen: list[int] = []
    before = answered_by(lambda number, frame: seen.append(number))
    until = time.monotonic() + seconds
    while not seen and time.monotonic() < until:
        time.sleep(0.05)
    restore(before)
    return bool(seen)


class Noted(list[int]):
    """The signals that came, by number, and what is answered to the first."""

    answer = "stopping after this step"


@contextmanager
def signals_noted(ranks: "Ranks") -> Iterator[Noted]:
    """The first SIGINT, SIGTERM or SIGHUP is noted, to be obeyed after the step; a second leaves at once.

    It is answered in a line at once: a step and its evaluation may take minutes. What torchrun is told it
    tells its processes, which may know already: of several, a second one counts when it comes later.
    """
    seen = Noted()
    told_at: list[float] = []

    def tell(text: str) -> None:  # nothing but the system: a handler may come in the middle of a print
        with suppress(OSError):
            os.write(2, text.encode())

    def note(number: int, frame: object) -> None:
        if seen and ranks.are_several and time.monotonic() - told_at[0] < AGAIN:
            return
        if seen:
            leave_at_once(number)
        seen.append(number)
        told_at.append(time.monotonic())
        if not ranks.is_first:
            return
        tell(("\n" if os.isatty(2) else "") + f"{seen.answer}; once more to leave at once\n")

    before = answered_by(note)
    try:
        yield seen
    finally:
        restore(before)
