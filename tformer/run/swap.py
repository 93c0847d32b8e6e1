"""A run takes its place in a directory as a whole; whatever moment a process dies at, the next one goes on.

A run that begins is built in a folder inside its directory, which nobody reads. One rename says that it is
whole; what an earlier run left is then removed, and the files of the new one are moved up. Who finds that
begun finishes it, a trainer or a reader. Imports no torch.
"""

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from tformer.files import cannot_write, sync_folder
from tformer.temporary import TEMPORARY, TEMPORARY_FILE, lock, remove_left

BUILT = f"{TEMPORARY}run"  # while it is being made
WHOLE = ".tformer-run"  # it is the run of the directory, and on its way into place
# What a process that was killed leaves: whole folders, and files.
OURS = re.compile(rf"{re.escape(TEMPORARY)}(run|step-\d+)|{TEMPORARY_FILE.pattern}")
CHECKPOINTS = "checkpoints"
# In the order in which they are moved up. While the first is not, nothing is; the last makes it a run.
RUN_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "metrics.jsonl",
    "evals.jsonl",
    "loss.svg",
    "report.html",
    "tformer.yaml",
)
PATIENCE = 5.0  # seconds that a reader waits for whoever is moving a run into place


def is_untouched(folder: Path) -> bool:
    """Whether a folder holds nothing but what a process that was killed left there."""
    return all(OURS.fullmatch(entry.name) for entry in folder.iterdir())


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left in a folder. Whoever calls it holds the folder.

    Not all that write there hold it: `eval` renews the page of a run that somebody trains.
    """
    for entry in folder.iterdir():
        if TEMPORARY_FILE.fullmatch(entry.name):
            remove_left(entry)
        elif OURS.fullmatch(entry.name):
            discard(entry)


def discard(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, but not what that leads to. OSError if it stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def begin_apart(folder: Path) -> Path:
    """The folder inside in which a new run is made."""
    inside = folder / BUILT
    try:
        if inside.exists():
            discard(inside)
        inside.mkdir()
    except OSError as error:
        raise cannot_write(inside, error) from None
    return inside


def take_place(folder: Path) -> None:
    """Make what was built the run of the folder. Whoever calls it holds the folder.

    Raises TformerError where the system refuses; the next process goes on from there.
    """
    try:
        sync_folder(folder / BUILT)
        os.rename(folder / BUILT, folder / WHOLE)
        sync_folder(folder)
        _move_up(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _move_up(folder: Path) -> None:
    """Move a run into place over what an earlier one left. May end anywhere, and is begun again."""
    new = folder / WHOLE
    if (new / RUN_FILES[0]).exists():
        for name in RUN_FILES:
            if not (new / name).exists():
                (folder / name).unlink(missing_ok=True)
        discard(folder / CHECKPOINTS)
        sync_folder(folder)  # nothing of the old one may come back once the new one is on its way up
    for name in (RUN_FILES[0], CHECKPOINTS, *RUN_FILES[1:]):
        if (new / name).exists():
            os.replace(new / name, folder / name)
        if name == RUN_FILES[0]:
            sync_folder(folder)  # for good: a power failure must not undo this one and keep the others
    sync_folder(folder)
    shutil.rmtree(new)


def recover(folder: Path) -> None:
    """Finish what a process began that was killed, or wait while a living one does.

    Raises TformerError where the system refuses.
    """
    until = time.monotonic() + PATIENCE
    while os.path.isdir(folder / WHOLE) and time.monotonic() < until:
        try:
            descriptor = lock(folder)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        except OSError as error:
            raise cannot_write(folder, error) from None
        try:
            with suppress(FileNotFoundError):  # another was quicker
                _move_up(folder)
        except OSError as error:
            raise cannot_write(folder, error) from None
        finally:
            if descriptor is not None:
                os.close(descriptor)
