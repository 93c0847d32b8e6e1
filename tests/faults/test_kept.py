"""`result` is of the weights that lie in model.safetensors, whatever was changed on resume."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.faults.tiny import TRAIN
from tformer.cli import app
from tformer.training.session import Session

FAST = [
    "--lr",
    "0.3",
    "--seed",
    "2",
    "--set",
    "train.eval_every=1",
    "--set",
    "data.end_of_text=false",
    "--set",
    "train.kernels=reference",
]  # so that the best loss is not the last


def train(*arguments: str) -> dict:
    """Train; what `tformer.yaml` says of its end."""
    app([*TRAIN, *FAST, *arguments], standalone_mode=False)
    return yaml.safe_load(Path("run/tformer.yaml").read_text())["record"]["result"]


def losses() -> dict[int, float]:
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}


def loss_of_the_file(capsys) -> float:
    capsys.readouterr()
    app(["eval", "loss", "--run", "run", "--device", "cpu", "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)["loss"]


def test_weights_that_were_kept_last_stay_named_when_the_best_are_wanted(here, capsys):
    train("--set", "train.keep=last")
    best = min(losses().values())
    assert losses()[6] > best, "so that it matters"
    result = train("--resume", "--set", "train.keep=best", "--steps", "7")
    assert result["val_loss"] == pytest.approx(loss_of_the_file(capsys), abs=1e-5)
    assert result["val_loss"] == losses()[result["kept_step"]]


def test_the_checkpoint_of_the_best_weights_stays_beside_the_newest(here, monkeypatch):
    judged = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(Session, "validate", lambda self: (next(judged), 1.0))
    result = train("--set", "train.checkpoint_every=1")
    assert result["kept_step"] == 2
    steps = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert steps == [f"step-{n:08d}" for n in (2, 5, 6)]
    at_top = Path("run/model.safetensors").read_bytes()
    assert Path("run/checkpoints", steps[0], "model.safetensors").read_bytes() == at_top


def test_weights_of_a_step_that_does_not_come_again_are_not_kept(here, capsys):
    train("--steps", "3", "--set", "train.checkpoint_every=2")
    shutil.rmtree("run/checkpoints/step-00000003")  # as if it was killed before it could save once more
    assert min(losses(), key=losses().get) == 3, "whose weights lie there"
    result = train("--resume", "--set", "train.eval_every=0", "--steps", "6")
    assert result["kept_step"] != 3
    assert result["val_loss"] == pytest.approx(loss_of_the_file(capsys), abs=1e-5)
