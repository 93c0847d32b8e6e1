"""The tokenizer of a run, which is the one that it was trained with, or one that another tool saved.

Imports no torch.
"""

import hashlib
from pathlib import Path

from tformer.errors import RequestError
from tformer.run.find import tokenizer_path
from tformer.run.record import Record, read_record
from tformer.text.tokenizer import Tokenizer


def other_tokenizer(folder: Path, recorded: Record) -> str:
    """In words, how a run's tokenizer.json is not what it was trained with; empty where it is, or is gone."""
    path = folder / "tokenizer.json"
    known = recorded.tokenizer.sha256 if recorded.tokenizer else None
    if not known or not path.is_file():
        return ""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == known else f"sha256 {found[:12]}…, recorded is {known[:12]}…"


def run_tokenizer(folder: Path, recorded: Record) -> Tokenizer:
    """The tokenizer of a run or of any other directory, whose record is empty.

    Raises RequestError where there is none, and for a file as tformer writes it, and not what it wrote: that
    is damage. What another tool wrote is in another form.
    """
    tokenizer = Tokenizer.load(folder)
    if (differs := other_tokenizer(folder, recorded)) and _is_as_written(tokenizer, folder):
        what = f"{folder / 'tokenizer.json'} is not the one that this run was trained with"
        raise RequestError(what, differs, "put it back")
    return tokenizer


def tokenizer_of(name: str) -> Tokenizer:
    """That of a `tokenizer.json`, or of a run or directory. Raises RequestError as `run_tokenizer` does."""
    path = tokenizer_path(name)
    return run_tokenizer(path, read_record(path)) if path.is_dir() else Tokenizer.load(path)


def _is_as_written(tokenizer: Tokenizer, folder: Path) -> bool:
    return (folder / "tokenizer.json").read_bytes() == tokenizer.to_json().encode()


def told_of_tokenizer(folder: Path, recorded: Record) -> tuple[str, ...]:
    """For a person, where another tool saved it."""
    differs = other_tokenizer(folder, recorded)
    told = f"{folder}: tokenizer.json is not the one that it was trained with ({differs}): another tool saved"
    return (f"{told} it, or it is damaged",) if differs else ()
