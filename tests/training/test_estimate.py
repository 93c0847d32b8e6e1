"""What a run will cost is what it then costs, and for GPT-2 what others published."""

import json
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.command import ENVIRONMENT
from tests.training.test_noted import TEXT
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError
from tformer.layers import merge, preset_layer
from tformer.run import kept_ids
from tformer.run.huggingface import empty_model
from tformer.training import estimate as module
from tformer.training.costs import (
    bytes_sent,
    disk_of,
    flops_per_token,
    on_accelerator,
    parameters_by_part,
    training_memory,
)
from tformer.training.memory import step_bytes


def gpt2() -> Config:
    """GPT-2's smallest size, with its biases."""
    config = merge([preset_layer("gpt2-124m")]).updated("train", micro_batch_size=0)
    return config.updated("model", bias=True, vocab_size=50257)


def train(folder: Path, *args: object) -> dict:
    (folder / "text.txt").write_text(TEXT)
    words = ["train", str(folder / "text.txt"), "--set", "train.compile=off", "--batch-size", "2"]
    words += ["--set", "model.n_ctx=8", "--set", "model.d_model=16", "--steps", "4", "--json"]
    done = CliRunner().invoke(app, [*words, *map(str, args)])
    if done.exception:
        raise done.exception
    return json.loads(done.stdout)


def test_gpt2_has_the_parameters_that_are_published():
    parts = parameters_by_part(empty_model(gpt2().model))
    assert sum(parts.values()) == 124_439_808
    assert parts["embeddings"] == 50257 * 768 and parts["positions"] == 1024 * 768


def test_gpt2_takes_the_flops_of_nanogpts_own_formula():
    n = 124_439_808 - 1024 * 768  # nanoGPT's get_num_params leaves the positions out
    assert flops_per_token(gpt2().model, 1024) == 6 * n + 12 * 12 * 12 * 64 * 1024
    assert flops_per_token(gpt2().model, 1024) == pytest.approx(855.1e6, rel=1e-3)


def test_gpt2_trains_as_fast_as_llm_c_at_the_utilisation_that_it_reports():
    one = on_accelerator(gpt2().updated("train", batch_size=32), "h100", utilisation=0.405)
    again = on_accelerator(gpt2().updated("train", batch_size=32, recompute=True), "h100", utilisation=0.405)
    assert again.computing_per_step == pytest.approx(4 / 3 * one.computing_per_step), "forward once more"
    assert again.windows_at_once >= one.windows_at_once and again.memory < one.memory
    assert 32 * 1024 / one.computing_per_step == pytest.approx(468e3, rel=0.05)
    eight = on_accelerator(gpt2().updated("train", batch_size=512, steps=19073), "a100", 8, utilisation=0.6)
    assert eight.seconds == pytest.approx(90 * 60, rel=0.15)  # 10 billion tokens
    assert eight.communication_per_step < eight.computing_per_step


def test_a_long_window_on_a_gpu_keeps_no_weights_of_attention():
    long = gpt2().updated("model", n_ctx=8192, n_layers=24, n_heads=16, n_kv_heads=16, d_model=1024)
    here, there = (step_bytes(long.updated("train", kernels=kernels))[1] for kernels in ("reference", "sdpa"))
    scores = 24 * 16 * 8192 * 8192 * 4
    assert here - there == pytest.approx(scores, rel=0.05)
    assert on_accelerator(long.updated("train", batch_size=8), "h100").has_room


def test_sharding_divides_the_state_and_sends_half_as_much_again():
    """Of 16 bytes a parameter; whole at a time are all but the blocks, and two of 12 blocks."""
    n, blocks = 124_439_808, 12 * 7_087_872
    config = gpt2().updated("train", batch_size=64)
    whole, parts = (on_accelerator(config, "h100", 8, s) for s in (False, True))
    assert parts.windows_at_once == whole.windows_at_once == 8
    gathered = 4 * (n - blocks + 2 * blocks / 12)
    assert whole.memory - parts.memory == pytest.approx(16 * n * 7 / 8 - gathered, rel=1e-3)
    by_two = config.updated("train", micro_batch_size=2)
    whole, parts = (on_accelerator(by_two, "h100", 8, s) for s in (False, True))
    assert whole.memory - parts.memory == pytest.approx(12 * n * 7 / 8 - gathered, rel=1e-3), (
        "gradients whole"
    )


def test_a_precision_that_is_asked_for_has_its_own_peak():
    """A T4 has no bf16, and an A100 by NVIDIA's data sheet 19.5 TFLOP/s in fp32."""
    fast, slow = (on_accelerator(gpt2(), "a100", precision=p) for p in ("auto", "fp32"))
    assert slow.computing_per_step == pytest.approx(312 / 19.5 * fast.computing_per_step)
    fast, slow = (on_accelerator(gpt2(), "t4", precision=p) for p in ("auto", "fp32"))
    assert slow.computing_per_step == fast.computing_per_step


def test_a_run_that_goes_on_costs_what_is_left_of_it(tmp_path):
    out = ("--out", tmp_path / "run", "--set", "train.checkpoint_every=1")
    there = ("--estimate", "--gpus", 1, "--accelerator", "h100")
    whole = train(tmp_path, *out, *there, "--steps", 4)
    train(tmp_path, *out, "--steps", 1)
    left = train(tmp_path, *out, *there, "--resume", "--steps", 4)
    assert (left["steps"], 4 * left["tokens"]) == (3, 3 * whole["tokens"])
    assert left["accelerators"][0]["seconds"] == pytest.approx(3 / 4 * whole["accelerators"][0]["seconds"])
    nothing = train(tmp_path, *out, "--resume", "--steps", 1, "--estimate")
    assert nothing["steps"] == nothing["tokens"] == 0
    assert nothing["here"]["seconds"] < train(tmp_path, "--estimate", "--steps", 400)["here"]["seconds"]


def test_a_model_to_begin_from_is_planned_for_other_machines_by_their_memory(tmp_path, monkeypatch):
    train(tmp_path, "--out", tmp_path / "begun", "--steps", 1)
    monkeypatch.setattr("tformer.training.completed.free_bytes", lambda *_: 1000)
    begin = ("--init-from", tmp_path / "begun", "--estimate")
    with pytest.raises(RequestError, match=r"0\.0 MB are free"):
        train(tmp_path, *begin)
    said = train(tmp_path, *begin, "--gpus", 1, "--accelerator", "h100")
    assert said["accelerators"][0]["windows_at_once"] == 2


def test_what_was_seen_to_run_in_8_gb_is_not_refused():
    """GPT-2's 124M in bf16, of which a step held 5.27 GB of memory (LOG.md)."""
    memory = training_memory(gpt2(), 4)
    assert memory.total > 0.8 * 8e9
    module._check_memory(memory, 2, 4, 1024, 8 * 10**9)
    with pytest.raises(RequestError, match="GB are free"):
        module._check_memory(memory, 1, 4, 1024, 3 * 10**9)
    assert bytes_sent(1000, 4, False) == 1500 and bytes_sent(1000, 4, True) == 2250


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "family",
    [
        {},
        {"family": "nanochat", "n_kv_heads": 1, "n_heads": 2},
        {"positions": "sinusoidal", "bias": False, "tied": False},
    ],
    ids=lambda family: family.get("family", "gpt2"),
)
def test_parameters_and_disk_are_exactly_those_of_the_run(tmp_path, monkeypatch, optimizer, family):
    monkeypatch.setattr(kept_ids, "LONG", 100)  # characters: the ids of the text are kept
    settings = [f"model.{key}={value}" for key, value in family.items()]
    settings += ["train.checkpoint_every=1", f"train.optimizer={optimizer}"]
    given = [word for setting in settings for word in ("--set", setting)]
    said = train(tmp_path, *given, "--estimate", "--gpus", 1, "--accelerator", "t4")
    done = train(tmp_path, *given, "--out", tmp_path / "run")
    assert sum(said["parameters"].values()) == done["parameters"]
    assert said["tokens"] == done["tokens"]
    files = list((tmp_path / "run").rglob("*.safetensors"))
    assert said["disk"]["ids"] and said["disk"]["total"] == sum(file.stat().st_size for file in files)


def test_an_estimate_leaves_nothing_and_measures_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = train(tmp_path, "--estimate", "--set", "train.micro_batch_size=1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]
    assert 0 < said["here"]["seconds_per_step"] < said["here"]["seconds"] < 60
    assert next(row["name"] for row in said["accelerators"]) == "t4"


def test_the_memory_of_a_process_is_measured_and_of_windows_that_were_not_taken_what_each_keeps(
    tmp_path, monkeypatch
):
    at_a_time = 12
    mega, begin = 10**6, [(200 * 10**6, 0), (250 * 10**6, 0), (400 * 10**6, 0)]
    held = iter([*begin, (0, 2300 * mega), *begin, (0, 1)])
    monkeypatch.setattr("tformer.training.costs.judging_bytes", lambda vocab_size: 0)
    monkeypatch.setattr(module, "held_bytes", lambda: next(held, None))
    monkeypatch.setattr(module, "timed_windows", lambda session, clock: at_a_time)
    words = ("--estimate", "--device", "cpu", "--batch-size", 12, "--precision", "fp32")
    assert train(tmp_path, *words)["here"]["process"] == 2250 * mega
    at_a_time = 3
    said = train(tmp_path, *words, "--set", "train.kernels=reference")
    beside_weights = said["memory"]["total"] - said["memory"]["weights"]
    assert said["here"]["process"] - 350 * mega == pytest.approx(beside_weights, rel=0.02)
    assert train(tmp_path, *words)["here"]["process"] is None, "nobody knows"


MEASURED = """import atexit, sys
from tformer.free_memory import held_bytes
atexit.register(lambda: open("peak", "w").write(str(held_bytes()[1])))
from tformer.__main__ import program
program()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another system does not say it")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("data", ["reversal", "text.txt --preset nanogpt-char-cpu"])
def test_a_process_holds_as_much_memory_as_was_estimated(tmp_path, data):
    (tmp_path / "text.txt").write_text(TEXT * 100)
    line = f"train {data} --device cpu --steps 20 --json --set train.eval_every=0"
    said = []
    for more in ("--estimate", "--out run"):
        words = [sys.executable, "-c", MEASURED, *f"{line} {more}".split()]
        environment = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        said.append(json.loads(done.stdout))
    assert said[0]["here"]["process"] == pytest.approx(int((tmp_path / "peak").read_text()), rel=0.15)


def test_what_has_no_room_is_refused_with_what_to_lower_and_that_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 100_000_000)
    many = ("--estimate", "--batch-size", 4096)
    with pytest.raises(RequestError, match=r"GB.*train.micro_batch_size to \d+ or less") as refused:
        train(tmp_path, *many)
    most = int(re.search(r"micro_batch_size to (\d+)", str(refused.value))[1])
    train(tmp_path, *many, "--set", f"train.micro_batch_size={2 ** (most.bit_length() - 1)}")
    with pytest.raises(RequestError, match="smaller model"):
        train(tmp_path, "--estimate", "--set", "model.d_model=2048")

    def sized(d_model: int, n_layers: int) -> list[str]:
        big = (f"model.d_model={d_model}", f"model.n_layers={n_layers}", "train.precision=fp32")
        return [word for setting in big for word in ("--set", setting)]

    h100s = ("--estimate", "--accelerator", "h100", "--gpus")
    with pytest.raises(RequestError, match="more --gpus"):
        train(tmp_path, *h100s, 8, "--batch-size", 8, *sized(8192, 20))
    train(tmp_path, *h100s, 128, "--batch-size", 128, *sized(8192, 20))
    with pytest.raises(RequestError, match=r"a whole copy .*; give a smaller model"):  # no number is enough
        train(tmp_path, *h100s, 128, "--batch-size", 128, *sized(16384, 48))
    with pytest.raises(RequestError, match="there is t4"):
        train(tmp_path, "--estimate", "--gpus", 8, "--accelerator", "abacus")


def test_what_the_disk_has_no_room_for_is_refused_and_fewer_checkpoints_fit(tmp_path, monkeypatch):
    often = ("--estimate", "--set", "train.checkpoint_every=1")
    three, two = (
        train(tmp_path, *often, "--set", f"train.keep_checkpoints={n}")["disk"]["total"] for n in (3, 2)
    )
    usage = namedtuple("Usage", ["free"])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage((two + three) // 2))
    with pytest.raises(RequestError, match=r"lower train\.keep_checkpoints, or give another --out"):
        train(tmp_path, *often, "--set", "train.keep_checkpoints=3")
    train(tmp_path, *often, "--set", "train.keep_checkpoints=2")


def test_memory_is_by_its_parts():
    memory = training_memory(gpt2(), 4)
    assert memory.weights == memory.gradients == 4 * 124_439_808
    assert memory.optimizer == pytest.approx(2 * memory.weights, rel=1e-5)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.activations
    assert disk_of(gpt2()).checkpoints == 3, "the newest two, and that of the best weights"
    assert disk_of(gpt2().updated("train", keep="last")).checkpoints == 2
