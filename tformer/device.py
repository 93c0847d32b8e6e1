"""Which device, precision and compiler a run gets; decided once, then recorded and obeyed.

And how numbers go to a device and come back, where it computes while Python goes on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

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


def runs_ahead(device: torch.device) -> bool:
    """Whether it computes while Python goes on, and says of one thing that it is done while at the next."""
    return device.type == "cuda"


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; CUDA makes it in its turn, and Python goes on.

    Of an array with gaps, such as windows without their last column, PyTorch would make a plain copy that is
    not pinned, and wait for it.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # PyTorch keeps such memory until it is read
    return tensor.to(device)  # one that does not wait would read memory that is given back meanwhile


def to_host(numbers: Tensor) -> Callable[[], list[float]]:
    """Send some numbers on their way; what is returned gives them, and waits for no more than it has to.

    On CUDA that is what they are computed from, not what the device was given to do after them.
    """
    if numbers.device.type != "cuda":
        return numbers.tolist
    copy = numbers.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.current_stream(numbers.device).record_event()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def synchronise(device: torch.device) -> None:
    """Wait for a device that computes while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def random_numbers_kept(device: torch.device) -> AbstractContextManager[None]:
    """Around what draws from torch's random numbers, which are afterwards what they were."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


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
