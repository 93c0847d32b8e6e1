"""What a directory lacks, said by what is there: the line that stands where a model could not be found.

Knows the names of files that other tools leave, and reads none but `adapter_config.json`. Imports no torch.
"""

import difflib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.files import read_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
EXPECTED = "expected config.json and model.safetensors"
MANY = 1000  # entries of a folder that are looked at
NAMED = 3  # at most, in a line

HUB_PAGE = re.compile(r"https?:/+(?:huggingface\.co|hf\.co)/(?!datasets/|spaces/)([\w.-]+(?:/[\w.-]+)?)")

# What the first models were called on the Hub before names had owners.
OF_OLD = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}


def no_run(name: str, places: Sequence[Path], runs: Sequence[str], runs_folder: Path) -> RequestError:
    """The error where `name` is no run: by what lies at one of `places`, else by the names that there are."""
    for place in places if name else ():
        if os.path.isdir(place):
            return no_model(place)
        if os.path.isfile(place):
            return RequestError(
                f"{place} is a file", "expected a model directory", "name the folder it is in"
            )
    if page := HUB_PAGE.match(name):
        advice = f"the Hub's name for it is {OF_OLD.get(page[1], page[1])}"
        return RequestError(f"{name} is an address", "expected a run, a directory or org/name", advice)
    known = f"expected a name in {runs_folder}/ ({_nearest(name, runs)}) or a model directory"
    if name in OF_OLD:
        on_hub = OF_OLD[name]
        advice = f"on the Hub it is {on_hub}; or fetch it: hf download {on_hub} --local-dir {name}"
    else:
        advice = "train one with: tformer train DATA"
    return RequestError(f"no run {name!r}", known, advice)


def no_model(folder: Path) -> RequestError:
    """The error where a directory has no `config.json`, or none of the weights that go with it."""
    names = _names(folder)
    if ADAPTER in names:
        return adapter_alone(str(folder), _base(folder / ADAPTER))
    if "config.json" in names:
        return _no_weights(folder, names)
    if pickled := _pickled(names):
        return RequestError(
            f"no config.json in {folder}",
            f"found {pickled}, which is pickle and is not read",
            "load it where it was made, and save_pretrained it as a GPT-2 of transformers",
        )
    if weights := next((n for n in names if n.endswith((".safetensors", ".gguf"))), None):
        return RequestError(
            f"no config.json in {folder}",
            f"{weights} alone does not say of which architecture it is",
            "put the config.json of its model beside it",
        )
    inside = [n for n in names if os.path.isfile(folder / n / "config.json")]
    if inside:
        first = folder / inside[0]
        return RequestError(
            f"no model in {folder} itself", f"found {_some(inside)} in it", f"name one: {first}"
        )
    return RequestError(f"no model in {folder}", f"{EXPECTED}, found {_some(names) or 'nothing'}")


def adapter_alone(name: str, base: str | None) -> RequestError:
    """The error where a LoRA adapter lies in place of a model."""
    return RequestError(
        f"{name} is an adapter, a change to the weights of {base or 'another model'}",
        f"{ADAPTER}, without them",
        "merge it, with peft: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload()"
        ".save_pretrained(NEW)",
    )


def missing_shards(folder: Path, shards: Sequence[str]) -> RequestError | None:
    """The error where files that an index names are not there."""
    missing = [shard for shard in shards if not os.path.isfile(folder / shard)]
    if not missing:
        return None
    n = len(shards)
    return RequestError(
        f"{folder} lacks {_some(missing)}", f"{INDEX} names {counted(n, 'file')}", "fetch it whole"
    )


def _no_weights(folder: Path, names: list[str]) -> RequestError:
    if pickled := _pickled(names):
        return RequestError(
            f"no model.safetensors in {folder}",
            f"found {pickled}, which is pickle and is not read",
            f"save it as safetensors: AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained(NEW)",
        )
    if shards := [n for n in names if n.startswith("model-") and n.endswith(".safetensors")]:
        return RequestError(f"no {INDEX} in {folder}", f"found {_some(shards)} without it", "fetch it whole")
    others = [n for n in names if n.endswith((".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"))]
    found = f"found {_some(others)}" if others else "config.json is there, and no weights"
    return RequestError(f"no model.safetensors in {folder}", found)


def _base(config: Path) -> str | None:
    with suppress(RequestError):
        found = read_json(config).get("base_model_name_or_path")
        return found if isinstance(found, str) else None
    return None


def _pickled(names: list[str]) -> str | None:
    """The likeliest of those that hold weights: Trainer leaves training_args.bin and more beside them."""
    found = [n for n in names if n.endswith(PICKLED)]
    return min(found, key=lambda n: (not n.startswith(("pytorch_model", "ckpt", "model")), n), default=None)


def _names(folder: Path) -> list[str]:
    """What lies in a folder; nothing where it cannot be looked into."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in islice(entries, MANY))
    return []


def _nearest(name: str, names: Sequence[str]) -> str:
    if not names:
        return "none yet"
    near = difflib.get_close_matches(name[:200], names, NAMED, 0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    return _some(names)


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
