"""The README's pictures, from real runs: python examples/pictures.py [FOLDER], under a minute.

Each is what the command shows on a terminal of 88 columns, as Rich exports it.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from tformer.cli import app
from tformer.show import progress, terminal

DARK = TerminalTheme(
    (22, 25, 30),
    (215, 221, 229),
    [
        (70, 76, 84),
        (240, 104, 96),
        (92, 190, 112),
        (214, 170, 70),
        (96, 160, 240),
        (190, 140, 240),
        (80, 186, 196),
        (215, 221, 229),
    ],
)
PICTURES = {  # name: the command
    "reversal": ["train", "reversal"],
    "attention": ["eval", "attention", "--run", "reversal"],
    "answer": ["answer", "causal-mask", "--run", "reversal"],
}


class Final(progress.TrainingProgress):
    """The live line as it stands at the end: a recording shows no movement."""

    def __enter__(self) -> "Final":
        return self

    def __exit__(self, *exception: object) -> None:
        self.console.print(self.progress.get_renderable())


@contextmanager
def nothing() -> Iterator[Callable[..., None]]:
    """In place of a bar that is gone when the result is there."""
    yield lambda *told: None


def draw(command: list[str], path: Path) -> None:
    """Run a command on a terminal that records, and save what it shows."""
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=88, file=sys.stderr)
    for room in (terminal, progress):
        for stream in ("out", "err"):
            if hasattr(room, stream):
                setattr(room, stream, lambda: console)
    with suppress(typer.Exit):
        app(command, standalone_mode=False)
    title = " ".join(["tformer", *command])
    svg = console.export_svg(title=title, theme=DARK, unique_id=path.stem)
    path.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S))  # a picture fetches no fonts


if __name__ == "__main__":
    progress.TrainingProgress = Final
    progress.experiments_progress = progress.steps_progress = nothing
    folder = Path(*sys.argv[1:] or [Path(__file__).parent / "pictures"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ.pop("TFORMER_RUNS", None)
        for name, command in PICTURES.items():
            draw(command, folder / f"{name}.svg")
