"""Options and small habits that several commands share."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tformer.errors import UNSAFE, RequestError, short

MOST_WHOLE = 2**63 - 1


def completes(*words: str) -> Callable[[str], list[str]]:
    """For the shell: which of these words begin so."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """For the shell: the runs in `runs/`."""
    from tformer.run.find import all_runs

    return [folder.name for folder in all_runs() if folder.name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """For the shell: the presets."""
    from tformer.layers import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Device = Annotated[
    str,
    typer.Option(
        envvar="TFORMER_DEVICE",
        help="auto, cpu, cuda, cuda:N or mps.",
        show_envvar=True,
        autocompletion=completes("auto", "cpu", "cuda", "mps"),
    ),
]
A_RUN = (
    "Name in runs/, path to a run or Hugging Face directory, or org/name on the Hub. "
    "Default: the newest suitable run."
)
RunOption = Annotated[str | None, typer.Option(help=A_RUN, autocompletion=complete_run)]
StepOption = Annotated[int | None, typer.Option("--step", help="Use the checkpoint saved at this step.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


def epilog(*examples: str) -> str:
    r"""Examples below a help page; the \b of Typer's keeps the lines as they are."""
    return "\n  ".join(["\b\nExamples", *examples])


def print_json(values: Any) -> None:
    """One JSON object, one line; what is no finite number is null.

    On a terminal a character that could do something there is escaped, which is the same JSON.
    """
    from tformer.files import plain

    text = json.dumps(plain(values), ensure_ascii=False, allow_nan=False)
    if sys.stdout.isatty():
        text = UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    print(text, flush=True)


def text_of(argument: str, name: str) -> str:
    """An argument as text, UTF-8 also where the system's habit is another. Raises RequestError for others."""
    if not re.search("[\ud800-\udfff]", argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise RequestError(f"{name} is not UTF-8", "expected text") from None


def stdin_is_piped() -> bool:
    """Whether something other than a person is at standard input."""
    try:
        return sys.stdin is not None and not sys.stdin.isatty()
    except ValueError:  # closed
        return False


def unasked(what: str) -> list[str]:
    """`-`, where nothing is named and a pipe is there, which is then read, as is said; else nothing."""
    if stdin_is_piped():
        say_unasked(what)
        return ["-"]
    return []


def say_unasked(what: str) -> None:
    """That standard input is read, for a person who has not asked for it."""
    print(f"reading {what} from standard input", file=sys.stderr)


def stdin_lines(end: bytes = b"\n") -> Iterator[str]:
    """Lines of standard input as they come, without their line ends and byte order marks.

    `end` ends one; with NUL, what `find -print0` and `xargs -0` speak, line ends are part of it.

    Raises RequestError if they are not UTF-8.
    """
    from tformer.text.plain import STDIN, refuse_other_than_text, without_marks

    offset = 0
    for raw in _pieces(end):
        if offset == 0:
            refuse_other_than_text(raw.removesuffix(b"\0"), STDIN)
        try:
            line = without_marks(raw.decode("utf-8"), STDIN)
            yield line.removesuffix("\n").removesuffix("\r") if end == b"\n" else line.removesuffix("\0")
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not UTF-8 at byte {offset + error.start}") from None
        offset += len(raw)


def _pieces(end: bytes) -> Iterator[bytes]:
    """Standard input piece by piece, each with the `end` of it, as soon as that has come."""
    if end == b"\n":
        yield from sys.stdin.buffer
        return
    stream, held = cast(BufferedReader, sys.stdin.buffer), b""
    while block := stream.read1(1 << 16):
        *whole, held = (held + block).split(end)
        yield from (piece + end for piece in whole)
    if held:
        yield held


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


def check_overwrite(overwrite: bool, option: str, path: Path | None) -> None:
    """Raises RequestError for --overwrite where nothing is written that it could be of."""
    if overwrite and path is None:
        raise RequestError(f"--overwrite without {option}", "", f"say what to replace: {option} FILE")


def check_range(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Check the range of a number: finite, a whole one of 63 bits. Raises RequestError naming the option."""
    if value is None:
        return
    is_whole = isinstance(value, int)
    top = most if most is not None else MOST_WHOLE if is_whole else sys.float_info.max
    if least <= value <= top:
        return
    found = f"expected at most {top}" if value > top else f"expected {least:g} or more"
    if most is not None:
        found = f"expected {least:g} to {most:g}"
    raise RequestError(f"{name} {short(str(value)) if is_whole else f'{value:g}'}", found)
