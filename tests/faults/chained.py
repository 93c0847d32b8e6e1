"""Real SIGKILLs at random instants, chained on one run: the same command, over and over, until it is through.

A kill comes at any time of a process: as it starts, reads, trains, saves, draws. When the run comes to its
end before there were enough kills, another one with another seed begins.
"""

import os
import random
import signal
import time
from pathlib import Path

from tests.faults.kill import run, start
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import TRAIN, left_behind, no_pictures, place, state

KILLS, SOME = 500, 12
STEPS, FEW_STEPS = 6_000, 200
LONGEST = 0.5  # seconds until a kill; a process trains after about 0.1


def command(seed: int, steps: int) -> list[str]:
    """A run that saves often; evaluations are few, since each samples as well."""
    rest = {"eval_every": 100, "checkpoint_every": 5, "log_every": 3, "seed": seed, "steps": steps}
    settings = [word for key, value in rest.items() for word in ("--set", f"train.{key}={value}")]
    args = TRAIN[: TRAIN.index("--steps")] + TRAIN[TRAIN.index("--steps") + 2 :]
    return [*args, *settings, "--resume"]


def measure(folder: Path, whole: bool) -> Outcome:
    """Kill so often; compare each run with one that nothing interrupted."""
    kills, steps = (KILLS, STEPS) if whole else (SOME, FEW_STEPS)
    outcome, draws, done, runs = Outcome(), random.Random(11), 0, 0
    while done < kills and CLOCK.has_time():
        runs += 1
        here, there, args = (
            place(folder / f"killed-{runs}"),
            place(folder / f"whole-{runs}"),
            command(runs, steps),
        )
        code, said = run(args, there, prepare=no_pictures)
        assert code == 0, said
        code = -signal.SIGKILL
        while code == -signal.SIGKILL and done < kills and CLOCK.has_time():
            code, said = killed_after(draws.uniform(0, LONGEST), args, here)
            done += code == -signal.SIGKILL
        if code == -signal.SIGKILL:
            code, said = run(args, here, prepare=no_pictures)
        if code != 0:
            outcome.failures.append(f"run {runs}, after kill {done}: ended with {code}: {said[-300:]}")
            break
        if state(here / "run") != state(there / "run"):
            outcome.failures.append(f"run {runs} came to other bits")
        outcome.failures += [f"run {runs}: {name} stays" for name in left_behind(here)]
    outcome.found = f"{done} kills on {runs} run{'s' * (runs > 1)} of {steps:,} steps"
    return outcome


def killed_after(seconds: float, args: list[str], here: Path) -> tuple[int, str]:
    """The exit code (-9 where the kill came in time), and what it said."""
    child, said = start(args, here, prepare=no_pictures)
    with os.fdopen(said, encoding="utf-8", errors="replace") as stream:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


ROW = Row(
    "chained kills",
    "real SIGKILLs at random instants of training, chained on the same run",
    "500, no lost run, the bits of a run that nothing interrupted",
    measure,
)
