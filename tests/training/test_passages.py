"""`train --eval-data`: last words scored as a run trains, and again when it goes on."""

import math
import re

import pytest

from tests.commands.test_eval_lambada import result_of, tformer
from tests.passages import TEXTS, write_passages
from tformer.errors import RequestError
from tformer.run.record import read_lines, read_record

TINY = [
    "--set",
    "model.n_layers=1",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.d_model=16",
    "--set",
    "model.n_ctx=24",
    "--set",
    "train.eval_every=5",
    "--batch-size",
    "4",
    "--precision",
    "fp32",
    "--set",
    "train.keep=last",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text and passages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    write_passages(tmp_path / "p.jsonl", TEXTS[:30])
    return tmp_path


def train(*arguments, data="a.txt"):
    tformer("train", data, "--tokenizer", "char", "--out", "run", *TINY, *arguments)


def logged(folder):
    return {
        m["step"]: m["next_word_loss"] for m in read_lines(folder / "metrics.jsonl") if "next_word_loss" in m
    }


def test_a_run_logs_the_loss_of_last_words_and_goes_on_with_it(place, capsys):
    train("--steps", "10", "--eval-data", "p.jsonl")
    first = logged(place / "run")
    assert list(first) == [5, 10]
    capsys.readouterr()
    judged = result_of(capsys, "--run", "run", "--data", "p.jsonl")
    assert first[10] == pytest.approx(judged["next_word_loss"], rel=1e-6)
    assert judged["perplexity"] == pytest.approx(math.exp(first[10]), rel=1e-6)
    assert [line["task"] for line in read_lines(place / "run" / "evals.jsonl")][-1] == "lambada"
    train("--steps", "20", "--resume")
    again = logged(place / "run")
    assert list(again) == [5, 10, 15, 20] and again | first == again
    kept = read_record(place / "run").eval_data
    assert kept.source == str(place / "p.jsonl") and kept.passages == 30


def test_a_run_goes_on_with_the_passages_that_it_has(place):
    train("--steps", "5", "--eval-data", "p.jsonl")
    (place / "p.jsonl").rename(place / "moved.jsonl")
    with pytest.raises(RequestError, match=r"no passages at .*p\.jsonl .*--eval-data FILE"):
        train("--steps", "10", "--resume")
    write_passages(place / "p.jsonl", TEXTS[30:50])
    with pytest.raises(RequestError, match="has changed"):
        train("--steps", "10", "--resume")
    train("--steps", "10", "--resume", "--eval-data", "moved.jsonl")
    assert list(logged(place / "run")) == [5, 10]


def test_a_run_without_passages_may_take_some_when_it_goes_on(place):
    train("--steps", "5")
    train("--steps", "10", "--resume", "--eval-data", "p.jsonl")
    assert list(logged(place / "run")) == [10]


def test_a_run_that_keeps_no_text_for_validation_is_judged_by_passages(place):
    train("--steps", "10", "--eval-data", "p.jsonl", "--set", "data.val_fraction=0")
    assert list(logged(place / "run")) == [5, 10]


@pytest.mark.parametrize("name", ["no.jsonl", "a.txt"])
def test_passages_that_cannot_be_used_are_refused_before_a_run_is_made(place, name):
    with pytest.raises(RequestError, match=re.escape(name)):
        train("--steps", "5", "--eval-data", name)
    with pytest.raises(RequestError, match="is on reversal"):
        tformer("train", "reversal", "--out", "run", "--eval-data", "p.jsonl")
    assert not (place / "run").exists()
