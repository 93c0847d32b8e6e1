"""`train --compile`, through the command: it trains as without, and a compiler that fails costs no run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tformer.cli import app

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
TINY = [
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--tokenizer",
    "char",
    "--batch-size",
    "4",
    "--set",
    "model.n_layers=1",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.d_model=16",
    "--set",
    "model.n_ctx=16",
    "--set",
    "train.log_every=1",
    "--set",
    "train.micro_batch_size=2",
    "--set",
    "model.dropout=0.0",
]
DROPOUT = ["--set", "model.dropout=0.2", "--set", "train.kernels=reference"]


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch) -> None:
    """A text in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hamlet.txt").write_text(TEXT)


def train(*args):
    """`tformer train hamlet.txt` in this process."""
    app(["train", "hamlet.txt", *TINY, *args], standalone_mode=False)


def train_anew(*args, **environment):
    """The same in a process of its own: returns what it said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
    done = subprocess.run(
        [sys.executable, "-m", "tformer", "train", "hamlet.txt", *TINY, *args],
        capture_output=True,
        text=True,
        timeout=200,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def weights(run: str) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def recorded(run: str) -> tuple[str, str | None]:
    """Whether the run says that it compiles, and why it could not."""
    whole = yaml.safe_load((Path(run) / "tformer.yaml").read_text())
    return whole["train"]["compile"], whole["record"].get("compile_failed")


class Compiled:
    """As torch's compiled modules are: to be called, and without a length although there is `__len__`."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __len__(self):
        raise TypeError(f"{type(self.model).__name__} does not support len()")

    def __call__(self, ids):
        self.calls += 1
        return self.model(ids)


@pytest.fixture
def compiled(monkeypatch) -> list[Compiled]:
    """What `torch.compile` is asked for, without a compiler."""
    made: list[Compiled] = []

    def fake(model):
        made.append(Compiled(model))
        return made[-1]

    monkeypatch.setattr(torch, "compile", fake)
    return made


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    train("--no-compile", "--steps", "4", "--out", "plain")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    said = train_anew("--compile", "--steps", "4", "--out", "compiled", **cache)
    assert "warning" not in said and recorded("compiled") == ("on", None), said
    assert list((tmp_path / "cache").rglob("*.so")), "nothing was compiled"
    assert losses("compiled") == pytest.approx(losses("plain"), abs=1e-4)


def test_a_run_that_began_compiled_is_resumed_compiled(compiled):
    train("--compile", "--steps", "3", "--out", "run")
    train("--resume", "--steps", "6", "--out", "run")
    train("--resume", "--steps", "6", "--out", "run")
    assert [made.calls for made in compiled] == [1 + 3 * 2] * 2, "with no step left to take, nothing is"
    assert recorded("run") == ("on", None)


def test_a_finished_run_that_is_given_more_steps_says_that_it_compiles(compiled, capsys):
    train("--out", "more", "--steps", "2", "--compile")
    capsys.readouterr()
    train("--out", "more", "--steps", "2", "--compile", "--resume")
    assert "compiling" not in capsys.readouterr().err, "there is nothing to train"
    train("--out", "more", "--steps", "3", "--compile", "--resume")
    assert "compiling the model" in capsys.readouterr().err


def test_the_trial_of_the_compiler_leaves_no_trace_in_the_run(compiled):
    train("--no-compile", "--steps", "3", "--out", "plain", *DROPOUT)
    train("--compile", "--steps", "3", "--out", "compiled", *DROPOUT)
    assert [made.calls for made in compiled] == [1 + 3 * 2], "one trial, and two micro batches a step"
    assert weights("compiled") == weights("plain")
    assert losses("compiled") == losses("plain")


def test_a_run_with_a_time_budget_compiles(compiled, monkeypatch):
    monkeypatch.setattr("tformer.training.budget.steps_within", lambda seconds, costs, train: 2)
    train("--compile", "--minutes", "1", "--out", "run")
    assert compiled[0].calls > 2
    assert recorded("run") == ("on", None)


@pytest.mark.slow
def test_without_a_compiler_there_is_one_warning_and_the_plain_run(tmp_path):
    train("--no-compile", "--steps", "3", "--out", "plain", *DROPOUT)
    none = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    said = train_anew("--compile", "--steps", "3", "--out", "run", *DROPOUT, **none)
    warnings = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "No working C++ compiler" in warnings[0], said
    assert "Traceback" not in said
    compile, why = recorded("run")
    assert compile == "off" and "No working C++ compiler" in why
    assert weights("run") == weights("plain")


def broken_at(where: str):
    """A compiled model that fails at its first forward, or only at its first backward."""

    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(context, logits):
            return logits.clone()

        @staticmethod
        def backward(context, gradient):
            raise RuntimeError("no kernel\nfor the backward pass")

    class Broken(Compiled):
        def __call__(self, ids):
            if where == "forward":
                raise ImportError("Triton is not there")
            return Refuses.apply(super().__call__(ids))

    return Broken


@pytest.mark.parametrize(
    ("where", "why"), [("forward", "ImportError: Triton is not there"), ("backward", "no kernel")]
)
def test_a_compiler_that_fails_at_the_first_forward_or_backward_is_passed_over(
    monkeypatch, capsys, where, why
):
    train("--no-compile", "--steps", "3", "--out", "plain", *DROPOUT)
    monkeypatch.setattr(torch, "compile", broken_at(where))
    capsys.readouterr()
    train("--compile", "--steps", "3", "--out", "run", *DROPOUT)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1 and "torch.compile failed" in said
    assert recorded("run")[0] == "off" and why in recorded("run")[1]
    assert weights("run") == weights("plain")


def test_the_same_command_continues_a_run_whose_compiler_failed_and_tries_again(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", broken_at("forward"))
    train("--compile", "--steps", "3", "--out", "run")
    train("--compile", "--steps", "6", "--out", "run", "--resume")
    assert recorded("run")[0] == "off"
    capsys.readouterr()
    train("--steps", "7", "--out", "run", "--resume")
    assert "compil" not in capsys.readouterr().err, "it was decided: without being asked, it does not try"
    monkeypatch.setattr(torch, "compile", Compiled)
    train("--compile", "--steps", "8", "--out", "run", "--resume")
    assert recorded("run") == ("on", None)


def test_a_lack_of_memory_is_not_the_compilers_fault(monkeypatch):
    class Full(Compiled):
        def __call__(self, ids):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", Full)
    with pytest.raises(torch.OutOfMemoryError):
        train("--compile", "--steps", "3", "--out", "run")
