"""Messages that count say "1 file" and "2 files"."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tformer as package
from tformer.cli import app
from tformer.counted import counted

PLURAL_BY_HAND = re.compile(r"""['"]e?s['"] \*|['"]e?s['"] if """)


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 boxes"), (1, "1 box"), (2, "2 boxes"), (1_000_001, "1,000,001 boxes")]
)
def test_only_one_is_singular(n, said):
    assert counted(n, "box", "boxes") == said


def test_what_rounds_to_one_is_said_as_one():
    assert counted(1.04, "pass", "passes", ".2g") == "1 pass"
    assert counted(0.5, "minute", spec="g") == "0.5 minutes"


def test_no_message_makes_a_plural_of_a_count_by_itself():
    root = Path(package.__file__).parent
    others = {"run/token_folders.py", "show/causality.py"}  # a verb; a noun before its numbers
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if PLURAL_BY_HAND.search(path.read_text(encoding="utf-8"))
    }
    assert found == others


def test_a_text_of_one_character_is_one_byte_in_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a")
    for line in ("--train a.txt --tokenizer char --out c.json", "a.txt --tokenizer c.json --out ids/"):
        done = CliRunner().invoke(app, ["tokenize", *line.split()])
        assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1].endswith("ids: 2 ids of 1 byte, 1 file")
