"""Systems that write otherwise than in UTF-8, and names and texts of the command line that are no UTF-8."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.command import ENVIRONMENT
from tests.command import run as tformer


@pytest.mark.parametrize(
    ("encoding", "args", "has"),
    [
        ("cp1252", ["tokenize", "snow.txt", "--tokenizer", "t.json", "--show"], "☃"),
        ("ascii", ["tokenize", "snow.txt", "--tokenizer", "t.json", "--show"], "☃"),
        ("cp1252", ["tokenize", "snow.txt", "--tokenizer", "t.json", "--json"], "☃"),
        ("ascii", ["eval", "loss", "--run", "hamlet"], "█"),
        ("cp1252", ["answer", "3", "--prose"], "·"),
    ],
)
def test_a_pipe_gets_utf_8_whatever_the_systems_habit(place, encoding, args, has):
    (place / "snow.txt").write_text("☃ to be")
    tformer(
        "tokenize", "--train", "snow.txt", "--tokenizer", "char", "--out", "t.json", "--overwrite", cwd=place
    )
    done = tformer(*args, cwd=place, env={"PYTHONIOENCODING": encoding}, binary=True, check=0, fresh=True)
    assert has in done.stdout.decode("utf-8")


def test_a_terminal_without_a_character_gets_a_question_mark(place):
    import pty

    (place / "snow.txt").write_text("☃ to be")
    tformer(
        "tokenize", "--train", "snow.txt", "--tokenizer", "char", "--out", "t.json", "--overwrite", cwd=place
    )
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "tformer", "tokenize", "snow.txt", "--tokenizer", "t.json", "--show"],
        cwd=place,
        stdout=follower,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"},
        timeout=60,
    )
    os.close(follower)
    shown = os.read(leader, 10_000)
    os.close(leader)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"?"' in shown


def test_a_file_name_that_is_not_utf_8_ends_no_command(place):
    name = os.fsdecode(b"caf\xe9.json")
    train = ["tokenize", "--train", "hamlet.txt", "--tokenizer", "char", "--out", name, "--json"]
    done = tformer(*train, cwd=place, check=0, fresh=True)
    assert json.loads(done.stdout)["tokenizer"] == name


OF_TEXT = (
    ["sample", "TEXT", "--run", "hamlet", "--max-tokens", "2"],
    ["sample", "To", "--stop", "TEXT", "--run", "hamlet", "--max-tokens", "2", "--greedy"],
    ["eval", "attention", "--prompt", "TEXT", "--run", "hamlet"],
    ["eval", "generations", "--prompt", "TEXT", "--run", "hamlet", "-n", "1", "--max-tokens", "2"],
)


@pytest.mark.parametrize("args", OF_TEXT, ids=" ".join)
def test_a_text_of_the_command_line_that_is_none_is_named(place, args):
    args = [word.replace("TEXT", os.fsdecode(b"To \xff be")) for word in args]
    name = next((word for word in args if word in ("--stop", "--prompt")), "PROMPT")
    done = tformer(*args, cwd=place, check=2)
    assert done.stderr == f"tformer: error: {name} is not UTF-8 (expected text)\n"


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="arguments are text there")
@pytest.mark.parametrize("args", OF_TEXT[:3], ids=" ".join)
def test_a_text_of_the_command_line_is_utf_8_whatever_the_systems_habit(place, args):
    fresh = args == OF_TEXT[0]
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    usual, given = (
        [word.replace("TEXT", text) for word in args]
        for text in ("¿", "¿" if fresh else "¿".encode().decode("ascii", "surrogateescape"))
    )
    usual = tformer(*usual, cwd=place, check=0 if "--stop" in args else 2)
    there = tformer(*given, cwd=place, env=ascii_only, check=usual.returncode, fresh=fresh)
    assert there.stdout == usual.stdout
    assert "U+00BF" in there.stderr or "--stop" in args, "the character that the vocabulary lacks"


def test_a_run_whose_name_is_not_utf_8_is_told_what_to_do(place):
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree(place / "runs/hamlet", place / name)
    done = tformer("sample", "To", "--run", name, cwd=place, check=2)
    assert "cannot read caf\\udce9/model.safetensors" in done.stderr
    assert done.stderr.endswith("; rename what is not UTF-8\n")
