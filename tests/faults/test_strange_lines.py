"""Lines of metrics.jsonl and evals.jsonl that somebody else wrote, or half of one: they end nothing."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny import TRAIN, place
from tformer.cli import app
from tformer.config import Config
from tformer.run.card import model_card
from tformer.run.record import Evaluation, Record, Result
from tformer.show import training as show
from tformer.show.run_page import run_page

pytestmark = pytest.mark.figured

WHOLE = {"step": 1, "tokens": 16, "seconds": 0.1, "loss": 3.0, "lr": 0.1, "grad_norm": 1.0}
STRANGE = {
    "no step": {k: v for k, v in WHOLE.items() if k != "step"},
    "a step that is none": WHOLE | {"step": "1"},
    "no loss": {k: v for k, v in WHOLE.items() if k != "loss"},
    "no rate": {k: v for k, v in WHOLE.items() if k != "lr"},
    "a loss of null": WHOLE | {"loss": None},
    "a loss of words": WHOLE | {"loss": "low"},
    "a rate of true": WHOLE | {"lr": True},
    "a loss that is not finite": WHOLE | {"loss": float("nan")},
    "an evaluation of words": WHOLE | {"val_loss": "low", "bits_per_byte": []},
    "a last word of words": WHOLE | {"next_word_loss": {}},
    "a sample that is none": WHOLE | {"sample": 3},
    "positions that are none": WHOLE | {"by_position": [1, 2, 3]},
    "positions of words": WHOLE | {"by_position": [["a", "b"], ["c", "d"]]},
    "an evaluation without its bits": WHOLE | {"val_loss": 0.1},
    "deep": "[" * 100_000,
    "only a step": {"step": 2},
}


@pytest.fixture(scope="module")
def place_of_a_run(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = place(tmp_path_factory.mktemp("strange") / "here")
        patch.chdir(folder)
        app(TRAIN, standalone_mode=False)
    return folder


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_line_ends_no_training_and_no_picture(name, place_of_a_run, monkeypatch, capsys):
    monkeypatch.chdir(place_of_a_run)
    path = Path("run/metrics.jsonl")
    line = STRANGE[name]
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n" + path.read_text())
    monkeypatch.setattr(show, "FIRST_PICTURE", 0.0)
    app([*TRAIN, "--resume", "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert "warning" not in err
    assert json.loads(out)["val_loss"] > 1, "of a line that is one"
    app(["eval", "loss", "--run", "run", "--device", "cpu"], standalone_mode=False)
    assert "warning" not in capsys.readouterr().err


# ---------------------------------------------------------------------------- evals.jsonl

OTHER = (None, True, -1, 10**400, 1e999, "x", "", [], {}, [[1]], [None, None])


def altered(value: Any) -> Iterator[Any]:
    """The same with another value at one place, for every place in it."""
    yield from OTHER
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        for other in altered(inner):
            whole = deepcopy(value)
            whole[key] = other
            yield whole
    for key, _ in items if isinstance(value, dict) else ():
        yield {k: v for k, v in value.items() if k != key}


RESULTS = {
    "reversal": {
        "positions": [
            {"position": 1, "half": "first", "expected": 0.5, "accuracy": 0.5, "n": 9},
            {"position": 2, "half": "second", "expected": 1.0, "accuracy": 1.0, "n": 9},
        ],
        "chance": 0.5,
    },
    "loss": {
        "loss": 1.0,
        "by_position": [3.0, 2.0, 1.0],
        "perplexity": None,
        "parts": [{"data": "a.txt", "tokens": 3, "bytes": 9, "loss": 1.0}],
    },
    "lambada": {"n": 3, "accuracy": 0.5, "perplexity": 4.0},
    "causality": {"passed": True, "max_leak": 0.0},
}


@pytest.mark.parametrize("task", RESULTS)
def test_a_strange_result_ends_no_page(task):
    for result in altered(RESULTS[task]):
        if isinstance(result, dict):
            assert task in run_page("run", Record(), [], [Evaluation(task=task, result=result)])


def test_strange_samples_end_no_page(place_of_a_run, monkeypatch, capsys):
    monkeypatch.chdir(place_of_a_run)
    args = ["eval", "generations", "--run", "run", "--device", "cpu", "-n", "1", "--max-tokens", "9"]
    app([*args, "--prompt", "To", "--temperature", "1", "--json"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert "T 1" in run_page("run", Record(), [], [Evaluation(task="generations", result=result)])
    for other in altered(result):
        if isinstance(other, dict):
            assert "generations" in run_page(
                "run", Record(), [], [Evaluation(task="generations", result=other)]
            )


@pytest.mark.parametrize("other", [*OTHER, ["a", "b"], [1, None], [0.5, 1.5]], ids=repr)
def test_a_strange_end_of_a_run_ends_no_card(other):
    said = {"val_loss": 2.0, "expected": other, "expected_of": other}
    for of in (other, "bits_per_byte"):
        end = Result.model_validate(said | {"expected_of": of})
        assert "## Loss" in model_card("run", Config(), Record(result=end))
    for name in ("val_loss", "bits_per_byte", "seconds", "passes", "val_loss_before"):
        end = Result.model_validate({"val_loss": 2.0, name: 1e300})
        assert "## Loss" in model_card("run", Config(), Record(result=end))
