"""How the threads of PyTorch wait for each other. Settled before PyTorch is imported, and so light."""

import os
from pathlib import Path

LOADAVG = Path("/proc/loadavg")  # Linux: "0.20 0.18 0.12 1/80 11206", of which 1 process runs now
BUSY = 0.5  # of the cores have another process that runs


def others_run() -> bool:
    """Whether other processes keep half of the cores or more at work, at this instant."""
    cores = os.cpu_count() or 1
    try:
        running = int(LOADAVG.read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running - 1 >= BUSY * cores  # this one runs as well


def wait_asleep() -> None:
    """Have threads that wait for another sleep at once, unless the environment says how they wait.

    By default they keep their core at work for about a millisecond, which begins a next operation sooner.
    Where there are fewer free cores than threads, that is the core that the other thread needs.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
