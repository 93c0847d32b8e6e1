"""The Typer app, and the one place where errors become exit codes.

Nothing heavy is imported here, nor by the command files at their top, so that help answers at once.
"""

import contextlib
import io
import os
import re
import signal
import sys
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tformer import __version__
from tformer.commands import answer, eval, sample, tokenize, train
from tformer.commands.options import epilog
from tformer.commands.several import is_said_by_another
from tformer.errors import (
    FAILED,
    REQUEST,
    RequestError,
    Stopped,
    TformerError,
    asked_for,
    harmless,
    lacks_device,
    lacks_memory,
)
from tformer.show.listener import whoever_listens
from tformer.signals import SIGNALLED, answered_by, leave_at_once

SIGPIPE = getattr(signal, "SIGPIPE", 13)  # Windows has none
TO_LOWER: dict[str, tuple[tuple[str, ...], str]] = {  # by command: options, and what else takes less memory
    "train": ((), "lower --batch-size, or set train.micro_batch_size, data.window or a smaller model"),
    "eval generations": (("-n", "--max-tokens"), "give a run with a smaller model"),
    "eval reversal": (("-n",), "give a run with a smaller model"),
    "eval attention": (("-n",), "give a shorter text"),
    "eval causality": (("--positions",), "give a run with a smaller model or context"),
    "eval": ((), "give a shorter text, a run with a smaller model or context, or --device cpu"),
    "sample": (("-n", "--max-tokens"), "give a shorter prompt"),
    "tokenize": ((), "give the text as several files, or on standard input, which is read in pieces"),
    "answer": ((), "leave --full or --run out"),
}


class InOrder(TyperGroup):
    """Typer lists groups last; a person meets the commands in the order of the work."""

    def list_commands(self, ctx: Any) -> list[str]:
        """For the help and for the shell."""
        return ["tokenize", "train", "eval", "sample", "answer"]


app = typer.Typer(
    name="tformer",
    cls=InOrder,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, check, run and explain decoder-only transformer language models.",
    epilog="Start with: tformer train reversal",
)
app.command("tokenize", epilog=epilog(*tokenize.EXAMPLES))(tokenize.command)
app.command("train", cls=train.TrainCommand, epilog=epilog(*train.EXAMPLES))(train.command)
app.add_typer(eval.app, name="eval", epilog=epilog(*eval.EXAMPLES))
app.command("sample", epilog=epilog(*sample.EXAMPLES))(sample.command)
app.command("answer", epilog=epilog(*answer.EXAMPLES))(answer.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tformer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or set TFORMER_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["TFORMER_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line and leave with its exit code.

    Work goes on when nobody listens to standard error any more; whoever closed it is told by 141.
    """
    answered_by(leave_at_once)
    _open_closed_streams()
    _write_any_character()
    with whoever_listens() as listener:
        try:
            code = app(prog_name="tformer", standalone_mode=False)
            sys.stdout.flush()
        except BaseException as error:
            code = _exit_code(error)
    leave(int(code or 0) or listener.is_gone * (SIGNALLED + SIGPIPE))


def _open_closed_streams() -> None:
    """A standard stream that the caller closed becomes the null device, so that no file takes its number.

    One that a result is to go to refuses it: a result that is lost is an error.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode))


def _write_any_character() -> None:
    """UTF-8 into pipes and files whatever the system's habit, and no character that a terminal cannot take.

    Half a surrogate, from a file name that is not UTF-8, becomes the escape that JSON has for it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def leave(code: int) -> NoReturn:
    """Exit with a code, saying nothing where nobody listens any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or SIGNALLED + SIGPIPE
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if "RANK" in os.environ:
        # One of several processes. A thread of the process group may still want the interpreter, and where it
        # asks while that one ends, the process is aborted (PyTorch 2.13, gloo: one start in seven, of four).
        os._exit(code)
    sys.exit(code)


def _command_given() -> tuple[Any, str]:
    """The command of the command line, for an error that does not know where it was found, and its name."""
    command, path = typer.main.get_command(app), ["tformer"]
    for word in sys.argv[1:]:
        if word == "--debug":
            continue
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]  # type: ignore[attr-defined]
        path.append(word)
    return command, " ".join(path)


def _exit_code(error: BaseException) -> int:
    """Say what went wrong, in one line, and return the exit code it stands for."""
    if os.environ.get("TFORMER_DEBUG", "").lower() not in ("", "0", "false", "no") and not isinstance(
        error, typer.Exit
    ):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return SIGNALLED + signal.SIGINT
    if isinstance(error, Stopped):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return SIGNALLED + SIGPIPE
    if isinstance(error, (RequestError, typer.TyperException)) and is_said_by_another():
        return REQUEST
    if isinstance(error, TformerError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, typer.TyperException):  # usage
        message = getattr(error, "format_message", lambda: str(error))()
        if not message.strip():  # no arguments: the help has been shown
            return REQUEST
        command = getattr(getattr(error, "ctx", None), "command_path", "") or _command_given()[1]
        hint = "put text that begins with a dash last, after --, or " * _is_of_text(error)
        _say(f"{message.strip().rstrip('.')}; {hint}see: {command} --help")
        return REQUEST
    if lacks_memory(error):
        asked = asked_for(error)
        _say("out of memory" + f" ({asked})" * bool(asked) + f"; {_to_lower()}")
        return FAILED
    if lacks_device(error):
        why, again = str(error).splitlines()[0], "do it again, train with --resume, or with --device cpu"
        _say(f"the device failed ({why}); what was saved is whole: {again}")
        return FAILED
    if isinstance(error, OSError):
        _say(f"{error.filename or 'standard output'}: {error.strerror or error}")
        return FAILED
    if isinstance(error, SystemExit):  # Typer turns a closed pipe into exit 1: not here
        if isinstance(error.__context__, BrokenPipeError):
            return SIGNALLED + SIGPIPE
        return error.code if isinstance(error.code, int) else FAILED
    _say(
        f"this is a bug: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; "
        "run it again with --debug for the traceback, and report it"
    )
    return FAILED


def _is_of_text(error: typer.TyperException) -> bool:
    """Whether text was taken for options: "- milk", "-5", "--Well, he said", and "-now" for a number."""
    unknown = getattr(error, "option_name", None)
    if unknown is not None:
        return not re.fullmatch("--[a-z][a-z0-9_-]*", unknown)
    return any(re.match(r"-[a-z][^\W\d]", word) for word in sys.argv)


def _to_lower() -> str:
    """What the command line can ask less of, with what it asks of it."""
    command, name = _command_given()
    name = name.removeprefix("tformer ")
    options, otherwise = TO_LOWER.get(name) or TO_LOWER.get(name.partition(" ")[0]) or TO_LOWER["train"]
    asked = []
    for option in options:
        given = [after for word, after in pairwise(sys.argv) if word == option]
        given += [word.partition("=")[2] for word in sys.argv if word.startswith(f"{option}=")]
        given = given or [p.default for p in command.params if option in p.opts and p.default is not None]
        asked.append(f"{option} (it is {given[-1]})" if given else option)
    return f"lower {' or '.join(asked)}, or {otherwise}" if asked else otherwise


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print("tformer: error: " + harmless(" ".join(message.split())), file=sys.stderr)
