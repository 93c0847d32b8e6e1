"""`tformer eval lambada` as its users meet it."""

import json
import math
import re

import pytest

from tests.passages import N_CTX, TEXTS, by_the_formula, write_passages
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.lambada import encode_passages, lambada
from tformer.run.huggingface import load_model
from tformer.text.tokenizer import Tokenizer


def tformer(*arguments):
    """The command, in this process."""
    app([*arguments, "--device", "cpu"], standalone_mode=False)


def result_of(capsys, *arguments):
    tformer("eval", "lambada", "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def test_a_directory_of_transformers_is_judged_by_the_command(theirs, capsys, monkeypatch, tmp_path):
    loss, right, *_ = by_the_formula(theirs, TEXTS)
    data = str(theirs / "passages.jsonl")
    result = result_of(capsys, "--run", str(theirs), "--data", data)
    assert (result["run"], result["n"], result["accuracy"]) == (str(theirs), 200, right.mean())
    assert result["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-3)
    few = result_of(capsys, "--run", str(theirs), "--data", data, "--limit", "7")
    assert few["n"] == 7 and few["next_word_loss"] == pytest.approx(loss[:7].mean(), abs=1e-5)
    monkeypatch.setenv("TFORMER_CACHE", str(tmp_path))  # the test set, were it so small
    write_passages(tmp_path / "lambada_test.jsonl", TEXTS[:9])
    assert result_of(capsys, "--run", str(theirs))["n"] == 9


def test_the_table_names_what_is_the_word_and_what_is_its_last_token(theirs, capsys, monkeypatch):
    monkeypatch.chdir(theirs)
    tformer("eval", "lambada", "--run", ".", "--data", "passages.jsonl")
    shown = " ".join(capsys.readouterr().out.split())
    result = lambada(load_model(theirs), encode_passages(TEXTS, Tokenizer.load(theirs), N_CTX))
    names = {"whole last word": result.accuracy, "last token only": result.last_token_accuracy}
    for name, p in names.items():
        assert re.search(rf"{name} {100 * p:.2f} % \d\.\d\d % \d", shown)
    assert f"200 of passages.jsonl, {result.cut} cut to their end" in shown


def test_passages_without_a_blank_are_counted_and_said(theirs, capsys, tmp_path):
    write_passages(tmp_path / "p.jsonl", [*TEXTS[:5], "moon", "月がきれい"])
    judged = ("--run", str(theirs), "--data", str(tmp_path / "p.jsonl"))
    result = result_of(capsys, *judged)
    assert (result["n"], result["skipped"]) == (5, 2)
    tformer("eval", "lambada", *judged)
    said = capsys.readouterr()
    assert "passed over 2 of 7 passages: no blank, after which a last word would stand" in said.err
    assert "2 passed over" in said.out


@pytest.mark.parametrize("arguments", [("loss", "--limit", "3"), ("lambada", "--limit", "0")])
def test_a_limit_that_means_nothing_is_refused(theirs, arguments):
    with pytest.raises(RequestError, match="--limit"):
        tformer("eval", *arguments, "--run", str(theirs))
