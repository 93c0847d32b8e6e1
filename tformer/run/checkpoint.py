"""A run directory that is trained in: weights, checkpoints, metrics and settings are written here alone.

Atomic, durable, verified. A file is written under a temporary name, synced, and renamed; so is a checkpoint,
whose manifest, with the size and sha256 of every file, comes last. Whatever moment a process dies at, what
has a final name is whole. Reading goes the other way: sizes and hashes first, then the very bytes that were
hashed.

Knows nothing of training: optimizer state is tensors by name, where it stands is a plain dict. What others
add to a run, its pages and `evals.jsonl`, is theirs.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tformer.config import Config
from tformer.errors import RequestError, TformerError
from tformer.files import (
    TEMPORARY,
    append_line,
    cannot_write,
    read_json,
    sync_folder,
    write_file,
    write_json,
    write_new,
)
from tformer.model import Transformer
from tformer.run.huggingface import (
    from_hf,
    generation_config,
    to_hf,
    to_hf_config,
    tokenizer_config,
)
from tformer.run.record import NAME, Record, read_lines, read_record
from tformer.run.swap import CHECKPOINTS, build, discard, lock, sweep, take_place
from tformer.text.tokenizer import Tokenizer
from tformer.yaml_text import dump_yaml

FORMAT = 1
CHECKPOINT_NAME = re.compile(r"step-(\d{8})")
MANIFEST = "manifest.json"
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
MAX_MANIFEST_BYTES = 1 << 20


def tensors_to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file; transformers refuses one that does not say `format: pt`."""
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


# ---------------------------------------------------------------------------- runs


@dataclass
class Checkpoint:
    """What a verified checkpoint holds, parsed: tensors by name, and the state as it was given."""

    step: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    manifest: dict[str, Any]


class Run:
    """A run directory open for writing. One process at a time: a second is refused.

    A run that begins is built apart (`here` is where it is being written) until it takes its place in
    `folder`.
    """

    def __init__(self, folder: Path):
        self.folder = self.here = folder
        self.is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder)
        except BlockingIOError:
            raise RequestError(
                f"{folder} is being written by another process", "", "wait for it, or give another --out"
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from None

    def close(self) -> None:
        """Let another process write."""
        if not self.is_in_place:
            with contextlib.suppress(OSError):
                discard(self.here)
            self.here = self.folder
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sweep(self) -> None:
        """Remove what processes left that were killed."""
        try:
            sweep(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def build(self) -> None:
        """Begin a run: what is there stays as it is until the new one takes its place."""
        self.here = build(self.folder)

    @property
    def is_in_place(self) -> bool:
        """Whether the directory is the run that is written."""
        return self.here == self.folder

    def take_place(self) -> None:
        """Be the run of the directory, instead of what is there."""
        if not self.is_in_place:
            take_place(self.folder)
            self.here = self.folder

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.here / CHECKPOINTS

    def write_identity(self, config: Config, tokenizer: Tokenizer) -> None:
        """Everything but weights that makes this a Hugging Face model directory."""
        write_file(self.here / "tokenizer.json", tokenizer.to_json().encode())
        write_json(self.here / "tokenizer_config.json", tokenizer_config(config.model.n_ctx))
        write_json(self.here / "generation_config.json", generation_config(tokenizer.start_id))
        write_json(self.here / "config.json", to_hf_config(config.model, tokenizer.start_id))

    def write_record(self, config: Config, record: Record) -> None:
        """`tformer.yaml`: the whole effective configuration, and under `record` what it met."""
        text = dump_yaml(config.model_dump() | {"record": record.as_dict()})
        write_file(self.here / NAME, text.encode())

    def write_weights(self, model: Transformer) -> None:
        """`model.safetensors`, the weights that other tools load; with them a run takes its place."""
        data = tensors_to_bytes(to_hf(model.config, model.state_dict()))
        write_file(self.here / "model.safetensors", data)
        self.take_place()

    # ------------------------------------------------------------------ metrics

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.here / "metrics.jsonl"

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        append_line(self.metrics, values)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines so far; a last line that was cut short is passed over."""
        return read_lines(self.metrics)

    def rewind_metrics(self, step: int) -> None:
        """Drop lines past a step, which a resumed run writes again."""
        kept = [line for line in self.read_metrics() if line.get("step", 0) <= step]
        write_file(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())

    # ------------------------------------------------------------------ checkpoints

    def write_checkpoint(
        self,
        model: Transformer,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        keep: int,
        identity: dict[str, Any],
    ) -> Path:
        """Save all that training goes on from, then remove all but the `keep` newest.

        `state` has the `step`, and is given back as it is; so are the tensors of `optimizer`.
        """
        name = f"step-{state['step']:08d}"
        final, temporary = self.checkpoints / name, self.checkpoints / f"{TEMPORARY}{name}"
        files = {
            "model.safetensors": tensors_to_bytes(to_hf(model.config, model.state_dict())),
            "optimizer.safetensors": tensors_to_bytes(
                {k: t.detach().cpu().contiguous() for k, t in optimizer.items()}
            ),
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "state": state,
            **identity,
            "files": {
                file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for file, data in files.items()
            },
        }
        try:
            self.checkpoints.mkdir(exist_ok=True)
            for left in self.checkpoints.glob(f"{TEMPORARY}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir()
            manifest["sha256"] = manifest_hash(manifest)
            contents = files | {MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}
            for file, data in contents.items():  # the manifest last
                write_new(temporary / file, lambda stream, data=data: stream.write(data))  # type: ignore[misc]
            sync_folder(temporary)
            if final.exists():  # the same step again, after a corrupt one was passed over
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync_folder(self.checkpoints)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TformerError(
                f"cannot save the checkpoint {final}",
                error.strerror or str(error),
                "the one before it is whole: continue with --resume",
            ) from None
        # Newer ones than this were passed over as damaged: they do not count, and they go.
        names = self._names()
        here = names.index(name)
        for old in [*names[:here], *names[here + keep :]]:
            shutil.rmtree(self.checkpoints / old, ignore_errors=True)
        return final

    def _names(self) -> list[str]:
        """Checkpoints by name, newest first; temporary ones are none."""
        if not self.checkpoints.is_dir():
            return []
        names = [p.name for p in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(p.name)]
        return sorted(names, reverse=True)

    def read_checkpoint(self, model: Transformer) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones.

        None where there is no checkpoint yet. Raises TformerError if there are some and none is whole: a
        run never starts from zero in silence.
        """
        problems: list[str] = []
        for name in self._names():
            try:
                return _read_checkpoint(self.checkpoints / name, model), problems
            except TformerError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise TformerError(
                f"no checkpoint in {self.checkpoints} is whole",
                "; ".join(problems),
                "start again in another --out",
            )
        return None, problems

    def record(self) -> Record:
        """`tformer.yaml`, parsed; empty where there is none."""
        return read_record(self.here)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """sha256 of everything in a manifest but this."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_checkpoint(folder: Path, model: Transformer) -> Checkpoint:
    """Parse a checkpoint if it is whole. Raises TformerError saying what is wrong with it."""
    try:
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise TformerError(f"{MANIFEST} is too large to be one")
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise TformerError(f"format {manifest.get('format')}", f"this version reads {FORMAT}", "upgrade")
        if manifest.get("sha256") != manifest_hash(manifest):
            raise TformerError(f"{MANIFEST} does not have its sha256")
        parsed = {name: _read_tensors(folder / name, manifest["files"][name]) for name in TENSOR_FILES}
        state, step = manifest["state"], int(manifest["state"]["step"])
    except OSError as error:
        raise TformerError(f"cannot read {folder}", error.strerror or str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TformerError(f"{MANIFEST} is not one of ours", repr(error)) from None
    weights = from_hf(model.config, parsed["model.safetensors"], str(folder))
    return Checkpoint(step, state, weights, parsed["optimizer.safetensors"], manifest)


def _read_tensors(path: Path, promised: dict[str, Any]) -> dict[str, Tensor]:
    """Sizes and hashes first; then the very bytes that were hashed are parsed."""
    if not path.is_file() or path.stat().st_size != promised["bytes"]:
        raise TformerError(f"{path.name} is missing or of the wrong size")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != promised["sha256"]:
        raise TformerError(f"{path.name} does not have its sha256")
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the parser's own type, or one of several of Python's
        raise TformerError(f"{path.name} cannot be parsed", str(error)) from None


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """A run directory, locked while the block runs."""
    run = Run(folder)
    try:
        yield run
    finally:
        run.close()
        if run.is_new:
            with contextlib.suppress(OSError):  # only an empty one: nothing came of it
                folder.rmdir()
