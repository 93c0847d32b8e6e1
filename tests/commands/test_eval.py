"""`tformer eval` as one command: where its task stands, which it is if left out, what each task takes."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.conftest import save_run, tiny_model
from tformer.cli import app
from tformer.errors import RequestError
from tformer.run.record import DataFacts, Record, read_evaluations
from tformer.text.data import Reversal
from tformer.text.tokenizer import Tokenizer

TASK = Reversal(3, 4, seed=0)
TEXT = "To be, or not to be, that is the question:\n" * 12


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs on text, `text` and `loss`, and the newest one, on reversal; none has learned anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    (tmp_path / "a.txt").write_text(TEXT)
    text = {"tokenizer": "char", "val_fraction": 0.5}
    reversal = {"task": "reversal", "reversal_length": 3, "reversal_symbols": 4}
    characters = Tokenizer.train("char", [TEXT])
    for name, tokenizer, data in (
        ("text", characters, text),
        ("loss", characters, text),
        ("reversal", TASK.tokenizer(), reversal),
    ):
        model = tiny_model(vocab_size=tokenizer.vocab_size, std=0.1)
        source = "reversal" if "task" in data else str(tmp_path / "a.txt")
        sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
        record = Record(data=DataFacts(source=[source], sha256=sha256))
        save_run(tmp_path / "runs" / name, model, tokenizer, data, record)
    return tmp_path


def evaluate(*arguments):
    """`tformer eval`, in this process."""
    return app(["eval", *arguments], standalone_mode=False)


def results(capsys, *arguments):
    """What `tformer eval --json` prints."""
    evaluate("--json", *arguments)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def untimed(results):
    return [{name: value for name, value in one.items() if name != "tokens_per_second"} for one in results]


def kept(name):
    """The tasks that a run was judged by."""
    return [line.task for line in read_evaluations(Path("runs") / name)]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("loss", ["--run", "text"]),
        ("loss", ["--run", "text", "--data", "a.txt", "--tokens", "5"]),
        ("loss", ["--run", "text", "--run", "loss", "--data", "a.txt"]),
        ("causality", ["--run=reversal", "--positions", "2"]),
        ("attention", ["--run", "reversal", "-n", "9", "--seed", "2"]),
        ("attention", ["--run", "loss", "--prompt", "attention"]),
        ("generations", ["--run", "loss", "-n2", "--max-tokens", "9", "--temperature", "1"]),
    ],
)
def test_options_may_stand_before_the_task(runs, capsys, task, options):
    after = results(capsys, task, *options)
    assert untimed(results(capsys, *options, task)) == untimed(after)
    assert untimed(results(capsys, *options[:-2], task, *options[-2:])) == untimed(after)


def test_without_a_task_a_run_on_reversal_is_judged_by_it_and_another_by_its_loss(runs, capsys):
    (newest,) = results(capsys, "-n", "20", "--seed", "3")
    assert newest["run"] == "runs/reversal" and newest["positions"][0]["n"] == 20
    (named,) = results(capsys, "--run", "text")
    assert named["run"] == "runs/text" and named["loss"] > 0
    (of_that_name,) = results(capsys, "--run", "loss")
    assert of_that_name["run"] == "runs/loss" and of_that_name["loss"] > 0
    assert (kept("reversal"), kept("text"), kept("loss")) == (["reversal"], ["loss"], ["loss"])


def test_which_run_is_taken_is_said_once(runs, capsys):
    evaluate("--json", "-n", "20")
    assert capsys.readouterr().err.splitlines() == ["using runs/reversal"]
    evaluate("--json", "loss")
    assert capsys.readouterr().err.splitlines() == ["using runs/loss"]


@pytest.mark.parametrize(
    "options",
    [["--data", "a.txt"], ["--tokens", "5"], ["--out", "a.html"], ["--run", "loss", "--run", "text"]],
)
def test_what_only_the_loss_can_mean_means_the_loss(runs, capsys, options):
    found = results(capsys, *options)
    assert {one["run"] for one in found} <= {"runs/loss", "runs/text"} and all("loss" in one for one in found)


def test_an_unlearned_reversal_is_exit_1(runs, capsys):
    assert [evaluate(*options) for options in (["-n", "50"], ["reversal", "-n", "50"])] == [1, 1]
    assert capsys.readouterr().out.count("FAILED") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["los"],
            r"no evaluation 'los' \(expected loss, reversal, lambada, causality, attention, generations\)",
        ),
        (["--json", "los"], "no evaluation 'los'"),
        (
            ["loss", "--limit", "2"],
            r"--limit with eval loss \(it is for lambada\); leave it out, or name one of",
        ),
        (["--limit", "2", "loss"], r"--limit with eval loss \(it is for lambada\)"),
        (["--run", "text", "--limit", "2"], r"--limit with eval loss \(it is for lambada\)"),
        (["--run", "text", "-n", "2"], r"-n with eval loss \(it is for reversal, attention, generations\)"),
        (["--positions", "3"], r"--positions with eval reversal \(it is for causality\)"),
        (
            ["attention", "--precision", "fp32"],
            "--precision with eval attention .it is for loss, reversal, lam",
        ),
        (["loss", "--precision", "fp16"], r"--precision fp16 \(expected fp32 or bf16\)"),
        (["reversal", "--run", "text"], "is not a run on reversal; train one with: tformer train reversal"),
        (
            ["causality", "--run", "text", "--run", "loss"],
            r"--run given 2 times \(expected one for causality; lo",
        ),
        (["generations", "-n", "2000"], r"-n 2000 \(expected 1 to 1024\)"),
        (["reversal", "-n", "0"], r"-n 0 \(expected 1 to 1e\+06\)"),
        (["--seed", "-1"], r"--seed -1 \(expected 0 or more\)"),
        (["--out", "x.svg"], r"--out x\.svg \(for loss a name ending in \.html is expected\)"),
        (["attention", "--out", "x.html"], r"for attention a name ending in \.svg or \.png is expected"),
    ],
)
def test_a_wrong_request_says_what_was_expected(runs, arguments, said):
    with pytest.raises(RequestError, match=said):
        evaluate(*arguments)
    assert not list(runs.glob("runs/*/evals.jsonl"))
