"""SIGKILL before every change of a file: of a start, of saves, of the end of a run, of a run overwritten.

What is left is read by `sample` and `eval` at once, and judged by an oracle of its own: a checkpoint with a
final name is what its manifest says, and there are never fewer of them than before. The same command then
goes on, to the same bits.
"""

import shutil
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

from tests.faults.kill import run
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import (
    EVAL,
    SAMPLE,
    TRAIN,
    checkpoints,
    damaged,
    left_behind,
    made,
    no_pictures,
    place,
    sha256,
    state,
)

SOME = (2, 4, 7, 11, 16, 22, 27, 34, 48, 70, 110, 140)
KEPT = 2  # checkpoints
State = tuple[object, ...]


def measure(folder: Path, whole: bool) -> Outcome:
    """Both experiments."""
    here, ends = made(folder / "made")
    turns = count(1) if whole else SOME
    fresh, failures = fresh_run(folder, ends["new"], turns)
    turns = count(1) if whole else SOME
    again, more = overwritten_run(folder, here / "run", ends["old"], ends["new"], turns)
    return Outcome(f"{fresh} kills of a new run, {again} of one that overwrites", failures + more)


def fresh_run(
    folder: Path, end: State, turns: Iterable[int], writer: Callable[[], object] = lambda: None
) -> tuple[int, list[str]]:
    """Kill a run that begins, saves three times and ends; how many kills, and what went wrong.

    `writer` puts another writer in the place of the real one, of which the experiment is to say so.
    """

    def prepare() -> None:
        no_pictures()
        writer()

    failures, kills, saved = [], 0, 0
    for turn in CLOCK.each(turns):
        here = place(folder / f"fresh-{turn}")
        code, said = run([*TRAIN, "--resume"], here, turn, prepare=prepare)
        if code != -9:
            assert code == 0, said
            break
        kills += 1
        found, saved = _after_kill(here, saved)
        if not (here / "run" / "model.safetensors").exists():
            found += says(here, SAMPLE, 2)
        else:
            found += says(here, SAMPLE, 0) + says(here, EVAL, 0)
        found += goes_on(here, end)
        failures += [f"new run, killed at {turn}: {problem}" for problem in found]
        shutil.rmtree(here)
    return kills, failures


def overwritten_run(
    folder: Path, old: Path, old_end: State, end: State, turns: Iterable[int]
) -> tuple[int, list[str]]:
    """Kill a run that takes the place of another: the old one is there until the new one has weights."""
    failures, kills = [], 0
    for turn in CLOCK.each(turns):
        here = place(folder / f"over-{turn}")
        shutil.copytree(old, here / "run")
        code, said = run([*TRAIN, "--overwrite"], here, turn, prepare=no_pictures)
        if code != -9:
            assert code == 0, said
            break
        kills += 1
        found = says(here, SAMPLE, 0) + says(here, EVAL, 0)
        found += damaged(here / "run")
        if sha256(here / "run" / "model.safetensors") == old_end[2][0]:  # type: ignore[index]
            found += ["neither the old state nor the new one"] * (state(here / "run") != old_end)
        else:
            found += goes_on(here, end)
        found += goes_on(here, end, "--overwrite")
        failures += [f"overwriting, killed at {turn}: {problem}" for problem in found]
        shutil.rmtree(here)
    return kills, failures


def _after_kill(here: Path, saved: int) -> tuple[list[str], int]:
    """What is wrong with the checkpoints that a kill left, and how many there are."""
    there = checkpoints(here / "run")
    found = damaged(here / "run")
    if len(there) < min(KEPT, saved):
        found.append(f"{len(there)} checkpoints, where a kill before left {saved}")
    return found, max(saved, len(there))


def says(here: Path, command: list[str], expected: int) -> list[str]:
    """What is wrong with how a command ends here, if anything."""
    code, said = run(command, here)
    right = code == expected and "Traceback" not in said and "this is a bug" not in said
    return [] if right else [f"{' '.join(command[:2])} ended with {code}: {said.strip()[-200:]}"]


def goes_on(here: Path, end: State, option: str = "--resume") -> list[str]:
    """Whether the same command comes to the end that is known, and leaves nothing behind."""
    code, said = run([*TRAIN, option], here, prepare=no_pictures)
    if code != 0:
        return [f"train {option} ended with {code}: {said.strip()[-300:]}"]
    found = ["passed over a checkpoint"] * ("passed over" in said)
    found += [f"train {option} came to another end"] * (state(here / "run") != end)
    return found + [f"{name} stays" for name in left_behind(here)]


ROW = Row(
    "every change",
    "SIGKILL before every change of a file: a start, saves, the end of a run; a run that overwrites another",
    "all go on to the same bits; `sample` and `eval` work on what is left",
    measure,
)
