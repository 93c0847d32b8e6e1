"""A power failure after every change of a file: what was not synced is absent, cut short, zeroed or undone.

The changes of a real run are recorded; what a disk may hold after each is made of them by
`tests/faults/unsynced.py`, and the same command goes on from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.disk import Change, inside
from tests.faults.every_change import State, goes_on, says
from tests.faults.kill import run
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import SAMPLE, TRAIN, damaged, made, no_pictures, place, sha256
from tests.faults.unsynced import Tree, crashes, read_tree, write_tree

SOME = 43  # of the sample: every so manyth change
Broken = Callable[[], object]


def measure(folder: Path, whole: bool) -> Outcome:
    """A new run, and one that overwrites another."""
    if not os.path.isdir("/proc/self/fd"):
        return Outcome(skipped="nothing says which file a descriptor is of")
    here, ends = made(folder / "made")
    found = Outcome()
    every = 1 if whole else SOME
    n, cases = new_run(folder / "new", ends["new"], found.failures, every)
    m, more = overwritten(folder / "over", here / "run", ends["old"], ends["new"], found.failures, every)
    found.found = f"{cases + more:,} different states of the disk after {n + m} changes"
    return found


def recorded(args: list[str], here: Path, broken: Broken = lambda: None) -> list[Change]:
    """The changes that a command makes in a folder, in their order."""
    path = here.parent / f"{here.name}.changes"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before(change: Change) -> None:
        if inside(change.path, here):
            line = vars(change) | {"data": change.data.hex()}
            os.write(log, (json.dumps(line) + "\n").encode())

    def prepare() -> None:
        no_pictures()
        broken()

    code, said = run(args, here, before=before, prepare=prepare)
    os.close(log)
    assert code == 0, said
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Change(**line | {"data": bytes.fromhex(line["data"])}) for line in lines]


def new_run(
    folder: Path, end: State, failures: list[str], every: int = 1, broken: Broken = lambda: None
) -> tuple[int, int]:
    """A run that begins, saves three times and ends: how many changes, and how many states of the disk."""
    folder.mkdir()
    here = place(folder / "run-in")
    before = read_tree(here)
    changes = recorded([*TRAIN, "--resume"], here, broken)

    def judge(there: Path) -> list[str]:
        has_weights = (there / "run" / "model.safetensors").exists()
        return says(there, SAMPLE, 0 if has_weights else 2) + goes_on(there, end)

    return len(changes), _each(before, changes, here, every, judge, failures)


def overwritten(
    folder: Path, old: Path, old_end: State, end: State, failures: list[str], every: int = 1
) -> tuple[int, int]:
    """A run that takes the place of another, which is on the disk."""
    folder.mkdir()
    here = place(folder / "run-in")
    shutil.copytree(old, here / "run")
    before = read_tree(here)
    changes = recorded([*TRAIN, "--overwrite"], here)

    def judge(there: Path) -> list[str]:
        found = says(there, SAMPLE, 0)
        if sha256(there / "run" / "model.safetensors") != old_end[2][0]:  # type: ignore[index]
            found += goes_on(there, end)
        return found + goes_on(there, end, "--overwrite")

    return len(changes), _each(before, changes, here, every, judge, failures)


def _each(
    before: Tree,
    changes: list[Change],
    here: Path,
    every: int,
    judge: Callable[[Path], list[str]],
    failures: list[str],
) -> int:
    """Judge what may lie there after each so manyth change; how many states that were."""
    seen: set[str] = set()
    there = here.parent / "left"
    for n in CLOCK.mixed(range(len(changes), 0, -every)):
        for name, tree in CLOCK.each(crashes(before, changes[:n])):
            digest = hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            write_tree(tree, here, there)
            found = damaged(there / "run")
            found += judge(there)
            failures += [f"after change {n} ({changes[n - 1].kind}), {name}: {problem}" for problem in found]
            shutil.rmtree(there)
    return len(seen)


ROW = Row(
    "power loss",
    "power failure after every change of a file: unsynced data absent, cut short or zeroed, unsynced renames "
    "and removals undone, in any mixture",
    "all recover to the same bits",
    measure,
)
