"""A run directory that is trained in: weights, checkpoints, metrics and settings are written here alone.

Atomic, durable, verified. A file is written under a temporary name, synced, and renamed; so is a checkpoint,
whose manifest, with the size and sha256 of every file, comes last. Whatever moment a process dies at, what
has a final name is whole. Reading goes the other way: sizes and hashes first, then the very bytes that were
hashed.

Knows nothing of training: optimizer state is tensors by name, where it stands is a plain dict. What others
add to a run, its pages and `evals.jsonl`, is theirs.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from tformer.config import Config
from tformer.errors import RequestError, TformerError
from tformer.files import (
    append_line,
    cannot_write,
    plain,
    sync_file,
    sync_folder,
    write_file,
    write_new,
)
from tformer.model import Transformer
from tformer.run.huggingface import to_hf
from tformer.run.manifest import (
    FORMAT,
    MANIFEST,
    NOBODY,
    Checkpoint,
    Damaged,
    Owner,
    checkpoint_name,
    is_whole,
    manifest_hash,
    read_checkpoint,
    step_of,
)
from tformer.run.record import NAME, Kept, Record, read_metrics, read_record, weights_hash
from tformer.run.swap import CHECKPOINTS, begin_apart, discard, sweep, take_place
from tformer.run.tensors import give_tensors, whole_tensors, write_tensors
from tformer.run.usage import Usage, own_usage
from tformer.signals import undone_by_signal
from tformer.temporary import TEMPORARY, lock
from tformer.text.tokenizer import Tokenizer
from tformer.yaml_text import dump_yaml


class Run:
    """A run directory open for writing. One process at a time: a second is refused.

    A run that begins is built apart (`here` is where it is being written) until it takes its place in
    `folder`.
    """

    def __init__(self, folder: Path):
        self.folder = self.here = folder
        self.is_new = not folder.exists()
        self.passed_over: set[str] = set()  # checkpoints that were not whole when they were read
        self.whole: set[str] = set()  # those that were, or that it wrote
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.is_new:
                sync_folder(folder.parent)
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

    def check_room(self, n_bytes: int, begins: bool) -> None:
        """Raise TformerError where fewer bytes are free than are to be written.

        The checkpoints of a run that goes on may be a link, which leads to where they are. One that `begins`
        has its own, in its directory, and the link of a run that gives way to it goes.
        """
        place = self.folder if begins or not self.checkpoints.exists() else self.checkpoints
        try:
            free = shutil.disk_usage(place).free
        except OSError:  # nobody knows
            return
        if free < n_bytes:
            raise TformerError(
                f"no room for the checkpoints in {place}",
                f"{free / 1e6:,.1f} MB are free, {n_bytes / 1e6:,.1f} MB are needed",
                "make room, or give another --out",
            )

    def sweep(self) -> None:
        """Remove what processes left that were killed."""
        try:
            sweep(self.folder)
            if self.checkpoints.is_dir():
                sweep(self.checkpoints)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def build(self) -> None:
        """Begin a run: what is there stays as it is until the new one takes its place."""
        self.here = begin_apart(self.folder)

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

    def write_identity(self, config: Config, tokenizer: Tokenizer, usage: Usage | None = None) -> None:
        """Everything but weights that makes this a Hugging Face model directory.

        `usage` is what the directory says that the run began from; left out, as a vocabulary of ours has it.
        """
        write_file(self.here / "tokenizer.json", tokenizer.to_json().encode())
        (usage or own_usage(config.model, tokenizer)).write(self.here, config.model)

    def write_record(self, config: Config, record: Record) -> None:
        """`tformer.yaml`: the whole effective configuration, and under `record` what it met."""
        text = dump_yaml(config.model_dump() | {"record": record.as_dict()})
        write_file(self.here / NAME, text.encode())

    def write_weights(self, model: Transformer) -> str:
        """`model.safetensors`, the weights that other tools load; with them a run takes its place.

        Returns their sha256.
        """
        tensors = to_hf(model.config, whole_tensors(dict(model.named_parameters())))
        written: list[tuple[int, str]] = []

        def write(file: BinaryIO) -> None:
            written.append(write_tensors(file, tensors, sealed=True))

        write_file(self.here / "model.safetensors", write)
        self.take_place()
        return written[0][1]

    def has_copy(self, kept: Kept) -> bool:
        """Whether a checkpoint has the weights that were kept."""
        with contextlib.suppress(OSError, RequestError):
            return weights_hash(self.checkpoints / checkpoint_name(kept.step)) == kept.sha256
        return False

    def put_back(self, kept: Kept) -> None:
        """Have the weights that were kept as those of the run, from their checkpoint where it has others."""
        with contextlib.suppress(OSError, RequestError):
            if weights_hash(self.here) == kept.sha256:
                return
        with (self.checkpoints / checkpoint_name(kept.step) / "model.safetensors").open("rb") as copy:
            write_file(self.here / "model.safetensors", lambda file: shutil.copyfileobj(copy, file))

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
        return read_metrics(self.metrics)

    def rewind_metrics(self, step: int) -> None:
        """Drop lines past a step, which a resumed run writes again."""
        kept = [line for line in self.read_metrics() if line.get("step", 0) <= step]
        write_file(self.metrics, "".join(json.dumps(plain(line)) + "\n" for line in kept).encode())

    # ------------------------------------------------------------------ checkpoints

    def write_checkpoint(
        self,
        model: Transformer,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        keep: int,
        identity: dict[str, Any],
    ) -> Path:
        """Save all that training goes on from, then remove all older than the `keep` newest whole ones.

        That of the step whose weights the run has at its top stays as well, whatever its age. What was passed
        over as damaged does not count: it is renamed, so that nothing reads it, and stays. `state` has the
        `step`, and is given back as it is; so are the tensors of `optimizer`.
        """
        name = checkpoint_name(state["step"])
        final, temporary = self.checkpoints / name, self.checkpoints / f"{TEMPORARY}{name}"
        manifest: dict[str, Any] = {"format": FORMAT, "state": state, **identity, "files": {}}

        def write(file: str, tensors: dict[str, Tensor], sealed: bool = False) -> None:
            def promise(stream: BinaryIO) -> None:
                length, sha256 = write_tensors(stream, tensors, sealed)
                manifest["files"][file] = {"bytes": length, "sha256": sha256}

            write_new(temporary / file, promise)

        try:
            is_first = not self.checkpoints.exists()
            self.checkpoints.mkdir(exist_ok=True)
            if is_first:
                sync_folder(self.here)
            sync_file(self.metrics)  # no line that the checkpoint has passed may be missing
            sweep(self.checkpoints)
            temporary.mkdir()
            # A copy, which is let go before the next.
            write(
                "model.safetensors",
                to_hf(model.config, whole_tensors(dict(model.named_parameters()))),
                sealed=True,
            )
            write("optimizer.safetensors", optimizer)
            manifest["sha256"] = manifest_hash(manifest)  # the manifest last
            promised = (json.dumps(manifest, indent=2) + "\n").encode()
            write_new(temporary / MANIFEST, lambda stream: stream.write(promised))
            sync_folder(temporary)
            if name in self.passed_over:
                self._put_aside(name)
            elif final.exists():  # the same step again
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync_folder(self.checkpoints)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            way = "the one before it is whole: continue" if self._has_whole() else "begin again"
            why = error.strerror or str(error)
            raise TformerError(f"cannot save the checkpoint {final}", why, f"{way} with --resume") from None
        kept = identity.get("kept")
        at_top = checkpoint_name(kept["step"]) if kept else ""
        names = self._names()
        here = names.index(name)
        for newer in names[:here]:
            self._put_aside(newer)
        self.whole.add(name)
        n_whole = 1
        for old in names[here + 1 :]:
            if n_whole == keep and old != at_top:
                shutil.rmtree(self.checkpoints / old, ignore_errors=True)
            elif n_whole < keep and (old in self.whole or is_whole(self.checkpoints / old)):
                self.whole.add(old)
                n_whole += 1
        return final

    def _put_aside(self, name: str) -> None:
        """Rename a checkpoint that was passed over: somebody may still make something of it."""
        aside, n = self.checkpoints / f"damaged-{name}", 1
        while aside.exists():
            n += 1
            aside = self.checkpoints / f"damaged-{name}-{n}"
        with contextlib.suppress(OSError):
            os.rename(self.checkpoints / name, aside)
        self.passed_over.discard(name)

    def _has_whole(self) -> bool:
        """Whether there is a checkpoint that this process has read or written."""
        return bool(self.whole.intersection(self._names()))

    def _names(self) -> list[str]:
        """Checkpoints by name, newest first; temporary ones are none."""
        if not self.checkpoints.is_dir():
            return []
        names = [p.name for p in self.checkpoints.iterdir() if step_of(p.name) >= 0]
        return sorted(names, key=step_of, reverse=True)

    def read_checkpoint(
        self, model: Transformer, owner: Owner = NOBODY
    ) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what was wrong with newer ones.

        None where there is no checkpoint yet. Raises TformerError if there are some and none is whole: a
        run never starts from zero in silence. RequestError for one that is not `owner`'s.
        """
        problems: list[str] = []
        for name in self._names():
            try:
                found = read_checkpoint(self.checkpoints / name, model, owner)
                self.whole.add(name)
                return found, problems
            except Damaged as error:
                problems.append(f"{name}: {error}")
                self.passed_over.add(name)
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


class UnwrittenRun(Run):
    """The run of a process that trains with others, of which another one writes: nothing is written here.

    What has to be put together for that it takes part in.
    """

    def __init__(self, folder: Path):
        self.folder = self.here = folder
        self.is_new, self.passed_over = False, set()

    def write_weights(self, model: Transformer) -> str:
        """Nothing, of no hash."""
        give_tensors(dict(model.named_parameters()))
        return ""

    def log(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def read_metrics(self) -> list[dict[str, Any]]:
        """None: they are the other's."""
        return []

    def rewind_metrics(self, step: int) -> None:
        """Nothing."""

    def write_checkpoint(
        self,
        model: Transformer,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        keep: int,
        identity: dict[str, Any],
    ) -> Path:
        """Nothing."""
        give_tensors(dict(model.named_parameters()))
        give_tensors(optimizer)
        return self.checkpoints / checkpoint_name(state["step"])


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """A run directory, locked while the block runs."""
    run = Run(folder)

    def close() -> None:
        run.close()
        if run.is_new:
            with contextlib.suppress(OSError):  # only an empty one: nothing came of it
                folder.rmdir()

    try:
        with undone_by_signal(close):
            yield run
    finally:
        close()
