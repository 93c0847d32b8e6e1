"""A loaded run: the one thing that every command, every answer and the library work on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from tformer.errors import RequestError
from tformer.files import read_json
from tformer.model import Transformer
from tformer.run.data import recorded_reversal
from tformer.run.find import find_run
from tformer.run.huggingface import load_model
from tformer.run.record import Record, read_record, weights_hash
from tformer.text.data import Reversal
from tformer.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedRun:
    """A run, or any Hugging Face directory of the two families, with its model in memory.

    The tokenizer is read when it is asked for: what needs none works on a directory that has none.
    """

    folder: Path
    record: Record
    model: Transformer
    weights_sha256: str | None = None  # of the model.safetensors that was read, if it is a run of tformer's

    @property
    def name(self) -> str:
        """As a person knows it."""
        return self.folder.name or str(self.folder)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer.json."""
        return (self.folder / "tokenizer.json").exists()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises RequestError where there is none, and where it has ids that the model has not."""
        tokenizer, rows = Tokenizer.load(self.folder), self.model.config.vocab_size
        if tokenizer.vocab_size > rows:
            size = tokenizer.vocab_size
            raise RequestError(f"the tokenizer of {self.folder} has {size:,} ids", f"its model has {rows:,}")
        return tokenizer

    @cached_property
    def start_id(self) -> int:
        """Where an empty prompt starts: `bos_token_id` of config.json, or the tokenizer's own choice."""
        bos = read_json(self.folder / "config.json").get("bos_token_id")
        if isinstance(bos, int) and 0 <= bos < self.tokenizer.vocab_size:
            return bos
        return self.tokenizer.start_id

    @cached_property
    def reversal(self) -> Reversal | None:
        """The task of a run on reversal; None for any other."""
        return recorded_reversal(self.record, str(self.folder / "tformer.yaml"))


def load_run(folder: Path, device: torch.device | str = "cpu") -> LoadedRun:
    """Read a directory: its record, and its model in float32, in eval mode, on the device.

    Raises RequestError saying what is damaged, missing, extra or not supported.
    """
    record = read_record(folder)
    if record.is_empty:  # nothing is kept in a foreign directory, whose weights may be large
        return LoadedRun(folder, record, load_model(folder, device))
    while True:
        before = _stamp(folder)
        weights = weights_hash(folder) if before else None
        model = load_model(folder, device)
        if _stamp(folder) == before:  # a run that trains may have replaced them meanwhile
            return LoadedRun(folder, record, model, weights)


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What changes when model.safetensors is replaced; None where there is none."""
    try:
        found = (folder / "model.safetensors").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def load(run: str | Path, device: str = "cpu") -> tuple[Transformer, Tokenizer]:
    """Model and tokenizer of a run (a name in runs/, or a path to any such directory)."""
    loaded = load_run(find_run(str(run)), device)
    return loaded.model, loaded.tokenizer
