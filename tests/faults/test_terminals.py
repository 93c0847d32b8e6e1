"""What others wrote does nothing on a terminal, whatever shows it; in a pipe it is what it was."""

import json
import sys

import pytest

from tests.commands.test_bad_input import ESCAPES, TEXT, place, tformer, write_run
from tformer.show import progress, terminal

__all__ = ["place", "tformer"]

STRANGE = ESCAPES + "\u202e\x7f"
MOVES = ("\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\u202e", "\x7f")  # what Rich writes itself is none of these


@pytest.fixture
def on_terminal(monkeypatch):
    """Both streams are one, without colours."""

    def both(is_one: bool = True) -> None:
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: is_one)

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return both


def moved(text: str) -> list[str]:
    return [found for found in MOVES if found in text]


def test_names_of_runs_that_are_compared_do_nothing_on_a_terminal(place, tformer, on_terminal):
    for seed, name in enumerate("ab"):
        write_run(place / f"{name}{ESCAPES}", seed=seed)
    runs = ("--run", f"a{ESCAPES}", "--run", f"b{ESCAPES}", "--data", "hamlet.txt", "--device", "cpu")
    on_terminal()
    code, out, err = tformer("eval", "loss", *runs)
    assert (code, moved(out + err), "a\ufffd]0;OWNED" in out) == (0, [], True), out


def test_what_a_bar_is_called_does_nothing_on_a_terminal(on_terminal, capsys):
    on_terminal()
    with progress.steps_progress(f"scoring {STRANGE}") as tell:
        tell(1, 2)
    with progress.download_progress(f"downloading {STRANGE}") as tell:
        tell(1, 2)
    with progress.bytes_progress(f"tokenizing into {STRANGE}", 9) as told:
        told(1)
    grid = terminal.table(terminal.out(), f"a{STRANGE}", title=f"of {STRANGE}")
    terminal.out().print(grid)
    terminal.heading(STRANGE, terminal.out())
    said = capsys.readouterr()
    assert moved(said.out + said.err) == []
    assert "OWNED" in said.out and "OWNED" in said.err


def test_json_is_the_same_on_a_terminal_and_does_nothing_there(place, tformer, on_terminal):
    write_run(place / "m", text=TEXT + STRANGE)
    sample = (
        "sample",
        f"To{STRANGE}",
        "--json",
        "--run",
        "m",
        "--max-tokens",
        3,
        "--seed",
        1,
        "--device",
        "cpu",
    )
    in_pipe = tformer(*sample)[1]
    on_terminal()
    code, out, _ = tformer(*sample)
    assert (code, moved(out)) == (0, []), out
    assert json.loads(out) == json.loads(in_pipe) and json.loads(out)["prompt"] == f"To{STRANGE}"
    assert "\x9b" in in_pipe and "\u202e" in in_pipe, "raw"


def test_decoded_text_does_nothing_on_a_terminal_and_is_its_bytes_in_a_pipe(place, tformer, on_terminal):
    text = f"To{STRANGE}\r\nbe\r\n\r"
    write_run(place / "m", kind="bpe")
    (place / "text.txt").write_bytes(text.encode())
    (place / "ids.txt").write_text(tformer("tokenize", "text.txt", "--tokenizer", "m")[1])
    decode = ("tokenize", "ids.txt", "--decode", "--tokenizer", "m")
    assert tformer(*decode)[1] == text
    on_terminal()
    code, out, _ = tformer(*decode)
    assert (code, moved(out)) == (0, []), out
    assert out == "To\ufffd]0;OWNED\ufffd\ufffd[2J\ufffd31m\ufffd\ufffd\nbe\n\ufffd"
