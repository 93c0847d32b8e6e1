"""Every change that this process makes to a file, met before it is made.

`meet(before)` puts `before` in front of opening for writing, each half of what is written, syncing,
renaming, replacing, making and removing, in the order in which they happen. It may kill the process, raise
an OSError in the place of the system's, or return how many bytes of a write the system takes. Reading is
left alone.
"""

import builtins
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REMOVING = ("unlink", "remove", "rmdir")
RENAMING = ("rename", "replace")
GROWING = ("create", "write", "mkdir", *RENAMING)  # what a full disk refuses


@dataclass(frozen=True)
class Change:
    """What is about to happen: `create` opens a file for writing, empty where `cut`; paths are absolute."""

    kind: str
    path: str
    to: str = ""  # of a rename
    data: bytes = b""  # of a write
    offset: int = 0
    cut: bool = False


Before = Callable[[Change], int | None]


def meet(before: Before) -> None:
    """From now on, in this process and for good: it is a copy that ends soon."""
    for name in ("unlink", "remove", "rmdir", "mkdir"):
        setattr(os, name, _met_one(name, getattr(os, name), before))
    for name in RENAMING:
        setattr(os, name, _met_two(name, getattr(os, name), before))
    for name in ("fsync", "fdatasync", "ftruncate"):
        if hasattr(os, name):
            setattr(os, name, _met_descriptor(name, getattr(os, name), before))
    for name in ("link", "symlink", "truncate", "posix_fallocate", "copy_file_range", "sendfile"):
        if hasattr(os, name):
            setattr(os, name, _never(name))
    plain = io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain(file, mode, buffering, *rest, **options)
        return _open(before, file, mode, buffering, *rest, **options)

    io.open = builtins.open = opened  # type: ignore[assignment]


def _open(
    before: Before,
    file: Any,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    path = _of_descriptor(file) if isinstance(file, int) else _absolute(file)
    if not isinstance(file, int) and ("w" in mode or "x" in mode or not os.path.exists(path)):
        before(Change("create", path, cut="w" in mode))
    raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    raw.before, raw.path = before, path
    buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)  # type: ignore[operator]
    if "b" in mode:
        return buffer
    return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


class _Raw(io.FileIO):
    """A file without a buffer, whose every write is two."""

    before: Before
    path: str

    def write(self, data: Any) -> int:
        whole = bytes(data)
        half = len(whole) // 2
        done = 0
        for part in (whole[:half], whole[half:]):
            if not part:
                continue
            path = _of_descriptor(self.fileno(), self.path)  # it may have been renamed
            taken = self.before(Change("write", path, data=part, offset=_offset(self)))
            if taken is not None:
                part = part[:taken]
            done += super().write(part)
            if taken is not None:
                break
        return done


def _offset(raw: io.FileIO) -> int:
    try:
        return raw.tell()
    except OSError:  # a pipe
        return 0


def _absolute(path: Any, folder: int | None = None) -> str:
    name = os.fsdecode(path)
    return os.path.normpath(os.path.join(os.getcwd() if folder is None else _of_descriptor(folder), name))


def _of_descriptor(number: int, otherwise: str = "") -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return otherwise or f"descriptor {number}"


def _met_one(name: str, function: Callable, before: Before) -> Callable:
    kind = "unlink" if name == "remove" else name

    def call(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
        before(Change(kind, _absolute(path, dir_fd)))
        return function(path, *args, dir_fd=dir_fd, **options)

    return call


def _met_two(name: str, function: Callable, before: Before) -> Callable:
    def call(old: Any, new: Any) -> Any:
        before(Change("rename", _absolute(old), _absolute(new)))
        return function(old, new)

    return call


def _met_descriptor(name: str, function: Callable, before: Before) -> Callable:
    kind = "fsync" if name == "fdatasync" else name

    def call(number: Any, *args: Any) -> Any:
        number = number if isinstance(number, int) else number.fileno()
        before(Change(kind, _of_descriptor(number)))
        return function(number, *args)

    return call


def _never(name: str) -> Callable:
    def call(*args: Any, **options: Any) -> Any:
        raise NotImplementedError(f"os.{name}: teach tests/faults/disk.py what it changes")

    return call


def inside(path: str, folder: Path) -> bool:
    """Whether a path lies in a folder."""
    return Path(path).is_relative_to(folder)
