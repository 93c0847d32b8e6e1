"""Temporary files: where one is written before it gets its name, and what dead writers left.

A writer holds a lock on its own for as long as it lives, so that nobody takes it for one that was left:
process numbers say nothing across machines and containers.
"""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tformer.signals import undone_by_signal

TEMPORARY = ".tmp-"
TEMPORARY_FILE = re.compile(rf"{re.escape(TEMPORARY)}\d+-.+")  # what temporary files are called
DAY = 86_400.0  # seconds after which one is left, where the system has no locks that could tell


def lock(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """Hold a file or a folder: a descriptor, to be closed; None where the system has no locks.

    Raises BlockingIOError where another process holds it.
    """
    if os.name == "nt":
        return None
    descriptor = os.open(path, flags, 0o666)
    try:
        _take(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        pass
    return descriptor


def _take(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def temporary_for(path: Path) -> Iterator[Path]:
    """A new file beside `path` for what will be there, held while the block runs; gone where that fails."""
    sweep_for(path)
    temporary, descriptor = _held(path)
    try:
        with undone_by_signal(temporary.unlink):
            yield temporary
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _held(path: Path) -> tuple[Path, int | None]:
    while True:
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
        try:
            descriptor = lock(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except BlockingIOError:  # whoever sweeps was quicker
            continue
        if descriptor is None or os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def sweep_for(path: Path) -> None:
    """Remove the temporary files that dead writers of `path` left beside it."""
    ours = re.compile(rf"{re.escape(TEMPORARY)}\d+-([0-9a-f]{{8}}-)?{re.escape(path.name)}")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for name in [entry.name for entry in entries if ours.fullmatch(entry.name)]:
            remove_left(path.with_name(name))


def remove_left(path: Path) -> None:
    """Remove a temporary file whose writer is dead; leave that of a living one."""
    with suppress(OSError):
        if os.name != "nt":
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                _take(descriptor)
                path.unlink()
                return
            except BlockingIOError:
                return
            finally:
                os.close(descriptor)
    with suppress(OSError):
        if time.time() - path.lstat().st_mtime > DAY:
            path.unlink()
