"""How far along a piece of long work is: it tells, and whoever shows it listens."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # done, in all
DownloadProgress = Callable[[int, int | None], None]  # bytes so far, bytes in all where that is known


def silent(done: int, total: int) -> None:
    """Where nobody listens."""
