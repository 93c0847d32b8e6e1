"""The help of every command on one page: python examples/help.py > examples/guide/help.md."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from tformer.cli import app

# What a pipe gets, at a fixed width; nothing of the caller's terminal or settings.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("TFORMER_", "FORCE_", "TERMINAL_"))}
ENVIRONMENT |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}


def commands(command: Any, path: str = "tformer") -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with what is typed to get there."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}")


def page() -> str:
    """The page, as Markdown."""
    parts = ["# The help of every command", "Written by `python examples/help.py > examples/guide/help.md`."]
    for path, _ in commands(typer.main.get_command(app)):
        arguments = [*path.split()[1:], "--help"]
        done = subprocess.run(
            [sys.executable, "-m", "tformer", *arguments],
            env=ENVIRONMENT,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        shown = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        parts.append(f"## {path} --help\n\n```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
