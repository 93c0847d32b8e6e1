"""What cannot end well is said before the first step; what ended badly says what to do that is possible."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.faults.tiny import TRAIN
from tformer.cli import app
from tformer.errors import TformerError
from tformer.training.optim import Optimizers

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_no_room_for_checkpoints_is_said_before_the_first_step(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 20_000, 20_000))
    with pytest.raises(TformerError, match=r"no room for the checkpoints in run \(0\.0 MB are free, 0\.0 MB"):
        app(TRAIN, standalone_mode=False)
    assert not (here / "run").exists(), "and nothing is left"


def test_a_run_that_is_overwritten_stays_where_there_is_no_room(here, monkeypatch):
    app(TRAIN, standalone_mode=False)
    before = {p: p.read_bytes() for p in (here / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    with pytest.raises(TformerError, match="no room"):
        app([*TRAIN, "--overwrite"], standalone_mode=False)
    assert {p: p.read_bytes() for p in (here / "run").rglob("*") if p.is_file()} == before
    app([*TRAIN, "--resume"], standalone_mode=False)  # it is finished, and needs none


@pytest.mark.parametrize(("full", "command"), [("disk", "--overwrite"), ("here", "--resume")])
def test_room_is_asked_for_where_checkpoints_will_be(full, command, here, monkeypatch):
    """Those of a run that goes on are where its link leads; one that overwrites it has none."""
    app(TRAIN, standalone_mode=False)
    shutil.move("run/checkpoints", here.parent / "disk")
    (here / "run" / "checkpoints").symlink_to(here.parent / "disk")

    def usage(path):
        return Usage(
            10**9, 0, 0 if (here.parent / "disk" == Path(path).resolve()) == (full == "disk") else 10**9
        )

    monkeypatch.setattr(shutil, "disk_usage", usage)
    more = [*TRAIN, "--steps", "8"]
    other = {"--overwrite": "--resume", "--resume": "--overwrite"}[command]
    before = (here / "run" / "tformer.yaml").read_bytes()
    with pytest.raises(TformerError, match="no room for the checkpoints in run"):
        app([*more, other], standalone_mode=False)
    assert (here / "run" / "tformer.yaml").read_bytes() == before
    app([*more, command], standalone_mode=False)


def test_a_training_that_diverged_advises_what_can_be_done(here, monkeypatch):
    step = Optimizers.step

    def spoiled(optimizers, *args):
        step(optimizers, *args)
        with torch.no_grad():
            next(iter(optimizers.names)).fill_(float("nan"))

    with monkeypatch.context() as patch, pytest.raises(TformerError) as failed:
        patch.setattr(Optimizers, "step", spoiled)
        app(
            [*TRAIN, "--set", "train.eval_every=0", "--set", "train.checkpoint_every=0"],
            standalone_mode=False,
        )
    assert "diverged at step 2" in str(failed.value) and "--init-from" in str(failed.value)
    lower = str(failed.value).partition("--lr ")[2].split(")")[0]
    app([*TRAIN, "--out", "again", "--lr", lower], standalone_mode=False)
