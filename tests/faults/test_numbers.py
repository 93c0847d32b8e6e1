"""A number that is not finite ends a training before it is saved, and no JSON that tformer writes has one."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import save_run, tiny_model
from tests.faults.tiny import TEXT, TRAIN, state
from tformer.cli import app
from tformer.commands.options import print_json
from tformer.errors import TformerError
from tformer.files import append_line, write_json
from tformer.text.tokenizer import Tokenizer
from tformer.training.fit import DivergedError
from tformer.training.optim import Optimizers

EVERY_STEP = ["--set", "train.checkpoint_every=1", "--set", "train.eval_every=0"]
VOCABULARY = 24  # of the text, its last row the end of text
UNTIED = ["--set", "model.tied=false", "--set", "train.keep=last"]


def train(*arguments: str) -> None:
    app([*TRAIN, *arguments], standalone_mode=False)


def spoil(monkeypatch, step: int, what) -> None:
    """Let `what(optimizers)` happen after the update of a step."""
    made, update = [], Optimizers.step

    def spoiled(optimizers, *args):
        update(optimizers, *args)
        made.append(optimizers)
        if len(made) == step:
            with torch.no_grad():
                what(optimizers)

    monkeypatch.setattr(Optimizers, "step", spoiled)


def unseen_row(optimizers) -> None:
    """What no loss shows: the row of a token that the text has not, where logits have rows of their own."""
    embedding = next(p for p in optimizers.names if len(p) == VOCABULARY)
    embedding[-1] = math.inf


def moment(optimizers) -> None:
    next(t for name, t in optimizers.state_tensors().items() if name.endswith("exp_avg_sq")).fill_(math.inf)


@pytest.mark.parametrize("what", [unseen_row, moment])
def test_a_step_that_is_spoilt_where_no_loss_shows_it_is_not_saved(what, here, monkeypatch):
    spoil(monkeypatch, 2, what)
    with pytest.raises(DivergedError, match=r"at step 2 .* is not saved"):
        train(*EVERY_STEP, *UNTIED, "--steps", "2")
    assert [p.name for p in (here / "run/checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.slow
@pytest.mark.parametrize("what", [unseen_row, moment])
def test_what_no_loss_shows_is_not_saved_over_what_is_whole(what, here, monkeypatch):
    train(*EVERY_STEP, *UNTIED, "--out", "whole")
    with monkeypatch.context() as patch, pytest.raises(DivergedError) as ended:
        spoil(patch, 4, what)
        train(*EVERY_STEP, *UNTIED)
    assert "diverged at step 4" in str(ended.value) and "is not saved" in str(ended.value)
    assert sorted(p.name for p in (here / "run/checkpoints").iterdir())[-1] == "step-00000003"
    train(*EVERY_STEP, *UNTIED, "--resume")
    assert state(here / "run") == state(here / "whole"), "the step is taken again"


def test_a_weight_that_no_loss_shows_stops_the_next_update(here, monkeypatch):
    never = ["--set", "train.checkpoint_every=0", "--set", "train.eval_every=0"]
    with monkeypatch.context() as patch, pytest.raises(DivergedError) as ended:
        spoil(patch, 2, unseen_row)
        train(*never, *UNTIED)
    assert "diverged at step 3 (embed.weight holds numbers that are not finite; the update was not made)" in (
        str(ended.value)
    )
    assert "lower rate (--lr" in str(ended.value)


@pytest.fixture
def huge(here) -> Path:
    """A run whose weights are finite, and nothing that they make."""
    tokenizer = Tokenizer.train("char", [TEXT], end_of_text=True)
    model = tiny_model(std=1e20, vocab_size=tokenizer.vocab_size, n_ctx=64, family="gpt2")
    (here / "passages.jsonl").write_text('{"text": "To be, or not to be"}\n')
    return save_run(here / "huge", model, tokenizer)


@pytest.mark.parametrize(
    "task",
    [
        ("eval", "lambada", "--data", "passages.jsonl"),
        ("eval", "attention", "--data", "text.txt"),
        ("eval", "generations", "--data", "text.txt", "-n", "1"),
        ("eval", "causality"),
        ("eval", "loss", "--data", "text.txt"),
        ("eval", "loss", "--data", "text.txt", "--tokens", "5"),
    ],
    ids=" ".join,
)
def test_an_evaluation_of_what_is_not_finite_is_an_error_and_is_not_kept(task, huge, capsys):
    with pytest.raises(TformerError, match=r"the (logits|attention weights) are not finite"):
        app([*task, "--run", str(huge), "--device", "cpu", "--json"], standalone_mode=False)
    assert capsys.readouterr().out == ""
    assert not (huge / "evals.jsonl").exists()


def test_training_does_not_begin_from_what_is_not_finite(huge):
    with pytest.raises(TformerError, match=r"the validation loss of the weights to begin from is (nan|inf)"):
        app([*TRAIN[:2], "--init-from", "huge", "--device", "cpu", "--steps", "2"], standalone_mode=False)


def test_json_for_machines_has_null_where_a_number_is_not_finite(tmp_path, capsys):
    values = {"a": math.nan, "b": [1.5, -math.inf, {"c": math.inf}], "d": (2, "NaN")}
    write_json(tmp_path / "whole", values)
    append_line(tmp_path / "line", values)
    print_json(values)
    texts = [(tmp_path / "whole").read_text(), (tmp_path / "line").read_text(), capsys.readouterr().out]
    for text in texts:
        found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert found == {"a": None, "b": [1.5, None, {"c": None}], "d": [2, "NaN"]}
