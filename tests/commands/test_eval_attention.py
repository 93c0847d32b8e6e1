"""`tformer eval attention` as its users meet it."""

import json

import numpy as np
import pytest

from tests.conftest import save_run, tiny_model
from tests.evals.test_reversal import TASK, trained
from tformer.cli import app
from tformer.errors import RequestError
from tformer.text.tokenizer import Tokenizer


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A reversal run and a text run."""
    monkeypatch.chdir(tmp_path)
    reversal = {"task": "reversal", "reversal_length": 4, "reversal_symbols": 8}
    letters = Tokenizer.train("char", ["abcdefghijklmnopqrstuvw"])
    save_run(tmp_path / "runs" / "reversal", trained(), TASK.tokenizer(), reversal)
    save_run(tmp_path / "runs" / "text", tiny_model(vocab_size=23), letters)
    return tmp_path


def attention(*args):
    """`tformer eval attention`, in this process."""
    app(["eval", "attention", "--device", "cpu", *args], standalone_mode=False)


def test_the_command_names_the_heads_that_carry_the_reversal(runs, capsys):
    attention("--run", "reversal", "-n", "50", "--json", "--out", "heads.svg")
    result = json.loads(capsys.readouterr().out)
    best = result["mirror"]["heads"][0]
    assert [best["layer"], best["head"]] in result["mirror"]["carriers"]
    weights = np.array(result["weights"])
    assert weights.shape == (2, 2, 7, 7) and weights.sum(-1) == pytest.approx(1, abs=1e-4)
    assert len(result["tokens"]) == len(result["ids"]) == 7
    assert (runs / "heads.svg").read_bytes().startswith(b"<?xml")
    attention("--run", "reversal", "-n", "50")
    assert f"carried by {best['layer']}.{best['head']}" in capsys.readouterr().out


def test_a_text_is_shown_from_its_beginning(runs, capsys):
    attention("--run", "text", "--prompt", "abcabc" * 10, "--json")
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert "".join(result["tokens"]) == ("abcabc" * 10)[:16]
    assert "first 16 tokens" in streams.err
    assert result["mirror"] is None
    (runs / "a.txt").write_text("abc")
    attention("--run", "text", "--data", "a.txt")
    assert "abc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--run", "text"), "--prompt TEXT"),
        (("--run", "text", "--prompt", ""), "empty"),
        (("--run", "text", "--prompt", "a", "--data", "b"), "leave one out"),
        (("--run", "reversal", "--out", "heads.jpg"), ".svg or .png"),
        (("--run", "reversal", "--out", "there.svg"), "there.svg exists"),
    ],
)
def test_what_cannot_be_shown_is_refused(runs, args, named):
    (runs / "there.svg").write_text("")
    with pytest.raises(RequestError, match=named):
        attention(*args)
