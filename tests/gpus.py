"""GPUs for tests, on a CPU: a CUDA device, and one of Apple's that refuses what MPS refuses.

Tensors of the device are wrappers around CPU tensors. Every operation on one goes through
`__torch_dispatch__`, which computes with what is inside; every function that names the device goes through a
function mode. MPS has no float64; and a copy to it from memory that is not pinned may run when that memory is
another's already, so that asking for one that does not wait (`non_blocking=True`) is refused here, where
PyTorch says nothing. What makes Python wait for the device is noted (`OnDevice.waits`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from tformer.model import attention, causal_mask

MPS, CUDA = torch.device("mps", 0), torch.device("cuda", 0)
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)

# What PyTorch answers of a CUDA device: one, an H100.
CUDA_SAYS = {
    "is_available": True,
    "device_count": 1,
    "get_device_capability": (9, 0),
    "is_bf16_supported": True,
    "synchronize": None,
    "is_current_stream_capturing": False,
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": None,
    "mem_get_info": (8 << 30, 8 << 30),
    "current_stream": SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: None)),
}
# What takes tensors of the device and others of the CPU together; a number of the CPU goes with all.
MIXING = (
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
# What has to know numbers of the device: one of them, or how many there are of something.
WAITING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class OnDevice(Tensor):
    """A tensor of the device; `inside` is where its numbers are."""

    inside: Tensor
    gpu = MPS  # the one that is there
    waits: ClassVar[list[str]] = []  # of Python for the device, a name each

    @staticmethod
    def __new__(cls, inside: Tensor) -> "OnDevice":
        if OnDevice.gpu == MPS and inside.dtype in (torch.float64, torch.complex128):
            raise TypeError(NO_FLOAT64)
        return Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device="cpu",
            requires_grad=inside.requires_grad,
        )

    def __init__(self, inside: Tensor):
        self.inside = inside.detach()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        """What the code under test sees; torch itself takes the wrapper for one of the CPU."""
        return OnDevice.gpu

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves: list[object] = []
        _each(leaves.append, (args, kwargs))
        given = [t for t in leaves if isinstance(t, Tensor)]
        strangers = [t for t in given if not isinstance(t, OnDevice) and t.ndim > 0]
        if strangers and func not in MIXING:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, found {OnDevice.gpu} and cpu ({func})"
            )
        if func in WAITING:
            OnDevice.waits.append(str(func))
        wrapper_of = {id(t.inside): t for t in given if isinstance(t, OnDevice)}
        out = func(*_each(_inside, args), **_each(_inside, kwargs or {}))

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in wrapper_of:
                return wrapper_of[id(value)]
            # A view of an ordinary tensor is ordinary, in inference mode too.
            with torch.inference_mode(torch.is_inference_mode_enabled() and not is_plain_view):
                return OnDevice(value)

        is_plain_view = func.is_view and not any(t.is_inference() for t in given)
        return _each(wrapped, out)

    def __repr__(self, **options: Any) -> str:
        return f"{self.inside} on {OnDevice.gpu}"


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """What an operation takes or gives, changed in its every part; torch's own `tree_map` is slower."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(change, part) for part in value])
    if isinstance(value, dict):
        return {key: _each(change, part) for key, part in value.items()}
    return change(value)


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, OnDevice) else value


class _Device(TorchFunctionMode):
    """Functions that name a device, or leave it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.cuda, Tensor.mps if hasattr(Tensor, "mps") else None):
            raise AssertionError("use .to(device)")
        if func is Tensor.numpy and isinstance(args[0], OnDevice):
            raise TypeError(f"can't convert {OnDevice.gpu} device type tensor to numpy.")
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            OnDevice.waits.append("tolist")
            return args[0].inside.tolist()
        if func is Tensor.pin_memory:
            if not args[
                0
            ].is_contiguous():  # PyTorch makes a copy of it that is not pinned, and waits for that
                OnDevice.waits.append("a copy of memory with gaps")
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        if func in (Tensor.to, Tensor.cpu):
            return _moved(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention and isinstance(args[0], OnDevice):
            with self:  # one kernel on a card; torch would make its mask where it takes the wrapper to be
                return _attention(*args, **kwargs)
        if "device" in kwargs and _is_gpu(kwargs["device"]):
            if func in (torch.tensor, torch.as_tensor):
                OnDevice.waits.append("numbers of Python")
            return OnDevice(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def _attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, dropout_p: float) -> Tensor:
    assert is_causal
    mask = causal_mask(q.shape[-2], k.shape[-2], OnDevice.gpu)
    return attention(q, k, v, mask, dropout_p)[0]


def _is_gpu(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == OnDevice.gpu.type


def _moved(func: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` in its three forms, and `Tensor.cpu`; it is converted where it lies, then copied."""
    if func is Tensor.cpu:
        args = ("cpu", *args)
    options = dict(zip(("device", "dtype", "non_blocking", "copy"), args, strict=False)) | kwargs
    options.pop("memory_format", None)
    if isinstance(like := options.get("device", options.pop("other", None)), Tensor):
        options |= {"device": like.device, "dtype": like.dtype}
    elif isinstance(like, torch.dtype):
        options |= {"device": None, "dtype": like, "non_blocking": options.get("dtype", False)}
    dtype, target = options.get("dtype") or tensor.dtype, options.get("device") or tensor.device
    was_on = isinstance(tensor, OnDevice)
    if _is_gpu(target):
        is_pinned = getattr(tensor, "is_pinned_here", False)
        if not was_on and options.get("non_blocking") and not is_pinned:
            raise AssertionError("non_blocking from pageable memory: it may be read when it is gone")
        if not was_on and not options.get("non_blocking"):
            OnDevice.waits.append("copy to the device")
        if was_on:
            return tensor if dtype == tensor.dtype else torch.ops.aten._to_copy(tensor, dtype=dtype)
        return OnDevice(tensor.detach().to(dtype)).requires_grad_(tensor.requires_grad)
    if was_on and dtype != tensor.dtype:
        OnDevice(tensor.inside.to(dtype))  # converted where it lies, then copied
    if was_on and not options.get("non_blocking"):
        OnDevice.waits.append("copy to the CPU")
    inside = tensor.inside.detach().clone() if was_on else tensor
    return torch.ops.aten._to_copy(inside, dtype=dtype) if dtype != inside.dtype else inside.to(target)


def _grouped(lists: list[list[Tensor]]) -> dict[tuple[torch.device, torch.dtype], Any]:
    """As torch groups tensors, by the device that they are of here."""
    found = _group_tensors_by_device_and_dtype(lists)
    return {(group[0][0].device, dtype): (group, which) for (_, dtype), (group, which) in found.items()}


@contextmanager
def gpu(patch: pytest.MonkeyPatch, device: torch.device) -> Iterator[None]:
    """While it lasts, the device is there, and `auto` prefers it."""
    patch.setattr(OnDevice, "gpu", device)
    patch.setattr(OnDevice, "waits", [])
    if device == MPS:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "synchronize", lambda: None)
    else:
        for name, value in CUDA_SAYS.items():
            patch.setattr(torch.cuda, name, lambda *args, value=value, **options: value)
    patch.setattr(clip_grad, "_group_tensors_by_device_and_dtype", _grouped)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a wrapper cannot be a parameter's `.data`
    try:
        with _Device():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
