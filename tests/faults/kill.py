"""A process that dies at a chosen file operation: a copy of this one, killed as `kill -9` does.

Opening for writing, each half of what is written, syncing, renaming, replacing, making and removing count,
in the order in which they happen. Nothing of the process runs after the kill: no handler, no `finally`.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path

CHANGES = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "link", "ftruncate")
NEVER = 1 << 30


def run(args: Sequence[str], cwd: Path, kill_at: int = NEVER) -> tuple[int, str]:
    """`tformer ARGS` in a process of its own: its exit code (-9 where it was killed), and what it said.

    `kill_at` is the number, from 1, of the operation before which it dies.
    """
    _load()
    said, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(said)
            os.dup2(told, 1)
            os.dup2(told, 2)
            _become(args, cwd, kill_at)
        finally:
            os._exit(99)
    os.close(told)
    with os.fdopen(said, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@cache
def _load() -> None:
    """Have at hand what the copies need, so that each is quick; matplotlib looks for its fonts once."""
    import tformer.commands.sample
    import tformer.commands.train
    import tformer.run.loaded
    import tformer.show.training
    import tformer.training.opening  # noqa: F401
    from tformer.show.svg import loss_svg

    loss_svg([{"step": 1, "loss": 1.0, "lr": 1.0}], "")


def _become(args: Sequence[str], cwd: Path, kill_at: int) -> None:
    from tformer.cli import main

    os.chdir(cwd)
    sys.argv = ["tformer", *args]
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    _count(kill_at)
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0))


def _count(kill_at: int) -> None:
    """Put a counter before every operation that changes a file."""
    numbers = count(1)

    def tick() -> None:
        if next(numbers) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            tick()
            return function(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    plain = Path.open

    def opened(path: Path, mode: str = "r", *args, **kwargs):
        if not set(mode) & set("wax+"):
            return plain(path, mode, *args, **kwargs)
        tick()
        return _Halves(plain(path, mode, *args, **kwargs), tick)

    Path.open = opened  # type: ignore[method-assign,assignment]


class _Halves:
    """A file whose every write reaches the disk in two halves, with a chance to die before each."""

    def __init__(self, file, tick: Callable[[], None]):
        self.file, self.tick = file, tick

    def write(self, data) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.tick()
            self.file.write(part)
            self.file.flush()
        return len(data)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name: str):
        return getattr(self.file, name)
