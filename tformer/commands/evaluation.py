"""What the tasks of `tformer eval` share: which run is judged, where the result goes, what is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.options import (
    A_RUN,
    check_overwrite,
    check_range,
    complete_run,
    completes,
    print_json,
    refuse_existing,
)
from tformer.errors import RequestError, TformerError

if TYPE_CHECKING:
    import torch

    from tformer.run.loaded import LoadedRun

OneRun = Annotated[
    list[str] | None, typer.Option("--run", metavar="<str>", help=A_RUN, autocompletion=complete_run)
]
SeveralRuns = Annotated[
    list[str] | None,
    typer.Option("--run", help=f"{A_RUN} Repeat to compare runs.", autocompletion=complete_run),
]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.", autocompletion=completes("fp32", "bf16"))]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out file.")]


def check_precision(precision: str) -> None:
    """Raises RequestError for any other."""
    if precision not in ("fp32", "bf16"):
        raise RequestError(f"--precision {precision}", "expected fp32 or bf16")


def check_out(out: Path | None, overwrite: bool, task: str, *endings: str) -> None:
    """Raises RequestError for a file that cannot be written, before any work."""
    check_overwrite(overwrite, "--out", out)
    if out is None:
        return
    if out.suffix not in endings:
        raise RequestError(f"--out {out}", f"for {task} a name ending in {' or '.join(endings)} is expected")
    refuse_existing(out, overwrite)


def write_out(out: Path, data: bytes) -> None:
    """Write the file of `--out`, and say so."""
    from tformer.files import write_file
    from tformer.show import terminal

    write_file(out, data)
    terminal.say(f"wrote {out}")


def find_runs(names: Sequence[str] | None, suits: str | None = None) -> list[Path]:
    """The directories of `--run`; left out, the newest run, on `suits` if that is given (text, reversal).

    Raises RequestError for one named twice.
    """
    from tformer.run.find import find_run, newest_run
    from tformer.show import terminal

    if not names:
        wanted = f"a run on {suits or 'anything'}"
        folders = [newest_run(lambda record: suits in (None, record.task), wanted)]
        terminal.say(f"using {folders[0]}")
        return folders
    folders = [find_run(name) for name in names]
    real = [folder.resolve() for folder in folders]
    for name, folder in zip(names, real, strict=True):
        if real.count(folder) > 1:
            raise RequestError(f"--run {name} is given twice", "expected different runs")
    return folders


def load_and_say(folder: Path, device: "torch.device", step: int | None = None) -> "LoadedRun":
    """A run, and on stderr what a person should know of its weights."""
    from tformer.run.loaded import load_run
    from tformer.show import terminal

    check_range("--step", step, 0)
    run = load_run(folder, device, step)
    for note in run.notes:
        terminal.say(note)
    return run


def load_one(
    names: Sequence[str] | None, task: str, device: str, suits: str | None = None, step: int | None = None
) -> "LoadedRun":
    """The one run that is judged, with its model on the device. Raises RequestError for several."""
    from tformer.device import resolve_device

    resolved = resolve_device(device)
    if names and len(names) > 1:
        raise RequestError(f"--run given {len(names)} times", f"expected one for {task}; loss takes several")
    return load_and_say(find_runs(names, suits)[0], resolved, step)


def tell(run: "LoadedRun", result: dict[str, Any], json: bool, show: Callable[[Any], object]) -> None:
    """The result of one run to standard output: an object, or as a person reads it."""
    from tformer.show import terminal

    if json:
        print_json(named(run.folder, run.step) | result)
    else:
        show(terminal.out())


def named(folder: Path, step: int | None) -> dict[str, Any]:
    """Which weights a result is of: the run, and the step of `--step`."""
    return {"run": str(folder)} | ({} if step is None else {"step": step})


def keep(run: "LoadedRun", task: str, result: dict[str, Any], on: str = "") -> None:
    """Keep what was found in the run and show it on its page; a foreign directory is left as it is.

    `on` says in words what it was measured on.
    """
    if run.record.is_empty:
        return
    from tformer.run.record import keep_evaluation
    from tformer.show import terminal
    from tformer.show.run_page import write_page

    try:
        keep_evaluation(run.folder, task, result, on, run.weights_sha256, run.step)
    except (OSError, TformerError) as error:
        terminal.warn(f"the result is not kept in {run.folder}: {_why(error)}")
        return
    if run.step is not None:  # the page is of the weights that it keeps
        return
    try:
        write_page(run.folder, run.model)
    except (OSError, TformerError) as error:
        terminal.warn(f"{run.folder}/report.html is not renewed: {_why(error)}")


def _why(error: OSError | TformerError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
