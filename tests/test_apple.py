"""Every command on an Apple GPU, as far as a CPU can tell: nothing that MPS refuses is asked of it."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.gpus import MPS, NO_FLOAT64, gpu
from tformer.cli import app
from tformer.training import budget

pytestmark = pytest.mark.figured

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
SMALL = [
    "--set",
    "model.n_layers=1",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.d_model=16",
    "--set",
    "train.eval_every=2",
    "--batch-size",
    "4",
    "--set",
    "train.micro_batch_size=2",
]
TEXTS = {  # runs on a text, and the settings of each
    "gpt2": ["--tokenizer", "word", "--set", "model.n_ctx=32", "--set", "model.dropout=0.1"],
    "nanochat": [
        "--tokenizer",
        "char",
        "--set",
        "model.family=nanochat",
        "--set",
        "train.optimizer=adamw",
        "--set",
        "model.n_ctx=16",
    ],
    "sinusoidal": ["--tokenizer", "bpe", "--set", "model.positions=sinusoidal", "--set", "model.n_ctx=16"],
}
REVERSAL = ["--set", "data.reversal_length=3", "--set", "data.reversal_symbols=4", "--set", "model.n_ctx=5"]


def command(*args):
    """`tformer` with these arguments, in this process; the exit code."""
    return app(list(args), standalone_mode=False) or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text, passages, and runs trained on the device, which `auto` prefers."""
    folder = tmp_path_factory.mktemp("apple")
    (folder / "hamlet.txt").write_text(TEXT)
    lines = [json.dumps({"text": text}) for text in ("To be, or not to be", "that is the question")]
    (folder / "passages.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch, gpu(patch, MPS):
        patch.chdir(folder)
        patch.delenv("TFORMER_DEVICE", raising=False)
        for name, settings in TEXTS.items():
            command(
                "train",
                "hamlet.txt",
                "--steps",
                "4",
                "--out",
                f"runs/{name}",
                *SMALL,
                *settings,
                "--eval-data",
                "passages.jsonl",
            )
        seldom = ("--set", "train.eval_every=40", "--set", "train.log_every=40")
        command("train", "reversal", "--steps", "80", "--lr", "0.01", *SMALL, *REVERSAL, *seldom)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    """The working directory, and the device as the only GPU."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("TFORMER_DEVICE", raising=False)
    with gpu(monkeypatch, MPS):
        yield place


def test_what_stands_in_for_the_device_refuses_what_mps_refuses(here):
    a = torch.ones(2, 3, device="mps")
    assert a.device == MPS and (a @ a.T).device == MPS and float(a.sum()) == 6.0
    wide_on_the_device = (
        lambda: a.double(),
        lambda: a.to("cpu", torch.float64),
        lambda: torch.zeros(1, dtype=torch.float64, device=MPS),
        lambda: torch.zeros(1, dtype=torch.float64).to(MPS),
    )
    for wide in wide_on_the_device:
        with pytest.raises(TypeError, match=NO_FLOAT64):
            wide()
    assert a.cpu().double().dtype == torch.float64
    with pytest.raises(RuntimeError, match="same device"):
        a + torch.ones(2, 3)
    with pytest.raises(TypeError, match="numpy"):
        a.numpy()
    with pytest.raises(AssertionError, match="pageable"):
        torch.ones(1).to(MPS, non_blocking=True)


def test_a_gradient_on_the_device_is_that_of_the_cpu(here):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
    layer(x).square().sum().backward()
    wanted = layer.weight.grad.clone()
    layer.zero_grad()
    layer.to(MPS)
    layer(x.to(MPS)).square().sum().backward()
    assert layer.weight.grad.device == MPS
    assert torch.equal(layer.weight.grad.cpu(), wanted)


@pytest.mark.parametrize("name", [*TEXTS, "reversal"])
def test_training_ran_on_the_device_and_learned(here, name):
    assert yaml.safe_load(Path(f"runs/{name}/tformer.yaml").read_text())["record"]["device"] == "mps"
    lines = [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]


def test_a_run_is_resumed_on_the_device_and_on_the_cpu(here):
    args = ["train", "hamlet.txt", "--out", "runs/again", *SMALL, *TEXTS["gpt2"]]
    command(*args, "--steps", "2")
    command(*args, "--steps", "4", "--resume", "--device", "cpu")
    command(*args, "--steps", "6", "--resume", "--device", "mps")
    assert len(list(Path("runs/again/checkpoints").iterdir())) >= 1


def test_a_time_budget_is_measured_on_the_device(here, monkeypatch):
    monkeypatch.setattr(budget, "steps_within", lambda seconds, costs, train: 3 if costs.step > 0 else 0)
    command("train", "hamlet.txt", "--out", "runs/timed", *SMALL, *TEXTS["gpt2"], "--minutes", "1")


@pytest.mark.parametrize(
    "args",
    [
        ["loss", "--run", "gpt2"],
        ["loss", "--run", "gpt2", "--run", "nanochat"],
        ["loss", "--run", "nanochat", "--tokens", "20"],
        ["reversal", "-n", "100"],
        ["lambada", "--run", "gpt2", "--data", "passages.jsonl"],
        ["causality", "--run", "gpt2", "--positions", "4"],
        ["causality", "--run", "nanochat", "--positions", "4"],
        ["attention", "--run", "reversal", "-n", "20"],
        ["attention", "--run", "gpt2", "--prompt", "To be"],
        ["generations", "--run", "gpt2", "-n", "2", "--max-tokens", "10"],
    ],
    ids=" ".join,
)
def test_every_evaluation_finds_on_the_device_what_it_finds_on_the_cpu(here, capsys, args):
    capsys.readouterr()
    found = []
    for device in ("mps", "cpu"):
        assert command("eval", *args, "--json", "--device", device) == 0
        found.append(re.sub(r'"tokens_per_second": [^,}]+', "", capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "how",
    [
        ["--greedy"],
        ["--temperature", "0.8", "--top-k", "5", "-n", "3"],
        ["--min-p", "0.01", "--top-p", "0.9", "--repetition-penalty", "1.2", "-n", "2", "--logprobs", "3"],
    ],
)
def test_a_sample_is_that_of_the_cpu(here, capsys, how):
    capsys.readouterr()
    found = []
    for device in ("mps", "cpu"):
        common = ["--seed", "3", "--device", device, "--json"]
        command("sample", "To be", "--run", "gpt2", "--max-tokens", "60", *common, *how)
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] and found[0]


def test_a_mask_that_is_no_mask_is_measured_on_the_device(here):
    """The search for the largest safe score runs in float64, and only where a mask is finite."""
    from tformer.evals import masks
    from tformer.run.huggingface import load_model
    from tformer.watch import put_formula

    def finite(q, k, v, mask=None, dropout=0.0):
        scores = (q @ k.mT) / q.shape[-1] ** 0.5 + torch.where(mask, 0.0, -50.0)
        weights = scores.softmax(-1)
        return weights @ v, weights

    ids = torch.arange(16)[None] % 8
    found = []
    for device in ("mps", "cpu"):
        model = put_formula(load_model(Path("runs/gpt2"), device), finite)
        with masks.measuring(model) as calls, torch.inference_mode():
            model(ids.to(device))
        found.append(calls)
    assert found[0] == found[1] and found[0][0].value == pytest.approx(-50, abs=0.5)
