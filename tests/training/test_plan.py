"""What a training is to be, before a text is read: what is chosen for a person, and what is refused."""

import json

import pytest
import torch

from tests.training.test_noted import CPU, config
from tformer.commands.train import check_minutes
from tformer.errors import RequestError
from tformer.layers import Layer, merge, preset_layer
from tformer.text.tokenizer import Tokenizer
from tformer.training.plan import TrainRequest, plan_training
from tformer.training.settings import default_preset


def test_on_a_gpu_shakespeare_takes_the_larger_preset():
    cuda = torch.device("cuda")
    assert default_preset(["shakespeare"], cuda, on_gpu=True) == "shakespeare-gpu"
    assert default_preset(["shakespeare"], cuda, on_gpu=False) == "shakespeare"
    assert default_preset(["shakespeare"], CPU, on_gpu=True) == "shakespeare"
    assert default_preset(["my.txt"], cuda, on_gpu=True) == "text"
    assert default_preset(["shakespeare", "my.txt"], cuda, on_gpu=True) == "text"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({}, "shakespeare-gpu"), ({"preset": "shakespeare"}, "shakespeare"), ({"resume": True}, "shakespeare")],
)
def test_what_else_is_asked_for_goes_before_the_gpus_preset_which_is_said(
    flags, expected, monkeypatch, tmp_path, capsys
):
    """Up to the configuration: there is no GPU to go on with."""
    from tformer.commands import train as command

    folder = tmp_path / "run"
    if flags.get("resume"):
        folder.mkdir()
        recorded = merge([preset_layer("shakespeare")]).model_dump() | {"record": {"preset": "shakespeare"}}
        (folder / "tformer.yaml").write_text(json.dumps(recorded))
        (folder / "tokenizer.json").write_text(Tokenizer.train("char", ["ab"]).to_json())
    configured = []

    def stop(config, *rest):
        configured.append(config)
        raise RequestError("far enough")

    monkeypatch.setattr("tformer.training.plan.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("tformer.training.opening.prepare_data", stop)
    arguments = {"preset": None, "resume": False} | flags
    with pytest.raises(RequestError, match="far enough"):
        command.command(["shakespeare"], device="auto", out=folder, json=False, **arguments)
    wanted = merge([preset_layer(expected)])
    if flags.get("resume"):  # a run has settled what the text settles
        wanted = wanted.updated("data", documents="file", val_split="end")
    assert configured == [wanted]
    said = capsys.readouterr().err
    assert ("--preset shakespeare" in said) == (expected == "shakespeare-gpu"), said


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_is_no_budget(minutes):
    with pytest.raises(RequestError, match="above 0"):
        check_minutes(minutes, Layer("", {}))


def test_steps_and_minutes_contradict_each_other():
    with pytest.raises(RequestError, match="both"):
        check_minutes(5.0, Layer("", {"train": {"steps": 5}}))
    check_minutes(5.0, Layer("", {"train": {"lr": 0.1}}))
    check_minutes(None, Layer("", {"train": {"steps": 5}}))


def test_a_resumed_run_keeps_the_steps_that_its_minutes_gave_it(tmp_path):
    def resumed(minutes, **record):
        whole = config(steps=77).model_dump() | {"record": {"preset": "text"} | record}
        (tmp_path / "tformer.yaml").write_text(json.dumps(whole))
        return plan_training(TrainRequest(["my.txt"], out=tmp_path, resume=True, minutes=minutes))

    facts = ("steps", "seconds_before", "seconds_per_step", "seconds_per_evaluation")
    budget = dict.fromkeys(facts, 1) | {"minutes": 5.0}
    assert resumed(None, budget=budget).config.train.steps == 77
    assert resumed(5.0, budget=budget).config.train.steps == 77
    with pytest.raises(RequestError, match=r"5 minutes, and has 77 steps"):
        resumed(6.0, budget=budget)
    with pytest.raises(RequestError, match="given steps"):
        resumed(6.0)
