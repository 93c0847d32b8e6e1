"""`train --val-data`: validated on a text of one's own, trained on all of DATA, and judged by it again."""

import json
from pathlib import Path

import numpy as np
import pytest

from tformer.cli import app
from tformer.errors import RequestError
from tformer.run.record import read_record

TEXT = "To be, or not to be, that is the question:\n" * 12
OTHER = "that is to be the question, or not to be: To be\n" * 5
TINY = ["--set=model.n_layers=1", "--set=model.d_model=8", "--set=model.n_heads=1", "--set=model.n_ctx=8"]
TINY += ["--set=train.eval_every=2", "--batch-size=2", "--precision=fp32"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two texts, and two files of one in a folder."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT)
    Path("b.txt").write_text(OTHER)
    Path("f").mkdir()
    Path("f/1.txt").write_text(OTHER)
    Path("f/2.txt").write_text(OTHER)
    return tmp_path


def tformer(*arguments):
    app([*map(str, arguments), "--device", "cpu"], standalone_mode=False)


def train(*arguments, data="a.txt", tokenizer="char"):
    tformer("train", data, "--tokenizer", tokenizer, "--out", "run", *TINY, *arguments)


def loss(capsys, *arguments):
    capsys.readouterr()
    tformer("eval", "loss", "--run", "run", "--json", *arguments)
    return json.loads(capsys.readouterr().out)["loss"]


@pytest.mark.parametrize(
    "own", [["b.txt"], ["b.txt", "f/1.txt"], ["f"]], ids=["a file", "several", "a folder"]
)
def test_all_of_the_text_is_trained_on_and_the_other_is_judged_by(place, capsys, own):
    given = [word for name in own for word in ("--val-data", name)]
    train("--steps", 4, "--set", "data.end_of_text=false", *given)
    facts = read_record(Path("run")).data
    n = len(OTHER) * (1 if own == ["b.txt"] else 2)
    assert (facts.train_tokens, facts.val_tokens) == (len(TEXT), n)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = min(line["val_loss"] for line in lines if "val_loss" in line)
    again = loss(capsys)
    assert again == pytest.approx(best, rel=1e-5), "eval loss reads it again"
    by_hand = [word for name in own for word in ("--data", name)]
    assert again == pytest.approx(loss(capsys, *by_hand), rel=1e-6)


def test_documents_of_the_validation_text_end_as_they_do_in_training(place, capsys):
    train("--steps", 2, "--val-data", "f", data="f")
    facts = read_record(Path("run")).data
    assert facts.train_tokens == facts.val_tokens == 2 * len(OTHER) + 3, "before, between and after two files"
    loss(capsys)


def test_a_token_file_may_be_trained_on_and_validated_on(place, capsys):
    tformer_tokenize = ("tokenize", "--train", "a.txt", "--tokenizer", "char", "--out", "t.json")
    app([*tformer_tokenize], standalone_mode=False)
    for name in "ab":
        app(
            ["tokenize", f"{name}.txt", "--tokenizer", "t.json", "--out", f"{name}.npy"],
            standalone_mode=False,
        )
    train("--steps", 2, "--val-data", "b.npy", data="a.npy", tokenizer="t.json")
    facts = read_record(Path("run")).data
    assert (facts.train_tokens, facts.val_tokens) == (len(np.load("a.npy")), len(np.load("b.npy")))
    assert loss(capsys) == pytest.approx(loss(capsys, "--data", "b.npy"), rel=1e-6)


def test_a_run_goes_on_with_its_validation_text_or_not_at_all(place, capsys):
    train("--steps", 2, "--val-data", "b.txt")
    Path("b.txt").rename("moved.txt")
    with pytest.raises(RequestError, match=r"no data at .*b\.txt .*; .*--val-data FILE"):
        train("--steps", 4, "--resume")
    Path("b.txt").write_text(TEXT)
    with pytest.raises(RequestError, match="has changed"):
        train("--steps", 4, "--resume")
    train("--steps", 4, "--resume", "--val-data", "moved.txt")
    Path("b.txt").unlink()
    loss(capsys)
    train("--steps", 6, "--resume")
    facts = read_record(Path("run")).data
    assert facts.val_source == [str(place / "moved.txt")] and facts.characters == len(TEXT)


def test_a_run_on_the_end_of_its_text_takes_no_other_when_it_goes_on(place):
    train("--steps", 2)
    with pytest.raises(RequestError, match="validated on a part of its text"):
        train("--steps", 4, "--resume", "--val-data", "b.txt")


def test_runs_with_different_validation_texts_are_not_compared_without_one(place):
    train("--steps", 2)
    tformer(
        "train", "a.txt", "--tokenizer", "char", "--out", "own", *TINY, "--steps", 2, "--val-data", "b.txt"
    )
    with pytest.raises(RequestError, match=r"different validation texts .*a part of its text.*; give --data"):
        tformer("eval", "loss", "--run", "run", "--run", "own")
    tformer("eval", "loss", "--run", "run", "--run", "own", "--data", "b.txt")


def test_samples_are_compared_with_both_texts(place, capsys):
    train("--steps", 2, "--val-data", "b.txt")
    tformer("eval", "generations", "--run", "run", "-n", 1, "--max-tokens", 9, "--json")


@pytest.mark.parametrize("name,why", [("no.txt", "no data at no.txt"), ("-", "--val-data -")])
def test_what_cannot_be_validated_on_is_refused_before_a_run_is_made(place, name, why):
    with pytest.raises(RequestError, match=why):
        train("--val-data", name)
    Path("c.txt").write_text("€" + OTHER)
    with pytest.raises(RequestError, match=r"at c\.txt, line 1, column 1 is not in the vocabulary"):
        train("--val-data", "c.txt")
    with pytest.raises(RequestError, match="is on reversal"):
        tformer("train", "reversal", "--val-data", "b.txt")
    assert not Path("run").exists()
