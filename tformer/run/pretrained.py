"""What `train --init-from` begins with: architecture, tokenizer and weights of another directory.

The directory is a run, or any Hugging Face directory of the two families.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tformer.config import Config, Layer, ModelConfig, merge
from tformer.errors import RequestError
from tformer.run.find import find_run, places_of, tokenizer_path
from tformer.run.huggingface import load_model
from tformer.run.record import Origin, Record
from tformer.text.tokenizer import KINDS, Tokenizer

FREE = ("dropout",)  # settings of the model that no weight depends on
LEFT_OPEN = ("vocab_size", "n_kv_heads", "d_mlp")  # by a 0


@dataclass(frozen=True)
class Pretrained:
    """A model to go on from, read whole before anything is written."""

    folder: Path
    model: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None  # None where the directory has no tokenizer.json
    sha256: dict[str, str]  # of each file of weights, by name

    @property
    def origin(self) -> Origin:
        """What `tformer.yaml` keeps under `record.init_from`."""
        return Origin(source=str(self.folder.resolve()), sha256=self.sha256)


def read_pretrained(name: str, expected: dict[str, str] | None = None) -> Pretrained:
    """A run by name or path, or a Hugging Face directory.

    `expected` are the sha256 of a run that began from it and has no checkpoint yet. Raises RequestError
    for what cannot be loaded, and where the weights have changed since.
    """
    folder = find_run(name)
    model = load_model(folder)
    sha256 = {p.name: _sha256(p) for p in sorted(folder.glob("model*.safetensors"))}
    if expected and sha256 != expected:
        raise RequestError(
            f"the weights in {folder} have changed",
            "their sha256 is not the one recorded",
            "leave --resume out to start another run",
        )
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
    return Pretrained(folder, model.config, model.state_dict(), tokenizer, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_origin(name: str, recorded: Record) -> bool:
    """Whether `name` is where a run, by its `tformer.yaml`, began. It need not be there any more."""
    meant = {str(place.resolve()) for place in places_of(name)}
    return recorded.init_from is not None and recorded.init_from.source in meant


def recipe(layer: Layer) -> Layer:
    """A preset without its architecture and tokenizer, which come from the directory."""
    values = {section: dict(settings) for section, settings in layer.values.items() if section != "model"}
    for key in ("tokenizer", "vocab_size"):
        values.get("data", {}).pop(key, None)
    return Layer(layer.source, values)


def configure(pretrained: Pretrained, layers: Sequence[Layer]) -> Config:
    """The configuration that `layers` make around the directory's architecture and tokenizer.

    Raises RequestError for a setting that asks for another architecture or tokenizer, and where the
    directory has no tokenizer and none is named.
    """
    model = pretrained.model.model_dump()
    tokenizer = pretrained.tokenizer.kind if pretrained.tokenizer else None
    for layer in layers:
        tokenizer = layer.values.get("data", {}).get("tokenizer", tokenizer)
        for name, value in layer.values.get("model", {}).items():
            if name in FREE:
                model[name] = value
            elif value != model[name] and not (value == 0 and name in LEFT_OPEN):
                raise RequestError(
                    f"model.{name} is {model[name]!r} in {pretrained.folder}",
                    f"{layer.source} says {value!r}",
                    "leave it out, or train without --init-from",
                )
    _check_tokenizer(pretrained, tokenizer)
    return merge([*layers, Layer(str(pretrained.folder), {"model": model, "data": {"tokenizer": tokenizer}})])


def _check_tokenizer(pretrained: Pretrained, wanted: str | None) -> None:
    """A kind says nothing of a vocabulary: the directory's own, or a file, is needed."""
    own = pretrained.tokenizer
    if own is None and (wanted is None or wanted in KINDS):
        raise RequestError(
            f"no tokenizer.json in {pretrained.folder}",
            "without it, its ids mean nothing",
            "name the one that it was trained with: --tokenizer FILE",
        )
    if own is None or wanted is None or wanted == own.kind:
        return
    if wanted in KINDS or Tokenizer.load(tokenizer_path(wanted)).engine.get_vocab() != own.engine.get_vocab():
        raise RequestError(
            f"the tokenizer of {pretrained.folder} is {own.kind} of {own.vocab_size:,} ids",
            f"{wanted} is another",
            "leave --tokenizer out",
        )
