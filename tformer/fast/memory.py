"""Memory that stays in the process: what one step frees, the next one takes, without asking the kernel.

A step of training frees and takes the same large arrays over and over. glibc gives an array of more than
32 MB back to the kernel as it is freed, and takes fresh pages, which the kernel has to clear, for the next
one: with a vocabulary of 8,192 words that was two fifths of all processor time on one machine
(examples/benchmarks/LOG.md).
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT = 1 << 30  # bytes: freed memory up to here stays, and arrays up to here are taken from it


def keep_freed_memory(most: int = KEPT) -> bool:
    """Let this process keep what it frees, at most `most` bytes at the end of its heap. Whether it does so.

    Where the C library is not glibc nothing changes. The process never grows past its own peak by it; what
    it had at its peak it keeps to its end.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none by this name
        return False
    large, trim = mallopt(M_MMAP_THRESHOLD, most), mallopt(M_TRIM_THRESHOLD, most)
    return bool(large and trim)
