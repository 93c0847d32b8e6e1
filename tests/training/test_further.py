"""Training further: the start is judged, the recipe is by model and text, the window by text and machine."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import save_run, tiny_model
from tests.training.test_noted import lines
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError
from tformer.model import Transformer
from tformer.ranks import Ranks
from tformer.text.data import Windows
from tformer.text.tokenizer import Tokenizer
from tformer.training.further import (
    LEAST_WINDOWS,
    ON_CPU,
    PASSES,
    STEPS,
    further_layer,
    steps_for,
    window_for,
)
from tformer.training.memory import ENOUGH, step_bytes, windows_at_a_time
from tformer.training.opening import prepare
from tformer.training.plan import TrainRequest, plan_training
from tformer.yaml_text import parse_yaml

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TEXT = "The quality of mercy is not strain'd,\nIt droppeth as the gentle rain from heaven\n" * 40


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A text, and a run on its characters with a context of 64, whose weights are what training makes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    tokenizer = Tokenizer.train("char", [TEXT + "#"], end_of_text=True)
    save_run(tmp_path / "base", tiny_model(std=0.05, vocab_size=tokenizer.vocab_size, n_ctx=64), tokenizer)
    return tmp_path


def train(*args: object, code: int = 0):
    """`train a.txt --init-from base`: its result, and what it said."""
    words = ["train", "a.txt", "--init-from", "base", "--set", "train.compile=off", "--json"]
    done = CliRunner().invoke(app, [*words, *map(str, args)])
    if code:
        assert isinstance(done.exception, RequestError) and done.exception.exit_code == code, done.output
        return None, str(done.exception)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), " ".join(done.stderr.split())


# ---------------------------------------------------------------------------- the start


def test_the_start_is_judged_and_stays_where_nothing_beats_it(place):
    before = (place / "base" / "model.safetensors").read_bytes()
    result, _ = train("--lr", 9, "--steps", 8, "--set", "train.eval_every=2", "--out", "spoilt")
    assert result["kept_step"] == 0 and result["val_loss"] == result["val_loss_before"]
    assert result["bits_per_byte"] == result["bits_per_byte_before"]
    loaded = (place / "spoilt" / "model.safetensors").read_bytes()
    assert len(loaded) == len(before)
    first = lines(place / "spoilt")[0]
    assert first["step"] == 0 and first["val_loss"] == result["val_loss_before"] and "sample" in first
    words = CliRunner().invoke(
        app, ["train", "a.txt", "--init-from", "base", "--lr", "9", "--steps", "4", "--out", "said"]
    )
    assert "no later ones are better; try a lower --lr" in " ".join(words.stderr.split())


def test_by_default_it_is_better_than_it_was(place):
    result, said = train("--out", "better")
    assert result["val_loss"] < result["val_loss_before"] and result["kept_step"] > 0
    assert "beginning from" in said and "passes over them" in said
    assert result["passes"] <= PASSES + 1


def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(place):
    settings = ["--steps", 6, "--set", "train.eval_every=2", "--set", "train.checkpoint_every=3"]
    train(*settings, "--out", "whole")
    train(*settings[2:], "--steps", 3, "--out", "parts")
    result, said = train("--out", "parts", "--resume", "--steps", 3)
    assert "learning rate" not in said and result["steps"] == 3
    result, said = train("--out", "parts", "--resume", "--steps", 6)
    assert "6 steps in place of 3: the learning rate goes on at" in said
    assert next(m["step"] for m in lines(place / "parts") if "val_loss" in m) == 0
    assert lines(place / "parts")[0] == lines(place / "whole")[0]


# ---------------------------------------------------------------------------- the recipe


def test_the_rate_falls_with_the_width_and_the_steps_follow_from_the_text():
    assert further_layer(128).values["train"]["lr"] == 1e-3 == further_layer(64).values["train"]["lr"]
    assert further_layer(768).values["train"]["lr"] == pytest.approx(1e-3 / 6)
    assert steps_for(1, 8)["steps"] == STEPS[0] and steps_for(10**6, 8)["steps"] == STEPS[1]
    assert steps_for(100, 8) == {"steps": 150, "warmup_steps": 7, "eval_every": 7}


def test_what_is_asked_for_goes_before_the_recipe(place):
    train(
        "--lr", 2e-4, "--steps", 3, "--set", "train.warmup_steps=2", "--set", "data.window=16", "--out", "o"
    )
    own = parse_yaml((place / "o" / "tformer.yaml").read_text(), "")
    assert own["train"]["steps"] == 3 and own["train"]["lr"] == 2e-4 and own["train"]["warmup_steps"] == 2
    assert own["train"]["optimizer"] == "adamw" and own["data"]["window"] == 16
    assert own["model"]["n_ctx"] == 64 and "preset" not in own["record"]


# ---------------------------------------------------------------------------- the window


@pytest.mark.parametrize("n_ids", [2, 3, 9, 40, 156, 1025, 5000])
@pytest.mark.parametrize("n_ctx", [8, 100, 1024])
def test_any_text_has_a_window_and_a_long_one_the_models(n_ids, n_ctx):
    for device in (CPU, CUDA):
        window = window_for(n_ctx, n_ids, device)
        assert 1 <= window <= min(n_ctx, n_ids - 1)
        assert Windows(torch.zeros(n_ids).numpy(), window).per_epoch >= 1
        if window > 8:
            assert n_ids - 1 >= LEAST_WINDOWS * window
    assert window_for(1024, 10**6, CPU) == ON_CPU and window_for(1024, 10**6, CUDA) == 1024


@pytest.mark.parametrize("settings", ["data.window=16", "data.window=16 model.positions=sinusoidal", ""])
def test_learned_positions_that_no_window_reaches_are_told_of_once(place, settings):
    words = [
        "train",
        "a.txt",
        "--preset",
        "text",
        "--steps",
        "1",
        "--json",
        "--device",
        "cpu",
        "--out",
        "new",
    ]
    small = ("model.n_ctx=32", "model.n_layers=1", "model.d_model=16", "model.n_heads=1", *settings.split())
    done = CliRunner().invoke(app, [*words, *(word for one in small for word in ("--set", one))])
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    wanted = "positions from 16 on are never trained (data.window), and validation has all 32"
    assert (f"{wanted}; --set model.n_ctx=16" in said) is (settings == "data.window=16")


def test_a_short_text_trains_and_the_advice_of_an_error_is_taken(place):
    (place / "a.txt").write_text(TEXT[:60])
    _, said = train("--set", "data.window=60", "--out", "no", code=2)
    assert "set a smaller data.window" in said
    result, said = train("--set", "data.window=20", "--steps", 1, "--out", "yes")
    assert result["steps"] == 1 and "in windows of 20" in said
    result, _ = train("--steps", 1, "--out", "auto")
    assert parse_yaml((place / "auto" / "tformer.yaml").read_text(), "")["data"]["window"] == 8
    _, said = train("--set", "data.window=65", "--out", "no", code=2)
    assert "longer than the model's context, 64" in said


# ---------------------------------------------------------------------------- memory


SMALL = {"vocab_size": 50, "n_ctx": 32, "n_layers": 2, "n_heads": 2, "d_model": 16}


def of(batch: int = 8, **model: int) -> Config:
    """A configuration of a model and a batch."""
    return Config.model_validate({"model": model, "train": {"batch_size": batch}})


def test_memory_is_counted_as_arithmetic_has_it():
    config = of(**SMALL)
    state, window = step_bytes(config)
    with torch.device("meta"):
        assert state == 16 * Transformer(config.model).n_parameters
    assert step_bytes(config.updated("data", window=16))[1] < 0.6 * window
    deeper = step_bytes(of(**SMALL | {"n_layers": 4}))[1] - window
    assert deeper == step_bytes(of(**SMALL | {"n_layers": 6}))[1] - window - deeper
    assert window > 32 * 50 * 4 + 2 * 32 * 16 * 4 * 8, "the logits, and eight rows a block at least"


def test_windows_go_in_groups_that_have_room_and_make_the_same_step(monkeypatch):
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: 0)
    config = of(12, **SMALL)
    state, window = step_bytes(config)
    assert windows_at_a_time(config, None) == 12 and 12 * window < ENOUGH
    assert windows_at_a_time(config, int((state + 5 * window) / 0.8)) == 4, "a divisor of twelve"
    assert windows_at_a_time(config, int((state + 1.5 * window) / 0.8)) == 1
    with pytest.raises(RequestError, match=r"a step takes [\d.]+ MB.*are free.*smaller data\.window"):
        windows_at_a_time(config, int((state + 0.5 * window) / 0.8))
    with pytest.raises(RequestError, match=r"are free\); give a smaller model$"):
        windows_at_a_time(config, state)


def test_of_several_processes_each_has_its_share_of_the_windows_and_of_a_sharded_model(monkeypatch):
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: 0)
    whole = of(12, **SMALL)
    parts = whole.updated("train", shard=True)
    state, window = step_bytes(whole)
    assert windows_at_a_time(whole, None, 4) == 3
    free, more = int((state / 4 + 1.2 * window) / 0.8), int((state / 6 + 2.2 * window) / 0.8)
    assert windows_at_a_time(parts, free, 4) == 1 and windows_at_a_time(parts, more, 6) == 2
    with pytest.raises(RequestError, match=r"in each of 4 processes.* or --shard$"):
        windows_at_a_time(whole, free, 4)
    with pytest.raises(RequestError, match=r"or train\.recompute$"):
        windows_at_a_time(parts, int((state / 4 + 0.5 * window) / 0.8), 4)


def test_a_gpu_takes_as_many_windows_as_its_memory_has_room_for(monkeypatch):
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: 0)
    monkeypatch.setattr("tformer.training.memory.ENOUGH", 0)
    config = of(12, **SMALL)
    state, window = step_bytes(config)
    free = int((state + 12 * window) / 0.8) + 1000
    assert windows_at_a_time(config, free, on_cpu=False) == 12 > windows_at_a_time(config, free)


def test_processes_of_one_machine_share_its_memory(place, monkeypatch):
    def prepared(ranks: Ranks) -> Config:
        return prepare(
            plan_training(TrainRequest(["a.txt"], init_from="base", ranks=ranks, device="cpu"))
        ).config

    state, window = step_bytes(prepared(Ranks()))
    assert state < window, "three windows and another state are not four windows"
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: 0)
    machine = int(2 * (state + 1.5 * window) / 0.8)
    monkeypatch.setattr("tformer.training.completed.free_bytes", lambda device, here: machine // here)
    for ranks, at_once in ((Ranks(), 2), (Ranks(1, 2, 0, 1), 0), (Ranks(1, 2, 1, 2), 1)):
        assert prepared(ranks).train.micro_batch_size == at_once, ranks


def test_what_cannot_fit_is_refused_before_anything_is_written_and_what_can_is_said(place, monkeypatch):
    monkeypatch.setattr("tformer.training.memory.judging_bytes", lambda vocab_size: 0)

    def with_free(n: int | None) -> None:
        for module in ("opening", "completed"):
            monkeypatch.setattr(f"tformer.training.{module}.free_bytes", lambda device, here: n)

    with_free(1000)
    _, said = train("--out", "none", code=2)
    assert "are free" in said and "give a smaller model" in said and not (place / "none").exists()
    config = of(vocab_size=40, n_ctx=64, n_layers=2, n_heads=2, d_model=16)
    state, window = step_bytes(config)
    with_free(int((state + 3 * window) / 0.8))
    result, said = train("--steps", 2, "--out", "few")
    assert ", 2 of 4 at a time" in said
    with_free(None)
    other, said = train("--steps", 2, "--out", "all")
    assert "at a time" not in said and other["val_loss"] == pytest.approx(result["val_loss"], rel=1e-3)
