"""What a checkpoint says of optimizers and of where training stands is checked, name by name."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.faults.test_kills import TRAIN, place
from tformer.cli import app
from tformer.errors import TformerError
from tformer.run.manifest import manifest_hash

MUON = ["--set", "model.family=nanochat", "--set", "train.optimizer=muon"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = place(tmp_path_factory.mktemp("states") / "here")
        patch.chdir(folder)
        app([*TRAIN, "--out", "adamw"], standalone_mode=False)
        app([*TRAIN, "--out", "muon", *MUON], standalone_mode=False)
    return folder


def edited(runs: Path, folder: Path, name: str, change) -> None:
    """A copy of a run whose newest checkpoint has another optimizer state, with the hashes that it takes."""
    shutil.copytree(runs, folder)
    checkpoint = max((folder / name / "checkpoints").iterdir())
    tensors = safetensors.torch.load_file(checkpoint / "optimizer.safetensors")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    change(tensors, manifest["state"])
    data = safetensors.torch.save(tensors)
    (checkpoint / "optimizer.safetensors").write_bytes(data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["optimizer.safetensors"] = facts
    manifest["sha256"] = manifest_hash(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def without(tensors, ending: str, name: str) -> None:
    for path in [p for p in tensors if p.startswith(name) and p.endswith(ending)]:
        del tensors[path]


TENSORS = {
    "an unknown name": (lambda t: t.update({"nobody/exp_avg": torch.zeros(2)}), "nobody/exp_avg is unknown"),
    "another shape": (lambda t: t.update({"embed.weight/exp_avg": torch.zeros(2)}), r"exp_avg is \(2,\)"),
    "one missing": (lambda t: without(t, "/step", "embed"), "embed.weight/step is missing"),
    "all of one missing": (lambda t: without(t, "", "embed"), "embed.weight/exp_avg is missing"),
    "no numbers": (
        lambda t: t["embed.weight/exp_avg"].fill_(float("nan")),
        "exp_avg holds no finite numbers",
    ),
    "whole numbers": (
        lambda t: t.update({"embed.weight/step": torch.tensor(3)}),
        "step holds no finite numbers",
    ),
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("what", TENSORS)
def test_optimizer_state_of_another_kind_is_named(what, name, runs, tmp_path, monkeypatch):
    change, said = TENSORS[what]
    edited(runs, tmp_path / "here", name, lambda tensors, state: change(tensors))
    monkeypatch.chdir(tmp_path / "here")
    more = MUON if name == "muon" else []
    with pytest.raises(TformerError, match=f"optimizer state .*{said}"):
        app([*TRAIN, "--out", name, *more, "--resume", "--steps", "8"], standalone_mode=False)


def test_momentum_is_checked_as_well(runs, tmp_path, monkeypatch):
    edited(runs, tmp_path / "here", "muon", lambda tensors, state: without(tensors, "/momentum", "blocks"))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(TformerError, match=r"blocks\.0\..*/momentum is missing"):
        app([*TRAIN, "--out", "muon", *MUON, "--resume", "--steps", "8"], standalone_mode=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "many"},
        {"step": "6"},
        {"step": 6.5},
        {"best_step": None},
        {"seconds": []},
        {"seconds": True},
    ],
    ids=str,
)
def test_a_state_of_other_types_is_named(changes, runs, tmp_path, monkeypatch):
    edited(runs, tmp_path / "here", "adamw", lambda tensors, state: state.update(changes))
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(TformerError, match=f"{next(iter(changes))} is "):
        app([*TRAIN, "--out", "adamw", "--resume", "--steps", "8"], standalone_mode=False)
