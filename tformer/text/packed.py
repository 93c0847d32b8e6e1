"""Packed files: what a name ends in, and a stream of what is inside.

gzip, bzip2 and xz are read by the standard library, zstd by it from Python 3.14 on and by an extra before.
"""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

from tformer.errors import RequestError

PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")


def packing(path: str | Path) -> str:
    """The ending that says how a file is packed, in small letters; empty for one that is not."""
    ending = Path(path).suffix.lower()
    return ending if ending in PACKED_ENDINGS else ""


def inner_ending(path: str | Path) -> str:
    """The ending of what is in a file, in small letters.

    >>> inner_ending("a/stories.JSONL.gz"), inner_ending("names.txt")
    ('.jsonl', '.txt')
    """
    inner = Path(path).with_suffix("") if packing(path) else Path(path)
    return inner.suffix.lower()


class Unpacked:
    """What is in a packed file, as a stream of bytes. RequestError where that is damaged or cut short."""

    def __init__(self, path: Path, stream: Any, errors: tuple[type[Exception], ...]):
        self.path, self.stream, self.errors = path, stream, errors

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes, or all."""
        try:
            return cast(bytes, self.stream.read(size))
        except self.errors as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            advice = "it is damaged or not whole: fetch it again"
            raise RequestError(f"cannot unpack {self.path}", why, advice) from None

    def close(self) -> None:
        """Close the file as well."""
        self.stream.close()

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def unpack(path: Path) -> BinaryIO:
    """A file for reading, unpacked where its name says that it is packed.

    Raises OSError as `open` does, and RequestError where what unpacks it is not installed.
    """
    ending = packing(path)
    if not ending:
        return path.open("rb")
    ways: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    errors: tuple[type[Exception], ...] = (
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        *_zstd_errors(ending),
    )
    path.open("rb").close()  # an error of the system is one, and none of the packing
    return cast(BinaryIO, Unpacked(path, ways.get(ending, _zstd)(path), errors + _zstd_errors(ending)))


def _zstd(path: Path) -> Any:
    module = _zstd_module()
    if module is None:
        raise RequestError(
            f"{path} is packed with zstd",
            "zstandard, which unpacks it, is not installed",
            f"pip install 'tformer[zstd]', or unpack it: zstd -d {path}",
        )
    return module.open(path, "rb")


def _zstd_errors(ending: str) -> tuple[type[Exception], ...]:
    module = _zstd_module() if ending == ".zst" else None
    return (module.ZstdError,) if module else ()


def _zstd_module() -> ModuleType | None:
    """The standard library's, which is new, or the extra; None where there is neither."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd as module
        else:
            import zstandard as module
    except ImportError:
        return None
    return cast(ModuleType, module)
