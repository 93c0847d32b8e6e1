"""A loaded run: the one thing that every command, every answer and the library work on."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from tformer.config import ModelConfig
from tformer.errors import RequestError, TformerError
from tformer.files import read_json
from tformer.free_memory import amount, free_bytes, refuse_larger_than
from tformer.model import Transformer
from tformer.run.data import recorded_reversal
from tformer.run.find import find_run
from tformer.run.hub import of_snapshot
from tformer.run.huggingface import from_hf_config, load_model, notes_of, to_hf_config
from tformer.run.manifest import Damaged, Owner, checkpoint_name, known_weights, read_weights, steps_in
from tformer.run.own_tokenizer import run_tokenizer, told_of_tokenizer
from tformer.run.pretrained import FREE
from tformer.run.record import NAME, Record, read_record, weights_hash
from tformer.run.swap import CHECKPOINTS, RUN_FILES, WHOLE, recover
from tformer.run.tensors import n_numbers, seal_of
from tformer.run.usage import end_ids
from tformer.text.data import Reversal
from tformer.text.documents import sizes_of
from tformer.text.merges import has_tokenizer
from tformer.text.tokenizer import Tokenizer

NEAREST = 5  # checkpoints in a line, at most
WITHOUT = "leave --step out for the weights that it keeps"


@dataclass(frozen=True)
class LoadedRun:
    """A run, or any Hugging Face directory of the two families, with its model in memory.

    What its tokenizer lacks is said when it is asked for: what needs none works on a directory that has none.
    """

    folder: Path
    record: Record
    model: Transformer
    weights_sha256: str | None = None  # of the model.safetensors that was read, if it is a run of tformer's
    step: int | None = None  # of the checkpoint whose weights these are; None for those that it keeps

    @property
    def name(self) -> str:
        """As a person knows it: `org/name` for what lies in the Hub's cache."""
        if from_hub := of_snapshot(self.folder):
            return from_hub[0]
        return self._at_step(self.folder.name or str(self.folder))

    @property
    def shown(self) -> str:
        """Its directory, and the step where that is not the one whose weights it keeps."""
        return self._at_step(str(self.folder))

    def _at_step(self, name: str) -> str:
        return name if self.step is None else f"{name} at step {self.step:,}"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    @property
    def has_tokenizer(self) -> bool:
        """Whether the directory has one."""
        return has_tokenizer(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises RequestError where there is none, and where it has ids that the model has not."""
        tokenizer, rows = run_tokenizer(self.folder, self.record), self.model.config.vocab_size
        if tokenizer.vocab_size > rows:
            size = tokenizer.vocab_size
            raise RequestError(f"the tokenizer of {self.folder} has {size:,} ids", f"its model has {rows:,}")
        return tokenizer

    @cached_property
    def start_id(self) -> int:
        """Where an empty prompt starts: `bos_token_id` of config.json, or the tokenizer's own choice.

        A run on one text has not learned how texts begin: it starts after a line end.
        """
        if self.record.data.documents == 1 or (self.record.settings and not self.is_of_documents):
            return self.tokenizer.start_id
        bos = read_json(self.folder / "config.json").get("bos_token_id")
        if isinstance(bos, int) and 0 <= bos < self.tokenizer.vocab_size:
            return bos
        return self.tokenizer.start_id

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Bytes of each id in a text as the run reads it, by which bits are divided."""
        return sizes_of(self.tokenizer, self.record.reading.documents)

    @property
    def is_of_documents(self) -> bool:
        """Whether it is a run on texts that end."""
        return self.record.reading.documents != "none"

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        return end_ids(self.folder)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of its weights, and of what another tool has saved in a run."""
        told = [] if self.step is None else [f"the weights are those of step {self.step:,}"]
        if self.step is None and self._is_of_another_tool:
            told.append(f"{self.folder}: model.safetensors is not what the run wrote: another tool saved it")
        if differs := "; ".join(_other_model(self.folder, self.record)):
            by = "another tool changed it, or it is damaged"
            told.append(f"{self.folder}: config.json is not as the run was made ({differs}): {by}")
        told += notes_of(self.folder, self.model.config)
        with suppress(TformerError):  # one that is refused is said where it is asked for
            told += told_of_tokenizer(self.folder, self.record) if self.tokenizer else ()
        return tuple(told)

    @property
    def _is_of_another_tool(self) -> bool:
        """Whether its weights have no seal, and none of its checkpoints, of whatever version, knows them."""
        if self.weights_sha256 is None or seal_of(self.folder / "model.safetensors"):
            return False
        known = known_weights(self.folder / CHECKPOINTS)
        return bool(known) and self.weights_sha256 not in known

    @cached_property
    def reversal(self) -> Reversal | None:
        """The task of a run on reversal; None for any other."""
        return recorded_reversal(self.record, str(self.folder / "tformer.yaml"))


def load_run(folder: Path, device: torch.device | str = "cpu", step: int | None = None) -> LoadedRun:
    """Read a directory: its record, and its model in float32, in eval mode, on the device.

    `step` is that of a checkpoint whose weights are wanted in place of those that the run keeps. Raises
    RequestError saying what is damaged, missing, extra or not supported.
    """
    while True:
        recover(folder)
        if (folder / WHOLE).exists():  # whoever moves it is held up
            raise TformerError(f"another run is on its way into {folder}", "", "try again in a moment")
        before = _stamp(folder)
        try:
            run = _read(folder, device, step)
        except (TformerError, OSError):
            if _stamp(folder) == before:
                raise
            continue
        if _stamp(folder) == before:  # a run that trains may have replaced them meanwhile, or all of it
            return run


def _read(folder: Path, device: torch.device | str, step: int | None) -> LoadedRun:
    """All that lies there, once; what cannot be read is said where it is asked for."""
    record = read_record(folder)
    refuse_larger_model(folder, device)
    if step is not None:
        tensors, sha256 = _weights_of(step, folder, record)
        run = LoadedRun(folder, record, load_model(folder, device, tensors), sha256, step)
    elif record.is_empty:  # nothing is kept in a foreign directory, whose weights may be large
        return LoadedRun(folder, record, load_model(folder, device))
    else:
        weights = weights_hash(folder) if (folder / "model.safetensors").exists() else None
        run = LoadedRun(folder, record, load_model(folder, device), weights)
    for name in ("start_id", "end_ids", "notes"):  # the first reads the tokenizer
        with suppress(TformerError):
            getattr(run, name)
    return run


def _other_model(folder: Path, record: Record) -> list[str]:
    """How config.json describes another model than a run recorded."""
    settings = record.settings.get("model")
    if not settings:
        return []
    said = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    try:
        known = from_hf_config(to_hf_config(ModelConfig.model_validate(settings)), NAME)
    except (ValidationError, RequestError):  # of another version
        return []
    pairs = ((name, getattr(said, name), getattr(known, name)) for name in ModelConfig.model_fields)
    return [f"{n} {a!r}, recorded is {b!r}" for n, a, b in pairs if a != b and n not in FREE]


def refuse_larger_model(folder: Path, device: torch.device | str) -> None:
    """Raises RequestError where there is no room for the weights of a directory, before any are read."""
    needed = 4 * (n := n_numbers(folder))  # in float32
    what = f"the model in {folder} takes at least {amount(needed)} for its {n:,} weights"
    free = [free_bytes(torch.device(place)) for place in {"cpu", str(device)}]  # it is read by the host first
    advice = "give a run with a smaller model, or make room"
    refuse_larger_than(min((n for n in free if n is not None), default=None), needed, what, advice)


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step. Raises RequestError naming the nearest steps that there are."""
    there = steps_in(folder / CHECKPOINTS)
    if step not in there:
        near = sorted(sorted(there, key=lambda other: abs(other - step))[:NEAREST])
        more = f" and {len(there) - len(near):,} more" if len(there) > len(near) else ""
        found = f"it has {', '.join(f'{n:,}' for n in near)}{more}" if there else "it has none"
        raise RequestError(f"no checkpoint of step {step:,} in {folder}", found, WITHOUT)
    return folder / CHECKPOINTS / checkpoint_name(step)


def _weights_of(step: int, folder: Path, record: Record) -> tuple[dict[str, torch.Tensor], str]:
    checkpoint = checkpoint_of(folder, step)
    try:
        return read_weights(checkpoint, Owner(run=record.id), WITHOUT)
    except Damaged as error:
        raise RequestError(f"{checkpoint} is not whole", str(error), WITHOUT) from None


def _stamp(folder: Path) -> list[object]:
    """What changes when files of a run are replaced, by itself or by another run."""
    found: list[object] = [(folder / WHOLE).exists()]
    for name in RUN_FILES[:5]:
        try:
            of_file = (folder / name).stat()
            found.append((of_file.st_ino, of_file.st_mtime_ns, of_file.st_size))
        except FileNotFoundError:
            found.append(None)
    return found


def load(run: str | Path, device: str = "cpu") -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a run: a name in runs/, a path to such a directory, or `org/name` on the Hub."""
    loaded = load_run(find_run(str(run)), device)
    return loaded.model, loaded.tokenizer
