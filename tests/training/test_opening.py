"""What a person is told of a training as it begins."""

import sys
from random import Random

import pytest
from typer.testing import CliRunner

from tformer.cli import app

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
