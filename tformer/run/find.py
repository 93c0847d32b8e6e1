"""Which run is meant: names, `runs/`, the newest that suits. Paths alone; imports no torch."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tformer.errors import RequestError
from tformer.run.hub import fetch, hub_name
from tformer.run.lacking import no_run
from tformer.run.record import Record, read_record
from tformer.run.swap import recover
from tformer.text.merges import has_tokenizer


def runs_folder() -> Path:
    """`TFORMER_RUNS`, or `runs` in the working directory."""
    return Path(os.environ.get("TFORMER_RUNS") or "runs")


def places_of(name: str) -> tuple[Path, ...]:
    """What may be meant, the likeliest first: a path alone where there is a separator, or a dot in front."""
    is_path = name.startswith(".") or any(mark in name for mark in (os.sep, os.altsep or os.sep))
    return (Path(name),) if is_path else (runs_folder() / name, Path(name))


def find_run(run: str) -> Path:
    """The directory of a run: a name in `runs/`, a path, or a name on the Hub, which is fetched.

    Raises RequestError, saying what is there in its place.
    """
    for folder in places_of(run):
        recover(folder)
        if os.path.exists(folder / "config.json"):
            return folder
    if name := hub_name(run):
        return fetch(name)
    raise no_run(run, places_of(run), [folder.name for folder in all_runs()], runs_folder())


def tokenizer_path(name: str) -> Path:
    """A tokenizer.json file, or a directory or run that has one; what ends in .json is always a file."""
    path = Path(name)
    if os.path.isfile(path) or path.suffix == ".json":
        return path
    return next((p for p in places_of(name) if has_tokenizer(p)), None) or find_run(name)


def all_runs() -> list[Path]:
    """Runs in `runs/`, the most recently written first."""
    folder = runs_folder()
    for run in folder.iterdir() if folder.is_dir() else ():
        recover(run)
    found = [p for p in folder.iterdir() if (p / "tformer.yaml").exists()] if folder.is_dir() else []
    return sorted(found, key=lambda p: ((p / "tformer.yaml").stat().st_mtime, p.name), reverse=True)


def newest_run(suits: Callable[[Record], bool], wanted: str) -> Path:
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
            if of_that_name and not read_record(folder).is_finished:
                return folder
    return None
