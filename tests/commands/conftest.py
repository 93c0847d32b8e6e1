"""The text and the three runs on which the command line is tried as its users meet it."""

import json
import shlex

import pytest

from tests.command import run as tformer

TINY = shlex.split(
    "--set model.n_layers=1 --set model.n_heads=2 --set model.d_model=16 --set model.n_ctx=16 "
    "--set train.eval_every=10 --batch-size 4"
)
SHORT = shlex.split("--set data.reversal_length=3 --set data.reversal_symbols=4 --set model.n_ctx=5")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and three tiny runs: char, word and reversal."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "hamlet.txt").write_text(TEXT)

    def train(data: str, *words: str) -> str:
        return tformer("train", data, *words, cwd=folder, check=0).stdout

    endless = ("--set", "data.end_of_text=false")  # what is sampled goes on
    train("hamlet.txt", "--steps", "20", *TINY, *endless, "--tokenizer", "char")
    train("hamlet.txt", "--steps", "5", *TINY, "--tokenizer", "word", "--out", "runs/word")
    done = train("reversal", "--steps", "80", "--lr", "0.01", *SHORT, "--json")
    assert json.loads(done)["passed"] is True
    return folder
