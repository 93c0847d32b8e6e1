"""What a checkpoint says of optimizers and of where training stands is checked, name by name."""

from pathlib import Path

import pytest
import torch

from tests.faults.tiny import TRAIN, edited, trained
from tformer.cli import app
from tformer.errors import TformerError

MUON = ["--set", "model.family=nanochat", "--set", "train.optimizer=muon"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    commands = [*TRAIN, "--out", "adamw"], [*TRAIN, "--out", "muon", *MUON]
    return trained(tmp_path_factory.mktemp("states") / "here", *commands)


def refused(name: str, change, said: str) -> None:
    """A run whose newest checkpoint has another state does not go on, and it is said why."""
    edited(max(Path(name, "checkpoints").iterdir()), change)
    more = MUON if name == "muon" else []
    with pytest.raises(TformerError, match=said):
        app([*TRAIN, "--out", name, *more, "--resume", "--steps", "8"], standalone_mode=False)


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
def test_optimizer_state_of_another_kind_is_named(what, name, here):
    change, said = TENSORS[what]
    refused(name, lambda tensors, state: change(tensors), f"optimizer state .*{said}")


def test_momentum_is_checked_as_well(here):
    missing = r"blocks\.0\..*/momentum is missing"
    refused("muon", lambda tensors, state: without(tensors, "/momentum", "blocks"), missing)


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
def test_a_state_of_other_types_is_named(changes, here):
    refused("adamw", lambda tensors, state: state.update(changes), f"{next(iter(changes))} is ")
