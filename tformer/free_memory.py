"""What memory is free to a process, on the host or on a device, and what it holds."""

import sys
from pathlib import Path

import torch

from tformer.errors import RequestError


def free_bytes(device: torch.device, processes: int = 1) -> int | None:
    """What a process may still take, by the system, its group and its own limit; None where nobody says.

    On a CPU `processes` share the memory of the machine, and each may take as much as any other.
    """
    if device.type == "cuda":  # what PyTorch holds and nobody uses is as good as free
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    import resource  # which other systems lack

    shared = [_field("/proc/meminfo", "MemAvailable:")]
    shared += _left_to_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    known = [n // processes for n in shared if n is not None]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        known.append(limit - (_field("/proc/self/status", "VmSize:") or 0))
    return min(known, default=None)


def held_bytes() -> tuple[int, int] | None:
    """What this process holds, now and at its peak; None where the system does not say it in this form."""
    now, peak = (_field("/proc/self/status", name) for name in ("VmRSS:", "VmHWM:"))
    return None if now is None or peak is None else (now, peak)


def _left_to_groups(root: Path, membership: Path) -> list[int]:
    """What each control group that the process is in, and those around it, may still take, in either layout.

    Files that are read ahead or were read once are given back first, and do not count as taken.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            top = root / "memory"
        else:
            continue
        own = top / path.strip("/")
        for group in (own, *own.parents):  # inside a container `path` may be the host's, and not be there
            most, used = _number(group / names[0]), _number(group / names[1])
            if most is not None and used is not None:
                left.append(most - used + (_field(str(group / "memory.stat"), names[2], 1) or 0))
            if group == top:
                break
    return left


def _field(path: str, name: str, unit: int = 1024) -> int | None:
    """A line of one of the system's tables, of kilobytes where nothing else is said, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((unit * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def amount(n: float) -> str:
    """Bytes as a person reads them."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def refuse_larger_than(free: int | None, needed: int, what: str, advice: str) -> None:
    """Raises RequestError for what certainly has no room; where nobody says what is `free`, nothing.

    What has none would be ended by the system, when all memory is taken, without a word. `what` takes it.
    """
    if free is not None and needed > free:
        raise RequestError(what, f"{amount(free)} are free", advice)
