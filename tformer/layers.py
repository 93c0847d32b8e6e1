"""Layers of settings, and the one place where they are merged: a preset, a YAML file, the command line.

A later layer wins. A key that does not exist or a value of the wrong type is an error that names the key, the
layer it came from and the nearest key.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tformer.config import Config
from tformer.errors import RequestError, short
from tformer.files import read_whole, refuse_address
from tformer.yaml_text import parse_yaml


@dataclass(frozen=True)
class Layer:
    """Settings from one place; `source` is how errors name it."""

    source: str
    values: dict[str, dict[str, Any]]


CORPORA_PRESETS = {name: name for name in ("reversal", "shakespeare", "tinyshakespeare")}
"""Data with a preset of its own; everything else gets `text`."""
GPU_PRESETS = {"shakespeare": "shakespeare-gpu"}
"""What takes a preset's place on a GPU."""


def preset_names() -> list[str]:
    """All presets, sorted."""
    folder = resources.files("tformer") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset_values(name: str) -> dict[str, Any]:
    """What a preset's file holds: settings, and under `expected` what they should come to."""
    if name not in preset_names():
        names = preset_names()
        raise RequestError(f"no preset {name!r}", "there is " + ", ".join(names), _nearest(name, names))
    text = (resources.files("tformer") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(parse_yaml(text, f"preset {name}"))


def preset_layer(name: str) -> Layer:
    """The settings of a preset."""
    values = preset_values(name)
    values.pop("expected", None)
    return _layer(f"preset {name}", values)


def file_layer(path: Path) -> Layer:
    """The settings of a YAML file; a run's `tformer.yaml` is one (its `record` is passed over)."""
    refuse_address(path)
    try:
        text = read_whole(path, may_be_pipe=True)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RequestError(f"cannot read the configuration {path}", why or "") from None
    values = parse_yaml(text, str(path))
    if isinstance(values, dict) and "record" in values:  # a run's own: its vocabulary was its text's
        del values["record"]
        if isinstance(values.get("model"), dict):
            values["model"].pop("vocab_size", None)
    return _layer(str(path), values)


def flag_layer(settings: Sequence[str], flags: dict[str, Any]) -> Layer:
    """The settings of the command line: `section.key=value` strings, and flags by dotted key."""
    values: dict[str, dict[str, Any]] = {}
    given = {key: value for key, value in flags.items() if value is not None}
    flagged = dict(given)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RequestError(f"--set {setting}", "expected KEY=VALUE", "for example --set model.n_layers=6")
        value = parse_yaml(text, f"--set {short(setting)}")
        if key in flagged and flagged[key] != value:
            raise RequestError(f"{key} is given twice", f"{flagged[key]!r} and {value!r}", "leave one out")
        given[key] = value
    for key, value in given.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    return _layer("the command line", values)


def merge(layers: Sequence[Layer]) -> Config:
    """The configuration that the layers make, later ones winning.

    Raises RequestError naming the key, its source and what was expected.
    """
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.values.items():
            merged[section] = merged.get(section, {}) | values
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        source = next((la.source for la in reversed(layers) if _has(la.values, first["loc"])), "")
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "value_error":
            where = f" in {source}" if source and len(layers) == 1 else ""
            raise RequestError(f"the {key or 'settings'} cannot be{where}", message) from None
        raise RequestError(
            f"{key} in {source}",
            f"{message[0].lower()}{message[1:]}, found {short(repr(first['input']))}",
            _description(first["loc"]),
        ) from None


def _description(location: tuple[Any, ...]) -> str:
    """What a setting is, as it is declared; empty for a place that is none."""
    section = Config.model_fields.get(str(location[0])) if len(location) > 1 else None
    fields = getattr(section.annotation, "model_fields", {}) if section else {}
    field = fields.get(str(location[1])) if fields else None
    return f"{location[0]}.{location[1]} is: {field.description}" if field else ""


def _has(values: Any, location: tuple[Any, ...]) -> bool:
    for part in location:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def all_keys() -> list[str]:
    """Every dotted key, in the order of the sections."""
    return [
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]


def _layer(source: str, values: Any) -> Layer:
    """Check the keys of one layer, so that an error names the layer."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RequestError(f"{source} holds no settings", f"expected sections, found {values!r}"[:200])
    keys = all_keys()
    for section, content in values.items():
        if section not in Config.model_fields:
            there = "there is " + ", ".join(Config.model_fields)
            raise RequestError(f"unknown section {section!r} in {source}", there, _nearest(section))
        if content is None:
            content = values[section] = {}
        if not isinstance(content, dict):
            raise RequestError(
                f"{section} in {source}", f"expected settings under it, found {short(repr(content))}"
            )
        for name in content:
            if f"{section}.{name}" not in keys:
                raise RequestError(
                    f"unknown key {section}.{name} in {source}", "", _nearest(f"{section}.{name}")
                )
    return Layer(source, values)


def _nearest(word: str, among: Sequence[str] = ()) -> str:
    """'did you mean …', by spelling, among the keys and sections unless other words are given."""
    words = among or [*all_keys(), *Config.model_fields]
    section, _, name = str(word).partition(".")
    for found in difflib.get_close_matches(str(word), words, n=1, cutoff=0.5):
        # A section alone is like every key in it: the name is to be like the name as well.
        if not name or difflib.SequenceMatcher(None, name, found.partition(".")[2]).ratio() >= 0.3:
            return f"did you mean {found}?"
    keys = [key for key in all_keys() if not among and key.startswith(f"{section}.")]
    return f"there is {', '.join(keys)}" if keys else ""
