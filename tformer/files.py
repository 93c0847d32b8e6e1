"""Files: written whole or not at all, or a line added; JSON read.

Every file that tformer leaves behind goes through here.
"""

import contextlib
import io
import json
import math
import os
import re
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tformer.errors import RequestError, TformerError
from tformer.temporary import temporary_for

ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>[^/].*)")
POINTER = b"version https://git-lfs.github.com/spec/"
MOST_BYTES = 1 << 24  # of a configuration, a record, an index of shards


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make what was written to a file durable, if there is one."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        os.fsync(file.fileno())


def write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write and sync a file that nobody reads yet."""
    with path.open("w+b") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, data: bytes | Callable[[BinaryIO], object]) -> None:
    """Write bytes, or what a function writes, under `path`: what had the name keeps it until then.

    Raises TformerError if the system refuses; an error of the function itself passes through.
    """
    try:
        with temporary_for(path) as temporary:
            write_new(temporary, (lambda file: file.write(data)) if isinstance(data, bytes) else data)
            os.replace(temporary, path)
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> TformerError:
    """The error of a write that the system refused."""
    return TformerError(f"cannot write {path}", error.strerror or str(error), "what was there is unharmed")


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add a JSON object as a line. One that was cut short by a crash is passed over when the lines are read.

    Raises TformerError if the system refuses, or no file is there but something else.
    """
    check_regular(path)
    line = json.dumps(plain(values), allow_nan=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # nor does one that was cut short take this one along
                    line = b"\n" + line
            file.write(line)
    except OSError as error:
        raise cannot_write(path, error) from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A JSON object, for people to read as well."""
    write_file(
        path, (json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def check_pointer(path: Path, beginning: bytes) -> None:
    """Raises RequestError for what Git LFS leaves in the place of a file that has not been fetched."""
    if beginning.startswith(POINTER):
        found, advice = "the file itself has not been fetched", f"fetch it: git -C {path.parent} lfs pull"
        raise RequestError(f"{path} is a pointer of Git LFS", found, advice)


def check_regular(path: Path) -> None:
    """Raises RequestError for a pipe or a device in the place of a file: who opens it may wait for ever."""
    with contextlib.suppress(OSError, ValueError):
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise RequestError(f"{path} is not a regular file", "expected one to read")


def read_whole(path: Path, most: int = MOST_BYTES, may_be_pipe: bool = False) -> str:
    """A UTF-8 file that was written by a person or for one. Raises RequestError for one of over `most` bytes.

    It `may_be_pipe` where a person names it. What the system refuses is an OSError, and what is not UTF-8 a
    UnicodeDecodeError.
    """
    if not may_be_pipe:
        check_regular(path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    check_pointer(path, data)
    if len(data) > most:
        raise RequestError(f"{path} is too large", f"expected at most {most >> 20} MiB")
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # line ends as a text file has them


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises RequestError if there is none."""
    try:
        values = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0]) from None
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no object", f"found {type(values).__name__}")
    return values


def refuse_address(name: str | Path, then: str = "") -> None:
    """Raises RequestError for the address of something on a network, where a file is expected.

    It says how to fetch that; `then` is the command that takes it from a pipe, if one does.
    """
    found = ADDRESS.fullmatch(str(name))
    if not found or os.path.exists(name):
        return
    address = f"{found['scheme']}://{found['rest']}"  # a path has lost one of the two
    fetch = shlex.quote(address)
    if found["scheme"] not in ("http", "https", "ftp"):
        advice = "fetch it into a file first"
    elif then:
        advice = f"fetch it: curl -L {fetch} | {then}"
    else:
        advice = f"fetch it into a file first: curl -L -o FILE {fetch}"
    raise RequestError(f"{address} is an address", "expected a file that is here", advice)


def finite(value: float) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """What JSON can hold: what is no finite number is null, and keys are strings."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return finite(value) if isinstance(value, float) else value
