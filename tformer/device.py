"""Which device, precision and compiler a run gets; decided once, then recorded and obeyed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from tformer.errors import RequestError


def resolve_device(name: str) -> torch.device:
    """`auto` prefers cuda, then mps, then cpu. Raises RequestError for one that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise RequestError(f"no device {name!r}", "expected auto, cpu, cuda, cuda:N or mps")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise RequestError(
            f"device {name} is not there", "PyTorch finds no such device on this machine", "use cpu"
        )
    return device


CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def decide_precision(wanted: str, device: torch.device) -> str:
    """`fp32` or `bf16`; auto takes bf16 where the hardware multiplies it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type == "cpu":
        native = any(getattr(torch.cpu, probe, lambda: False)() for probe in CPU_BF16)
        return "bf16" if native else "fp32"
    return "fp32"


def decide_compile(wanted: str, device: torch.device) -> bool:
    """auto compiles on cuda alone: on a CPU, compilation takes longer than short runs gain."""
    return wanted == "on" or (wanted == "auto" and device.type == "cuda")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bf16 where the precision says so; weights stay in float32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """While it lasts, one thread if wanted: on a busy machine, threads that wait for each other between
    small operations take ten times as long as one that never waits. And one thread adds up in one order.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
