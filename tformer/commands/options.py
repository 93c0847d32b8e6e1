"""Options and small habits that several commands share."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tformer.errors import RequestError


def completes(*words: str) -> Callable[[str], list[str]]:
    """For the shell: which of these words begin so."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """For the shell: the runs in `runs/`."""
    from tformer.run.find import all_runs

    return [folder.name for folder in all_runs() if folder.name.startswith(incomplete)]


Device = Annotated[
    str,
    typer.Option(
        envvar="TFORMER_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        show_envvar=True,
        autocompletion=completes("auto", "cpu", "cuda", "mps"),
    ),
]
A_RUN = "A name in runs/, or a path to a run or Hugging Face model directory. Newest if left out."
RunOption = Annotated[str | None, typer.Option(help=A_RUN, autocompletion=complete_run)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def epilog(*examples: str) -> str:
    r"""Examples below a help page; the \b of Typer's keeps the lines as they are."""
    return "\n  ".join(["\b\nExamples", *examples])


def print_json(values: Any) -> None:
    """One JSON object, one line."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)


def stdin_is_piped() -> bool:
    """Whether something other than a person is at standard input."""
    try:
        return sys.stdin is not None and not sys.stdin.isatty()
    except ValueError:  # closed
        return False


def stdin_lines() -> Iterator[str]:
    """Lines of standard input as they come, without their line ends and a byte order mark before the first.

    Raises RequestError if they are not UTF-8.
    """
    offset = 0
    for raw in sys.stdin.buffer:
        try:
            line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            yield line if offset else line.removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not UTF-8 at byte {offset + error.start}") from None
        offset += len(raw)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Nothing that exists is overwritten unless the user says so."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder", "expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is not a regular file", "expected the name of a file to write")
    if os.path.lexists(path) and not overwrite:
        raise RequestError(f"{path} exists", "", "give another name, or --overwrite")
    if not path.parent.is_dir():
        raise RequestError(f"no folder {path.parent} to write {path.name} in")


def check_range(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Check the range of a number. Raises RequestError naming the option."""
    if value is not None and not (least <= value and (most is None or value <= most)):
        found = f"expected {least:g} or more" if most is None else f"expected {least:g} to {most:g}"
        raise RequestError(f"{name} {value:g}", found)
