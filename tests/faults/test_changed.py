"""A run goes on with another rate or more steps, and says whose bits it has then; another model, tokenizer or
text is refused, with all that differs in one line.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.command import run
from tests.faults.tiny import TEXT, TRAIN, edited, place, state, trained
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError, TformerError
from tformer.model import Transformer
from tformer.training.optim import Optimizers, lr_at
from tformer.training.session import Session

MORE = [*TRAIN, "--resume", "--steps", "8"]
CONSTANT = ["--set", "train.decay_fraction=0", "--set", "train.warmup_steps=0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("changed") / "here", TRAIN)


def said(capsys, *arguments: str) -> str:
    """What a training says, as one line."""
    capsys.readouterr()
    app([*arguments], standalone_mode=False)
    return " ".join(capsys.readouterr().err.split())


def recorded() -> dict:
    return yaml.safe_load(Path("run/tformer.yaml").read_text())


def rates(run: str) -> dict[int, float]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["lr"] for line in lines}


# ---------------------------------------------------------------------------- refused


def other_tokenizer() -> None:
    path = Path("run/tokenizer.json")
    path.write_text(path.read_text().replace('"T"', '"\u00a7"'))


def test_every_difference_of_a_run_that_is_refused_is_listed(here):
    before = Path("run/tformer.yaml").read_bytes()
    other_tokenizer()
    Path("text.txt").write_text("Another text.\n" * 80)
    with pytest.raises(RequestError) as refused:
        app([*MORE, "--seed", "5", "--set", "model.d_model=16", "--batch-size", "4"], standalone_mode=False)
    for part in (
        "train.batch_size is 2 in this run (the command line says 4; ",
        "; train.seed is 0 in this run, the command line says 5; ",
        "; model.d_model is 8 in this run, the command line says 16; ",
        "; tokenizer.json has sha256 ",
        "; the text has sha256 ",
        "leave them out and put the rest back to continue",
    ):
        assert part in str(refused.value)
    assert Path("run/tformer.yaml").read_bytes() == before


def test_of_a_text_that_is_what_it_was_nothing_is_said(here):
    with pytest.raises(RequestError) as refused:
        app([*MORE, "--seed", "5"], standalone_mode=False)
    assert "sha256" not in str(refused.value) and "leave it out to continue" in str(refused.value)


def test_another_tokenizer_and_another_text_are_told_together(here):
    other_tokenizer()
    with pytest.raises(RequestError) as refused:
        app(MORE, standalone_mode=False)
    assert "the text" not in str(refused.value)
    Path("text.txt").write_text("Another text.\n" * 80)
    with pytest.raises(RequestError) as refused:
        app(MORE, standalone_mode=False)
    assert "is not the one that this run was trained with (sha256" in str(refused.value)
    assert "; the text has sha256" in str(refused.value)


def test_a_text_from_a_pipe_is_compared_as_well(tmp_path):
    folder = place(tmp_path / "here")
    train = [*TRAIN[:1], "-", *TRAIN[2:]]
    run(*train, cwd=folder, stdin=TEXT, check=0)
    for text, differs in ((TEXT, False), ("Another text.\n" * 80, True)):
        done = run(*train, "--resume", "--seed", "5", cwd=folder, stdin=text, check=2)
        assert "train.seed is 0 in this run" in done.stderr
        assert ("; the text has sha256" in done.stderr) == differs, done.stderr


# ---------------------------------------------------------------------------- may change


def test_another_rate_and_more_steps_are_said_obeyed_and_recorded(here, capsys):
    before = rates("run")
    told = said(capsys, *MORE, "--lr", "0.0002")
    assert (
        "train.steps 6, now 8; train.lr 0.005, now 0.0002: rates so far differ from those "
        "of a run that had it from the start; not bit-identical to it"
    ) in told
    now = Config.model_validate({"train": recorded()["train"]}).train
    assert (now.steps, now.lr) == (8, 0.0002)
    assert rates("run") == before | {step: lr_at(step - 1, now) for step in (7, 8)}
    assert recorded()["record"]["changed"] == [{"after_step": 6, "was": {"steps": 6, "lr": 0.005}}]
    assert "train.lr" not in said(capsys, *TRAIN, "--resume", "--steps", "8"), "it is as it was before"
    assert len(recorded()["record"]["changed"]) == 1


def test_where_the_rates_are_the_same_the_bits_are_those_of_a_run_in_one_piece(here, capsys):
    """A rate that does not fall is the same whatever the steps."""
    new = [*TRAIN, *CONSTANT, "--out"]
    said(capsys, *new, "whole", "--steps", "8")
    said(capsys, *new, "parts")
    told = said(capsys, *new, "parts", "--resume", "--steps", "8")
    wanted = "train.steps 6, now 8: rates so far match a run that had it from the start; bit-identical to it"
    assert wanted in told
    assert state(here / "parts") == state(here / "whole")


def test_where_they_are_not_the_bits_are_others(here, capsys):
    said(capsys, *TRAIN, "--out", "whole", "--steps", "8")
    assert "rates so far differ from those of a run" in said(capsys, *MORE)
    assert state(here / "run") != state(here / "whole")


def test_what_moves_no_bit_is_said_to_move_none(here, capsys):
    often = ["--set", "train.eval_every=1", "--set", "train.keep=last", "--set", "train.log_every=3"]
    told = said(capsys, *MORE, *often)
    assert (
        "train.eval_every 2, now 1; train.log_every 1, now 3; train.keep best, now last: every step" in told
    )
    said(capsys, *TRAIN, "--out", "other")
    said(capsys, *MORE, "--out", "other")
    newest = [max((here / run / "checkpoints").iterdir()) for run in ("run", "other")]
    one, other = ((path / "optimizer.safetensors").read_bytes() for path in newest)
    assert newest[0].name == newest[1].name and one == other


def test_fewer_windows_at_a_time_make_the_same_steps_in_another_order(here, capsys):
    told = said(capsys, *MORE, "--set", "train.micro_batch_size=1")
    assert "train.micro_batch_size 0, now 1: the same steps, summed in another order" in told


def test_a_run_that_goes_on_as_it_was_says_nothing_of_settings(here, capsys):
    assert "train." not in said(capsys, *TRAIN, "--resume")
    assert "changed" not in recorded()["record"]


def test_a_rate_that_no_step_would_have_is_refused(here):
    before = Path("run/tformer.yaml").read_bytes()
    with pytest.raises(RequestError, match=r"all of its 6 steps, with 0\.005\); give it more --steps"):
        app([*TRAIN, "--resume", "--lr", "0.5"], standalone_mode=False)
    assert Path("run/tformer.yaml").read_bytes() == before


def test_what_a_checkpoint_says_of_settings_may_be_anything(here, capsys):
    """Of an older version nothing, and then the record says it; of somebody else what is no setting."""
    checkpoint = max((here / "run/checkpoints").iterdir())
    for other in (None, 7, [], {"lr": "high"}, {"steps": -1}, {"lr": None}, {"steps": 10**400}):
        edited(checkpoint, may_change=other)
        told = said(capsys, *TRAIN, "--resume")
        assert "it is finished" in told and "train." not in told


def test_a_training_that_diverged_goes_on_with_the_rate_that_is_advised(here, monkeypatch, capsys):
    update, made = Optimizers.step, []

    def spoiled(optimizers, *arguments):
        update(optimizers, *arguments)
        made.append(optimizers)
        if len(made) == 5:
            with torch.no_grad():
                next(iter(optimizers.names)).fill_(float("nan"))

    with monkeypatch.context() as patch, pytest.raises(TformerError) as failed:
        patch.setattr(Optimizers, "step", spoiled)
        app([*TRAIN, "--out", "new"], standalone_mode=False)
    assert "go on with --resume and a lower rate (--lr " in str(failed.value)
    lower = str(failed.value).partition("--lr ")[2].split(")")[0]
    told = said(capsys, *TRAIN, "--out", "new", "--resume", "--lr", lower)
    assert "continuing after step 4" in told and f"train.lr 0.005, now {float(lower):g}" in told
    assert rates("new")[6] < rates("run")[6]


WITHOUT = {  # memory: for which windows at a time, or for what, and the advice
    "two windows": (lambda model, ids: model.training and len(ids) > 1, [], "train.micro_batch_size=1"),
    "one window": (lambda model, ids: model.training, ["--batch-size", "1"], "train.recompute=true"),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_training_without_memory_goes_on_as_it_is_told(what, here, monkeypatch, capsys):
    lacks, given, setting = WITHOUT[what]
    forward, forwards = Transformer.forward, []

    def without_room(model, ids, cache=None):
        if lacks(model, ids):
            forwards.append(ids)
            if len(forwards) > 3:
                raise MemoryError
        return forward(model, ids, cache)

    new = [*TRAIN, *given, "--out", "new", "--set", "train.kernels=reference"]
    with monkeypatch.context() as patch, pytest.raises(TformerError) as failed:
        patch.setattr(Transformer, "forward", without_room)
        app(new, standalone_mode=False)
    assert re.match(
        r"out of memory with \d windows? of 8 tokens at a time \(a model of 1,144 p", str(failed.value)
    )
    assert f"go on with --resume --set {setting}, which makes the same steps" in str(failed.value)
    told = said(capsys, *new, "--resume", "--set", setting)
    assert "continuing after step" in told and f"train.{setting.partition('=')[0].partition('.')[2]}" in told
    assert rates("new").keys() == rates("run").keys()


def test_an_evaluation_without_memory_says_what_it_takes(here, monkeypatch):
    def validate(session):
        raise MemoryError

    monkeypatch.setattr(Session, "validate", validate)
    with pytest.raises(
        TformerError, match=r"out of memory in an evaluation, which takes [\d.]+ MB \(a model of"
    ):
        app([*TRAIN, "--out", "new"], standalone_mode=False)
