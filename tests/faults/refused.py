"""The system refuses a change of a file: no space from then on, an I/O error, or a write that is cut short.

Every change that a command makes has its turn with every refusal. A command that cannot do its work says so
in one line and ends with 1; what was there before is unharmed, and once the system has room again the same
command does it. A write that takes only a part is no error: the rest is written as well.
"""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tests.faults.disk import GROWING, Before, Change, inside
from tests.faults.every_change import State, goes_on, says
from tests.faults.kill import run
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, left_behind, made, no_pictures, sha256, state

SOME = 61  # of the sample: every so manyth change
TOKENIZER = ["tokenize", "text.txt", "--train", "--tokenizer", "char", "--out", "made.json"]
IDS = ["tokenize", "text.txt", "--tokenizer", "run", "--out", "made.npy"]
FOLDER = ["tokenize", "text.txt", "--tokenizer", "run", "--processes", "1", "--documents", "line"]
PICTURE = ["eval", "attention", "--prompt", "To be", "--run", "run", "--device", "cpu", "--out", "made.svg"]


@dataclass(frozen=True)
class Refusal:
    """Which errno, from when on."""

    name: str
    number: int = 0  # 0: a write is cut short
    goes_on: bool = False
    growing: bool = False  # only what needs room

    def at(self, turn: int, folder: Path) -> Before:
        """What meets the changes in a folder; the first has number 1."""
        numbers = count(1)

        def before(change: Change) -> int | None:
            if not inside(change.path, folder):
                return None
            n = next(numbers)
            if n < turn or (n > turn and not self.goes_on) or (self.growing and change.kind not in GROWING):
                return None
            if not self.number:
                return max(1, len(change.data) // 3) if change.kind == "write" else None
            raise OSError(self.number, os.strerror(self.number), change.path)

        return before


REFUSALS = (
    Refusal("no space", errno.ENOSPC, goes_on=True, growing=True),
    Refusal("I/O error", errno.EIO),
    Refusal("I/O errors", errno.EIO, goes_on=True),
    Refusal("short write"),
)


Judge = Callable[[Path, int, str, Refusal], list[str]]  # of the folder, the exit code, what was said


@dataclass(frozen=True)
class Scene:
    """A command in a folder with a text and a run, or without the run, and what has to be so afterwards."""

    name: str
    args: list[str]
    judge: Judge
    with_run: bool = True
    prepare: Callable[[], object] = no_pictures


def measure(folder: Path, whole: bool) -> Outcome:
    """All commands that write files."""
    here, ends = made(folder / "made")
    old = state(here / "run")
    code, said = run(EVAL, here)  # so that there is something to lose
    assert code == 0, said

    def new(there: Path, code: int, said: str, refusal: Refusal) -> list[str]:
        return goes_on(there, ends["new"])

    def over(there: Path, code: int, said: str, refusal: Refusal) -> list[str]:
        found = says(there, SAMPLE, 0)
        if sha256(there / "run" / "model.safetensors") != old[2][0]:  # type: ignore[index]
            found += goes_on(there, ends["new"])
        return found + goes_on(there, ends["new"], "--overwrite")

    scenes = [
        Scene("train", [*TRAIN, "--resume"], new, with_run=False),
        Scene("train --overwrite", [*TRAIN, "--overwrite"], over),
        _writes(folder, here, TOKENIZER, "tokenize --train"),
        _writes(folder, here, IDS, "tokenize --out"),
        Scene("eval loss", EVAL, _added(here, old)),
        _writes(folder, here, PICTURE, "eval attention --out"),
        _of_ids(folder, here),
        _of_ids(folder, here, "--overwrite"),
    ]
    outcome = Outcome()
    every, met = 1 if whole else SOME, Counter(dict.fromkeys((scene.name for scene in scenes), 0))
    turns = {scene.name: range(1, _changes(folder, here, scene) + 1, every) for scene in scenes}
    cases = [(scene, turn, r) for scene in scenes for turn in turns[scene.name] for r in REFUSALS]
    for scene, turn, refusal in CLOCK.mixed(cases):
        outcome.failures += _met(folder / "here", here, scene, turn, refusal)
        met[scene.name] += 1
    told = ", ".join(f"{name} {n:,}" for name, n in met.items())
    outcome.found = f"{met.total():,} refusals ({told})"
    return outcome


def _met(here: Path, made_here: Path, scene: Scene, turn: int, refusal: Refusal) -> list[str]:
    """What is wrong when a change of a command, counted from 1, is refused."""
    _fresh(made_here, here, scene)
    code, said = run(scene.args, here, before=refusal.at(turn, here), prepare=scene.prepare)
    found = [] if refusal.number or code == 0 else ["a short write is an error"]
    errors = [line for line in said.splitlines() if line.startswith("tformer: error: ")]
    if code not in (0, 1) or len(errors) != (code == 1) or "bug" in said or "Traceback" in said:
        found.append(f"ended with {code}: {said.strip()[-300:]}")
    found += scene.judge(here, code, said, refusal)
    return [f"{scene.name}, {refusal.name} at change {turn}: {problem}" for problem in found]


def _fresh(made_here: Path, here: Path, scene: Scene) -> None:
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(made_here, here, ignore=None if scene.with_run else shutil.ignore_patterns("run"))


def _changes(folder: Path, made_here: Path, scene: Scene) -> int:
    """How many changes a command makes."""
    here, log = folder / "here", folder / "count"
    _fresh(made_here, here, scene)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def before(change: Change) -> None:
        if inside(change.path, here):
            os.write(descriptor, b"x")

    code, said = run(scene.args, here, before=before, prepare=scene.prepare)
    os.close(descriptor)
    assert code == 0, said
    return log.stat().st_size


def _writes(folder: Path, made_here: Path, args: list[str], name: str) -> Scene:
    """A command that writes one file, over an older one, which is there or the new one is."""
    file = next(word for word in args if word.startswith("made."))
    args = [*args, "--overwrite"]
    (made_here / file).write_bytes(b"the older one")
    scene = Scene(name, args, lambda *rest: [])
    _fresh(made_here, folder / "here", scene)
    code, said = run(args, folder / "here")
    assert code == 0, said
    right = (folder / "here" / file).read_bytes()

    def judge(here: Path, code: int, said: str, refusal: Refusal) -> list[str]:
        there = (here / file).read_bytes()
        found = ["it said that it was done, and it is not"] * (code == 0 and there != right)
        found += ["neither the older file nor the new one"] * (there not in (b"the older one", right))
        lost = refusal.number == errno.EIO and refusal.goes_on  # nothing can be removed any more
        found += [f"{left} stays" for left in left_behind(here) if not lost]
        found += says(here, args, 0)
        return found + ["the same command makes another file"] * ((here / file).read_bytes() != right)

    return Scene(name, args, judge)


def _of_ids(folder: Path, made_here: Path, *option: str) -> Scene:
    """A folder of ids, in several files: a new one, or over one of other ids."""
    name = "over" if option else "ids"
    args, here = [*FOLDER, "--out", f"{name}/", *option], folder / "here"
    older: dict[str, bytes] = {}
    if option:
        code, said = run([*args, "--documents", "none"], made_here, prepare=_small_files)
        assert code == 0, said
        older = _files(made_here / name)
    scene = Scene(" ".join(["tokenize --out FOLDER/", *option]), args, lambda *rest: [], prepare=_small_files)
    _fresh(made_here, here, scene)
    code, said = run(args, here, prepare=_small_files)
    assert code == 0, said
    right = _files(here / name)
    assert sum(file.startswith("ids-") for file in right) > 2 and right != older, sorted(right)

    def judge(here: Path, code: int, said: str, refusal: Refusal) -> list[str]:
        there = _files(here / name)
        found = ["it said that it was done, and it is not"] * (code == 0 and there != right)
        whole = json.loads(there.get("index.json") or "{}").get("complete", False)
        found += ["it says that it is whole, and is not"] * (whole and there not in (older, right))
        rest = _files(made_here, but=name)
        found += ["what is not its own has been changed"] * (_files(here, but=name) != rest)
        if refusal.number != errno.EIO or not refusal.goes_on:  # where something can be removed
            found += [f"{left} stays" for left in left_behind(here)]
        again, said = run(args, here, prepare=_small_files)
        found += [f"the same command ended with {again}: {said.strip()[-300:]}"] * (again != 0)
        return found + ["the same command makes other files"] * (_files(here / name) != right)

    return replace(scene, judge=judge)


def _files(folder: Path, but: str = " ") -> dict[str, bytes]:
    """All that lies below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(but)}


def _small_files() -> None:
    """For a copy of this process: a short text makes several files of ids."""
    from tformer.text import blocks, shards

    no_pictures()
    blocks.BLOCK_CHARACTERS, blocks.LONG_DOCUMENT, shards.SHARD = 200, 400, 300


def _added(made_here: Path, old: State) -> Judge:
    """An evaluation adds a line to evals.jsonl, and the run is as it was."""
    before = _lines(made_here)

    def judge(here: Path, code: int, said: str, refusal: Refusal) -> list[str]:
        found = ["the run is not as it was"] * (state(here / "run") != old)
        found += ["a line of evals.jsonl is lost"] * (_lines(here)[: len(before)] != before)
        there = len(_lines(here))
        kept = code == 0 and "the result is not kept" not in said
        found += ["it did not say that nothing is kept"] * (kept and there != len(before) + 1)
        found += says(here, EVAL, 0)
        return found + ["the next evaluation is not kept"] * (len(_lines(here)) != there + 1)

    return judge


def _lines(here: Path) -> list[object]:
    found = []
    for line in (here / "run" / "evals.jsonl").read_text(errors="replace").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


ROW = Row(
    "refusals",
    "ENOSPC, EIO (once, and from then on) and short writes at every change of a file, in train, tokenize, "
    "eval and reports",
    "one line and exit 1 where it cannot be done; what was there is unharmed; the same command does it later",
    measure,
)
