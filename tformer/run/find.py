"""Which run is meant: names, `runs/`, the newest that suits. Paths alone; imports no torch."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tformer.errors import RequestError
from tformer.yaml_text import parse_yaml


def runs_folder() -> Path:
    """`TFORMER_RUNS`, or `runs` in the working directory."""
    return Path(os.environ.get("TFORMER_RUNS") or "runs")


def find_run(run: str) -> Path:
    """The directory of a run: a name in `runs/`, or a path. Raises RequestError, naming what is there."""
    for folder in (runs_folder() / run, Path(run)):
        if os.path.exists(folder / "config.json"):
            return folder
    there = ", ".join(folder.name for folder in all_runs()) or "none yet"
    raise RequestError(
        f"no run {run!r}",
        f"expected a name in {runs_folder()}/ ({there}) or a model directory",
        "train one with: tformer train reversal",
    )


def tokenizer_path(name: str) -> Path:
    """A tokenizer.json file, or a run (by name or path) that has one."""
    path = Path(name)
    return path if path.is_file() or (path / "tokenizer.json").is_file() else find_run(name)


def all_runs() -> list[Path]:
    """Runs in `runs/`, the most recently written first."""
    folder = runs_folder()
    found = [p for p in folder.iterdir() if (p / "tformer.yaml").exists()] if folder.is_dir() else []
    return sorted(found, key=lambda p: ((p / "tformer.yaml").stat().st_mtime, p.name), reverse=True)


def newest_run(suits: Callable[[dict[str, Any]], bool], wanted: str) -> Path:
    """The newest run with weights whose `tformer.yaml` suits. Raises RequestError if there is none."""
    for folder in all_runs():
        with suppress(RequestError):  # a damaged record suits nothing
            if (folder / "model.safetensors").exists() and suits(read_record(folder)):
                return folder
    raise RequestError(
        f"no run to use in {runs_folder()}/",
        f"expected {wanted}",
        "train one with: tformer train DATA, or name one with --run",
    )


def read_record(folder: Path) -> dict[str, Any]:
    """`tformer.yaml` of a run; empty for a directory that another tool wrote."""
    path = folder / "tformer.yaml"
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}", str(error)) from None
    values = parse_yaml(text, str(path))
    sections = ("model", "data", "train", "record")
    met = values.get("record") or {} if isinstance(values, dict) else {}
    shaped = isinstance(values, dict) and all(isinstance(values.get(s, {}), dict) for s in sections)
    if not shaped or not isinstance(met.get("data", {}), dict):
        raise RequestError(f"{path} is damaged", "expected the sections model, data, train and record")
    return values


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. A line cut short is passed over."""
    lines = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def task_of(record: dict[str, Any]) -> str:
    """`text` or `reversal`."""
    data = record.get("data")
    return str(data.get("task", "text")) if isinstance(data, dict) else "text"


def is_finished(record: dict[str, Any]) -> bool:
    """Whether training came to its end."""
    met = record.get("record")
    return isinstance(met, dict) and bool(met.get("result"))


def new_run_folder(name: str) -> Path:
    """`runs/NAME`, then `runs/NAME-2`, …: the first that is free."""
    folder, n = runs_folder() / name, 1
    while folder.exists():
        n += 1
        folder = runs_folder() / f"{name}-{n}"
    return folder


def unfinished_run(name: str) -> Path | None:
    """The newest run of that name (NAME, NAME-2, …) that has not come to its end."""
    for folder in all_runs():
        base, _, number = folder.name.rpartition("-")
        of_that_name = folder.name == name or (base == name and number.isdigit())
        with suppress(RequestError):
            if of_that_name and not is_finished(read_record(folder)):
                return folder
    return None


def recorded_hash(record: dict[str, Any]) -> str | None:
    """The sha256 of the data that a run was trained on, if its `tformer.yaml` says so."""
    return ((record.get("record") or {}).get("data") or {}).get("sha256")


def check_hash(found: str, expected: str | None, advice: str) -> None:
    """Raises RequestError where data is not what a run recorded; nothing recorded, nothing to check."""
    if expected and found != expected:
        raise RequestError(
            "the data of this run has changed", f"sha256 {found[:12]}…, recorded is {expected[:12]}…", advice
        )
