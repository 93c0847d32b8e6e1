"""The tensors of a directory, as its files have them: one file of safetensors, or several with an index."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tformer.errors import RequestError
from tformer.files import check_pointer, read_json
from tformer.run.lacking import INDEX, missing_shards, no_model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RequestError if it is not one."""
    try:
        with path.open("rb") as whole:
            check_pointer(path, whole.read(64))
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        advice = "rename what is not UTF-8" if str(error).startswith("Path ") else "is it whole?"
        raise RequestError(f"cannot read {path}", str(error).splitlines()[0], advice) from None


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
