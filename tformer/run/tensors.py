"""The tensors of a directory, as its files have them: one file of safetensors, or several with an index.

A file of weights that tformer wrote is sealed: its header has the sha256 of all of it, and who reads it
compares. What another tool writes has no seal, and that is how the two are told apart.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tformer.errors import RequestError
from tformer.files import check_pointer, check_regular, read_json
from tformer.ranks import put_together
from tformer.run.lacking import INDEX, missing_shards, no_model
from tformer.run.swap import CHECKPOINTS

SEAL = "tformer_sha256"  # in a file's metadata: the sha256 of the file with BLANK in its place
BLANK = "0" * 64
LARGEST_HEADER = 100_000_000  # bytes, by the format


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RequestError if it is not one."""
    check_regular(path)
    try:
        with path.open("rb") as whole:
            check_pointer(path, whole.read(64))
        with safe_open(path, framework="pt") as file:
            check_seal(path)
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        advice = "rename what is not UTF-8" if str(error).startswith("Path ") else "is it whole?"
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0], advice) from None


def check_seal(path: Path) -> None:
    """Raises RequestError where the bytes of a file that is sealed are not those that were written."""
    with path.open("rb") as file:
        header = _header_of(file)
        seal = _seal_in(header)
        if seal is None:
            return
        digest = hashlib.sha256(header.replace(seal.encode(), BLANK.encode(), 1))
        found = hashlib.file_digest(file, lambda: digest).hexdigest()
    if found != seal:
        copy = _copy_of(path, seal)
        advice = f"put it back: cp {shlex.quote(str(copy))} {shlex.quote(str(path))}" if copy else ""
        told = f"sha256 {found[:12]}…, as it was written {seal[:12]}…"
        raise RequestError(f"{path} is damaged", told, advice or "fetch or make it again")


def _copy_of(path: Path, seal: str) -> Path | None:
    """The file of a checkpoint beside it that was written with the same bytes."""
    copies = sorted((path.parent / CHECKPOINTS).glob(f"*/{path.name}"), reverse=True)
    return next((copy for copy in copies if seal_of(copy) == seal), None)


def seal_of(path: Path) -> str | None:
    """The seal in the header of a file, which is not compared; None where it has none, or no header."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return _seal_in(_header_of(file))
    except (RequestError, OSError):
        return None


def _header_of(file: BinaryIO) -> bytes:
    """The length and the header; empty where there is none of a length that the format has."""
    length = file.read(8)
    n = int.from_bytes(length, "little")
    return length + file.read(n) if n <= LARGEST_HEADER else b""


def _seal_in(header: bytes) -> str | None:
    try:
        seal = json.loads(header[8:])["__metadata__"][SEAL]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return seal if isinstance(seal, str) and seal else None


def read_model_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a directory: one file, or the shards that an index names."""
    index = folder / INDEX
    if (folder / "model.safetensors").exists():
        return read_tensors(folder / "model.safetensors")
    if not index.exists():
        raise no_model(folder)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise RequestError(f"{index} has no weight_map", "expected the file of each tensor")
    if bad := [s for s in shards.values() if Path(s).name != s]:
        raise RequestError(f"{index} names a file outside its folder", bad[0])
    if error := missing_shards(folder, files := sorted(set(shards.values()))):
        raise error
    parts = [read_tensors(folder / shard) for shard in files]
    tensors = {name: tensor for part in parts for name, tensor in part.items()}
    if len(tensors) < sum(map(len, parts)):
        raise RequestError(
            f"{folder} has a tensor in two of its files", "expected it in one", "save it again"
        )
    return tensors


def n_numbers(folder: Path) -> int:
    """How many the weights of a directory are, by the headers of their files; 0 where those are none."""
    n, whole = 0, folder / "model.safetensors"
    for path in [whole] if whole.exists() else folder.glob("model-*.safetensors"):
        with suppress(RequestError, OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            check_regular(path)
            with path.open("rb") as file:
                header = json.loads(_header_of(file)[8:])
            n += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    return n


# As a file names them, in the order in which the library puts tensors: wide numbers first, so that each
# begins at a multiple of its width.
WRITTEN = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PADDED_TO = 8  # bytes of the header, for the same reason


Described = Mapping[str, tuple[torch.dtype, Sequence[int]]]  # of tensors by name: dtype and shape


def safetensors_header(described: Described, sealed: bool = False) -> tuple[bytes, list[str]]:
    """What stands in a file before the numbers of such tensors, and the order in which they follow.

    As the format is described: the header's length (8 bytes, little-endian), the header as JSON; then the
    numbers, row by row. transformers refuses a file that does not say `format: pt`. The seal of one that is
    `sealed` is blank.
    """
    order = list(WRITTEN)
    names = sorted(described, key=lambda name: (order.index(described[name][0]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"} | ({SEAL: BLANK} if sealed else {})}
    end = 0
    for name in names:
        dtype, shape = described[name]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": WRITTEN[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PADDED_TO)
    return len(text).to_bytes(8, "little") + text, names


def write_tensors(file: BinaryIO, tensors: dict[str, Tensor], sealed: bool = False) -> tuple[int, str]:
    """Write a safetensors file; returns its length in bytes and its sha256.

    The bytes are those of `safetensors.torch.save`, which makes two copies of all tensors first: here one
    tensor at a time is copied, and none that lies in order in the host's memory. Of sharded ones, one at a
    time is put together, for which the other processes `give_tensors`. One that is `sealed` has its sha256 in
    the header, so its tensors are read twice, and must not be sharded.
    """
    header, names = safetensors_header(_described(tensors), sealed)
    if sealed:
        seal = hashlib.sha256(header)
        for name in names:
            seal.update(_bytes_of(tensors[name]))
        header = header.replace(BLANK.encode(), seal.hexdigest().encode(), 1)
    digest, length = hashlib.sha256(), 0

    def write(data: memoryview) -> None:
        nonlocal length
        digest.update(data)
        file.write(data)
        length += data.nbytes

    write(memoryview(header))
    for name in names:
        write(_bytes_of(tensors[name]))
    return length, digest.hexdigest()


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded ones put together, one after another, on the CPU; others as they are."""
    put = {}
    for name in safetensors_header(_described(tensors))[1]:
        found = put_together(tensors[name])
        put[name] = found if found is tensors[name] else found.cpu()
    return put


def give_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Take part in the putting together of tensors that another process writes, or asks for whole."""
    for name in safetensors_header(_described(tensors))[1]:
        put_together(tensors[name])


def _described(tensors: Mapping[str, Tensor]) -> Described:
    return {name: (t.dtype, t.shape) for name, t in tensors.items()}


def _bytes_of(tensor: Tensor) -> memoryview:
    return put_together(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
