"""What is chosen on a CUDA device alone, as far as a CPU can tell; what only a card shows is in gpu.sh."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.faults.tiny import lines_of
from tests.gpus import CUDA, OnDevice, gpu
from tformer.cli import app
from tformer.errors import RequestError
from tformer.training import budget

pytestmark = pytest.mark.figured

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
TINY = "--tokenizer char --batch-size 4 --set model.n_layers=1 --set model.n_heads=2 --set model.d_model=16"
SMALL = f"{TINY} --set model.n_ctx=16 --set train.eval_every=2".split()


def command(*args):
    """`tformer` with these arguments, in this process; the exit code."""
    return app(list(args), standalone_mode=False) or 0


def recorded(run):
    return yaml.safe_load(Path(run, "tformer.yaml").read_text())


@pytest.fixture
def compiled(monkeypatch):
    """The models that are compiled, without a compiler."""
    models = []
    monkeypatch.setattr(torch, "compile", lambda model: models.append(model) or (lambda ids: model(ids)))
    return models


@pytest.fixture
def card(tmp_path, monkeypatch, compiled):
    """A text in the working directory, and a card that `auto` prefers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_DEVICE", raising=False)
    (tmp_path / "hamlet.txt").write_text(TEXT)
    with gpu(monkeypatch, CUDA):
        yield


def test_a_run_with_nothing_said_trains_on_the_card_compiled_and_in_bf16(card, compiled):
    assert command("train", "hamlet.txt", "--steps", "4", "--out", "run", *SMALL) == 0
    record = recorded("run")
    assert record["record"]["device"] == "cuda"
    assert (record["train"]["precision"], record["train"]["compile"]) == ("bf16", "on")
    (model,) = compiled
    assert all(isinstance(p, OnDevice) for p in model.parameters())


def test_it_is_the_run_that_the_same_settings_make_on_the_cpu(card):
    forced = ["--precision", "fp32", "--compile", "--set", "model.dropout=0.0"]
    for device in ("cuda", "cpu"):
        command("train", "hamlet.txt", "--steps", "4", "--out", device, *SMALL, *forced, "--device", device)
    assert Path("cuda/model.safetensors").read_bytes() == Path("cpu/model.safetensors").read_bytes()
    assert lines_of(Path("cuda")) == lines_of(Path("cpu"))


def test_a_run_goes_from_the_card_to_the_cpu_and_back(card, compiled):
    command("train", "hamlet.txt", "--steps", "2", "--out", "run", *SMALL)
    for steps, device in (("4", "cpu"), ("6", "cuda")):
        args = ["train", "hamlet.txt", "--steps", steps, "--out", "run", "--resume", "--device", device]
        assert command(*args, *SMALL) == 0
    assert len(compiled) == 3
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_every_evaluation_and_a_sample_run_on_the_card(card, capsys):
    command("train", "hamlet.txt", "--steps", "2", "--out", "runs/text", *SMALL)
    Path("passages.jsonl").write_text(json.dumps({"text": "To be, or not to be"}))
    capsys.readouterr()
    for args in (
        ["eval", "loss"],
        ["eval", "lambada", "--data", "passages.jsonl"],
        ["eval", "causality", "--positions", "3"],
        ["eval", "attention", "--prompt", "To be"],
        ["eval", "generations", "--prompt", "To", "-n", "2", "--max-tokens", "5"],
        ["sample", "To", "--max-tokens", "30", "--seed", "1"],
        ["sample", "To", "--max-tokens", "9", "--seed", "1", "--precision", "bf16"],
    ):
        found = []
        for device in ("cuda", "cpu"):
            assert command(*args, "--run", "runs/text", "--device", device, "--json") == 0
            found.append(json.loads(capsys.readouterr().out))
            found[-1].pop("tokens_per_second", None)
        assert found[0] == found[1], args


def test_a_time_budget_waits_for_the_card_and_leaves_the_model(card, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(budget, "steps_within", lambda seconds, costs, train: 2)
    assert command("train", "hamlet.txt", "--minutes", "1", "--out", "run", *SMALL) == 0
    assert len(waited) >= 4 and set(waited) == {CUDA}
    assert "room for" not in capsys.readouterr().err


def test_a_card_that_is_not_there_is_refused_and_an_older_one_trains_in_fp32(card, monkeypatch):
    with pytest.raises(RequestError, match="cuda:1 is not there"):
        command("train", "hamlet.txt", "--steps", "2", "--out", "run", *SMALL, "--device", "cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    command("train", "hamlet.txt", "--steps", "2", "--out", "run", *SMALL)
    assert recorded("run")["train"]["precision"] == "fp32"
