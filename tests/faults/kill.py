"""A command in a copy of this process, to which something happens at a chosen file operation.

It is killed as `kill -9` does: nothing of the process runs afterwards, no handler, no `finally`. Or whatever
else a function makes of the changes that are about to happen (`tests/faults/disk.py`).
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.disk import Before, Change, meet

NEVER = 1 << 30


def run(
    args: Sequence[str],
    cwd: Path,
    kill_at: int = NEVER,
    before: Before | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[int, str]:
    """`tformer ARGS` in a process of its own: its exit code (-9 where it was killed), and what it said.

    `kill_at` is the number, from 1, of the operation before which it dies; `before` meets each instead.
    `prepare` is called there first.
    """
    child, said = start(args, cwd, before or killer(kill_at), prepare)
    with os.fdopen(said, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def start(
    args: Sequence[str], cwd: Path, before: Before | None = None, prepare: Callable[[], object] = lambda: None
) -> tuple[int, int]:
    """The same, not waited for: the process, and a descriptor from which what it says is read."""
    load()
    said, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(said)
            os.dup2(told, 1)
            os.dup2(told, 2)
            _become(args, cwd, before, prepare)
        finally:
            os._exit(99)
    os.close(told)
    return child, said


@cache
def load() -> None:
    """Have at hand what the copies need, so that each is quick: what a training and a sample import."""
    from tformer.cli import app

    with TemporaryDirectory() as name, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        text, run = Path(name, "text.txt"), Path(name, "run")
        text.write_text("To be, or not to be\n" * 20)
        tiny = ("model.d_model=8", "model.n_layers=1", "model.n_heads=1", "model.n_ctx=8", "train.steps=1")
        settings = [word for setting in tiny for word in ("--set", setting)]
        app(["train", str(text), "--out", str(run), "--device", "cpu", *settings], standalone_mode=False)
        app(["sample", "To", "--run", str(run), "-n", "1", "--device", "cpu"], standalone_mode=False)
        app(["eval", "loss", "--run", str(run), "--device", "cpu", "--json"], standalone_mode=False)


def killer(turn: int) -> Before:
    """Die before the change of this number."""
    numbers = count(1)

    def before(change: Change) -> None:
        if change.path.startswith("pipe:"):
            return
        if next(numbers) == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def _become(
    args: Sequence[str], cwd: Path, before: Before | None, prepare: Callable[[], object] = lambda: None
) -> None:
    from tformer.cli import main

    os.chdir(cwd)
    sys.argv = ["tformer", *args]
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    prepare()
    if before:
        meet(before)
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0))
