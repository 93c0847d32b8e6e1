"""What `train --init-from` begins with: architecture, tokenizer and weights of another directory.

The directory is a run, or any Hugging Face directory of the two families, here or on the Hub.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tformer.config import Config, ModelConfig
from tformer.errors import RequestError
from tformer.layers import Layer, merge
from tformer.run.find import find_run, places_of
from tformer.run.hub import fetched, hub_name, of_snapshot
from tformer.run.huggingface import load_model, notes_of
from tformer.run.own_tokenizer import run_tokenizer, tokenizer_of
from tformer.run.record import ANOTHER_RUN, Origin, Record, read_record
from tformer.text.merges import has_tokenizer, in_place_of_tokenizer
from tformer.text.tokenizer import KINDS, Tokenizer

FREE = ("dropout",)  # settings of the model that no weight depends on
LEFT_OPEN = ("vocab_size", "n_kv_heads", "d_mlp")  # by a 0


@dataclass(frozen=True)
class Pretrained:
    """A model to go on from, read whole before anything is written."""

    folder: Path
    model: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer | None  # None where the directory has none
    origin: Origin  # what `tformer.yaml` keeps under `record.init_from`
    notes: tuple[str, ...] = ()  # what a person should know of its weights


def read_pretrained(name: str) -> Pretrained:
    """A run by name or path, a Hugging Face directory, or a name on the Hub.

    Raises RequestError for what cannot be loaded.
    """
    folder = find_run(name)
    asked, found = hub_name(name), of_snapshot(folder)
    if not found:
        return _read(folder, Origin(source=str(folder.resolve())))
    repo, commit = found
    named = Origin(source=repo, commit=commit)
    if asked and asked.revision:
        named = named.model_copy(update={"revision": asked.revision})
    return _read(folder, named)


def read_origin(origin: Origin) -> Pretrained:
    """What a run began from that has no checkpoint yet; the network is not asked.

    Raises RequestError for what cannot be loaded, and where the weights have changed since.
    """
    pretrained = _read(origin_folder(origin), origin)
    if origin.sha256 and pretrained.origin.sha256 != origin.sha256:
        raise RequestError(
            f"the weights in {pretrained.folder} have changed",
            "their sha256 is not the one recorded",
            ANOTHER_RUN,
        )
    return pretrained


def origin_folder(origin: Origin) -> Path:
    """Where what a run began from lies. Raises RequestError where it does not any more."""
    return fetched(origin.source, origin.commit) if origin.commit else find_run(origin.source)


def _read(folder: Path, origin: Origin) -> Pretrained:
    model = load_model(folder)
    sha256 = {p.name: _sha256(p) for p in sorted(folder.glob("model*.safetensors"))}
    tokenizer = run_tokenizer(folder, read_record(folder)) if has_tokenizer(folder) else None
    return Pretrained(
        folder,
        model.config,
        model.state_dict(),
        tokenizer,
        origin.model_copy(update={"sha256": sha256}),
        notes_of(folder, model.config),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_origin(name: str, recorded: Record) -> bool:
    """Whether `name` is where a run, by its `tformer.yaml`, began. It need not be there any more."""
    origin = recorded.init_from
    if origin is None:
        return False
    if origin.commit and (asked := hub_name(name)):
        return asked.repo == origin.source and asked.revision in (origin.revision, origin.commit)
    return origin.source in {str(place.resolve()) for place in places_of(name)}


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
                shorter = name == "n_ctx" and isinstance(value, int) and 0 < value < model[name]
                instead = f"say --set data.window={value} for shorter windows" if shorter else "leave it out"
                raise RequestError(
                    f"model.{name} is {model[name]!r} in {pretrained.folder}",
                    f"{layer.source} says {value!r}",
                    f"{instead}, or train without --init-from",
                )
    _check_tokenizer(pretrained, tokenizer)
    return merge([*layers, Layer(str(pretrained.folder), {"model": model, "data": {"tokenizer": tokenizer}})])


def _check_tokenizer(pretrained: Pretrained, wanted: str | None) -> None:
    """A kind says nothing of a vocabulary: the directory's own, or a file, is needed."""
    own = pretrained.tokenizer
    if own is None and (wanted is None or wanted in KINDS):
        raise RequestError(
            f"no tokenizer in {pretrained.folder}",
            in_place_of_tokenizer(pretrained.folder) or "without one, its ids mean nothing",
            "name the one that it was trained with: --tokenizer FILE",
        )
    if own is None or wanted is None or wanted == own.kind:
        return
    if wanted in KINDS or tokenizer_of(wanted).engine.get_vocab() != own.engine.get_vocab():
        raise RequestError(
            f"the tokenizer of {pretrained.folder} is {own.kind} of {own.vocab_size:,} ids",
            f"{wanted} is another",
            "leave --tokenizer out",
        )
