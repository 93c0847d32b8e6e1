"""What a person is told of a training as it begins."""

import io
import re
import sys
from random import Random

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tformer.cli import app
from tformer.run import kept_ids
from tformer.show import progress as shown
from tformer.text import data

BLANKS = "the cat sat on the mat and looked at the rat\n" * 60
NONE = "".join(Random(1).choices("ACGT", k=6000))


@pytest.mark.parametrize(("text", "suits"), [(BLANKS, True), (NONE, False)])
def test_a_text_that_words_do_not_suit_is_said_and_bpe_takes_it(tmp_path, monkeypatch, text, suits):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tformer"])
    (tmp_path / "a.txt").write_text(text)
    small = [
        "--steps",
        "1",
        "--set",
        "model.n_layers=1",
        "--set",
        "model.n_ctx=16",
        "--set",
        "train.compile=off",
    ]
    words = CliRunner().invoke(app, ["train", "a.txt", "--tokenizer", "word", *small])
    assert words.exit_code == 0
    assert ("--tokenizer bpe suits this text better" in " ".join(words.stderr.split())) is not suits
    other = CliRunner().invoke(app, ["train", "a.txt", "--tokenizer", "bpe", "--out", "b", *small])
    assert other.exit_code == 0 and "suits" not in other.stderr


# ---------------------------------------------------------------------------- a long text

SMALL = ["--tokenizer", "char", "--steps", "1", "--set", "model.n_layers=1", "--set", "model.n_ctx=16"]


@pytest.mark.parametrize("terminal", [False, True], ids=["in a pipe", "on a terminal"])
@pytest.mark.parametrize("documents", ["none", "line"])
def test_how_far_a_long_text_is_tokenized_is_said(tmp_path, monkeypatch, documents, terminal):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SLICE", 500)
    monkeypatch.setattr(kept_ids, "TOLD_EVERY", 500)
    monkeypatch.setattr(shown, "LINE_EVERY", 0.0)
    screen = io.StringIO()
    if terminal:
        console = Console(file=screen, force_terminal=True, width=80)
        monkeypatch.setattr(shown, "err", lambda: console)
    (tmp_path / "a.txt").write_text(BLANKS)
    for line in (
        ["train", "a.txt", *SMALL, "--device", "cpu", "--documents", documents, "--out", "run"],
        ["train", "a.txt", *SMALL, "--device", "cpu", "--documents", documents, "--estimate"],
        ["eval", "loss", "--run", "run", "--data", "a.txt", "--device", "cpu"],
    ):
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
        said = screen.getvalue() if terminal else done.stderr
        shares = [int(share) for share in re.findall(r"tokenizing[^%\n]*?(\d+)\s?%", said)]
        if terminal:
            assert "tokenizing" in said
            screen.truncate(0)
        else:
            assert shares and min(shares) < 60 and max(shares) > 80 and "  left " in said, said
