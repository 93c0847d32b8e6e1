"""One checkpoint, read: whole or not, by the sizes and hashes of its manifest, and whose it is.

Three things are told apart. Damage: what the manifest promises is not there, and the checkpoint before it is
as good as any. What cannot be read just now, or was written by a newer version: it may be whole, and nothing
is decided. A checkpoint of another run: it is refused by name.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tformer.errors import RequestError, TformerError
from tformer.files import check_regular
from tformer.model import Transformer
from tformer.run.huggingface import from_hf

FORMAT = 1
CHECKPOINT_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
MANIFEST = "manifest.json"
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
MAX_MANIFEST_BYTES = 1 << 20
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
LATER = "nothing was changed: try again, or move it away to go on without it"
ANOTHERS = "move it away, or give another --out"


def checkpoint_name(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The step of such a folder; -1 for any other."""
    found = CHECKPOINT_NAME.fullmatch(name)
    return int(found[1]) if found else -1


class Damaged(TformerError):
    """A checkpoint is not what its manifest says; the one before it is taken."""


@dataclass
class Checkpoint:
    """What a verified checkpoint holds, parsed: tensors by name, and the state as it was given."""

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """Whose a checkpoint is; what is None or empty is not known, and is not compared.

    `settings` are those that a run keeps, by section: nothing else would go on to the same bits.
    """

    run: str | None = None  # a random name, made when the run began
    tokenizer: str | None = None  # sha256 of tokenizer.json
    data: str | None = None  # sha256 of the text or of the ids
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"run": self.run, "tokenizer": self.tokenizer, "data": self.data, "settings": self.settings}

    def differences(self, found: Any) -> list[str]:
        """What a manifest says otherwise. One of an older version says nothing."""
        if not isinstance(found, dict):
            return []
        told = []
        for key, mine in (("run", self.run), ("tokenizer", self.tokenizer), ("data", self.data)):
            if mine and isinstance(theirs := found.get(key), str) and theirs != mine:
                told.append(f"{key} {theirs[:12]}, here it is {mine[:12]}")
        theirs = found.get("settings")
        for section, values in self.settings.items():
            other = theirs.get(section) if isinstance(theirs, dict) else None
            for name, value in values.items():
                if isinstance(other, dict) and name in other and other[name] != value:
                    told.append(f"{section}.{name} {other[name]!r}, here it is {value!r}")
        return told


NOBODY = Owner()


def manifest_hash(manifest: dict[str, Any]) -> str:
    """sha256 of everything in a manifest but this."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_checkpoint(folder: Path, model: Transformer, owner: Owner) -> Checkpoint:
    """Parse a checkpoint if it is whole and `owner`'s.

    Raises Damaged saying what is wrong with it, TformerError where it cannot be read now or by this version,
    RequestError naming what is another's.
    """
    with _told(folder):
        manifest = _read_manifest(folder / MANIFEST)
        _check_owner(folder, manifest, owner)
        parsed = {name: _read_tensors(folder / name, manifest["files"][name]) for name in TENSOR_FILES}
        state, step = manifest["state"], int(manifest["state"]["step"])
        weights = _weights(model, parsed["model.safetensors"], folder)
    return Checkpoint(step, state, weights, parsed["optimizer.safetensors"], manifest)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is what its manifest says, and can be read now by this version."""
    try:
        with _told(folder):
            files = _read_manifest(folder / MANIFEST)["files"]
            for name in TENSOR_FILES:
                _read_tensors(folder / name, files[name])
    except TformerError:
        return False
    return True


def steps_in(checkpoints: Path) -> list[int]:
    """The steps of which there is a checkpoint, from the first on."""
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    return sorted(step for step in map(step_of, names) if step >= 0)


def known_weights(checkpoints: Path) -> set[str]:
    """The sha256 of all weights that its manifests tell of: a checkpoint's own, and those that a run kept."""
    known = set()
    for step in steps_in(checkpoints):
        with suppress(TformerError, OSError, KeyError, TypeError):
            manifest = _read_manifest(checkpoints / checkpoint_name(step) / MANIFEST)
            known.add(manifest["files"]["model.safetensors"]["sha256"])
            known.add(manifest["kept"]["sha256"])
    return known


def read_weights(folder: Path, owner: Owner, instead: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint alone, by the names of its layout, and their sha256.

    Raises what `read_checkpoint` raises; its advice, of whoever reads and trains nothing, is `instead`.
    """
    with _told(folder, f"try again, or {instead}"):
        manifest = _read_manifest(folder / MANIFEST)
        _check_owner(folder, manifest, owner, instead)
        promised = manifest["files"]["model.safetensors"]
        return _read_tensors(folder / "model.safetensors", promised), promised["sha256"]


def _check_owner(folder: Path, manifest: dict[str, Any], owner: Owner, advice: str = ANOTHERS) -> None:
    if told := owner.differences(manifest.get("owner")):
        raise RequestError(f"{folder} is a checkpoint of another run", "; ".join(told), advice)


@contextmanager
def _told(folder: Path, later: str = LATER) -> Iterator[None]:
    """What can go wrong in the block, as the errors that say it."""
    try:
        yield
    except NOT_THERE as error:
        raise Damaged(f"cannot read {folder}", error.strerror or str(error)) from None
    except OSError as error:
        raise TformerError(f"cannot read {folder}", error.strerror or str(error), later) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is not one of ours", repr(error)) from None


def _weights(model: Transformer, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    try:
        return from_hf(model.config, tensors, str(folder))
    except RequestError as error:
        raise Damaged(str(error)) from None


def _read_manifest(path: Path) -> dict[str, Any]:
    _check_file(path)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise Damaged(f"{MANIFEST} is too large to be one")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not JSON", str(error).splitlines()[0]) from None
    if not isinstance(manifest, dict):
        raise Damaged(f"{MANIFEST} holds no object")
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        found = f"format {version}, this version reads {FORMAT}"
        raise TformerError(f"{path.parent} is of a newer tformer", found, "upgrade")
    if version != FORMAT:
        raise Damaged(f"format {version}", f"this version reads {FORMAT}")
    if manifest.get("sha256") != manifest_hash(manifest):
        raise Damaged(f"{MANIFEST} does not have its sha256")
    if _squeezed(data) != _squeezed(json.dumps(manifest).encode()):  # 1E-05 for 1e-05: values do not tell
        raise Damaged(f"{MANIFEST} is not as it was written")
    return manifest


def _check_file(path: Path) -> None:
    try:
        check_regular(path)
    except RequestError as error:
        raise Damaged(str(error)) from None


def _squeezed(text: bytes) -> bytes:
    """JSON without its white space."""
    return b"".join(text.split())


def _read_tensors(path: Path, promised: dict[str, Any]) -> dict[str, Tensor]:
    """Sizes and hashes first; then the very bytes that were hashed are parsed."""
    _check_file(path)
    if path.stat().st_size != promised["bytes"]:
        raise Damaged(f"{path.name} is of the wrong size")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != promised["sha256"]:
        raise Damaged(f"{path.name} does not have its sha256")
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the parser's own type, or one of several of Python's
        raise Damaged(f"{path.name} cannot be parsed", str(error)) from None
