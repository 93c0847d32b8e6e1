"""The model by the time: the rule, what stands beside it, and that a run has it, keeps it and says so."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import save_run, tiny_model
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError
from tformer.layers import flag_layer, merge, preset_layer
from tformer.text.tokenizer import Tokenizer
from tformer.training import by_time
from tformer.training.by_time import (
    HEAD,
    PARAMETERS_A_TOKEN,
    SHAPES,
    TOKENS_A_PARAMETER,
    TOKENS_A_STEP,
    Room,
    config_for,
    measured_flops,
    tokens_within,
)
from tformer.training.costs import flops_per_token
from tformer.training.plan import Plan, TrainRequest, plan_training
from tformer.yaml_text import parse_yaml

TEXT = "The quality of mercy is not strain'd,\nIt droppeth as the gentle rain from heaven\n" * 60
LINES = "\n".join(f"name{n}" for n in range(300)) + "\n"
GIGA = 1e9


def base(preset: str = "text") -> Config:
    """A preset's configuration, its vocabulary settled."""
    config = merge([preset_layer(preset)])
    return config.updated("model", vocab_size=2048)


def nothing_said(section: str, name: str) -> bool:
    return True


def blocks(config: Config) -> int:
    """Parameters of the blocks of a model without biases, by the formula."""
    return 12 * config.model.n_layers * config.model.d_model**2


ROOMS = st.builds(
    Room,
    seconds=st.floats(1, 1e5),
    flops=st.floats(1e8, 1e13),
    kind=st.sampled_from(["char", "word", "bpe"]),
    n_train=st.integers(2, 10**10),
    n_val=st.integers(0, 10**9),
)


@settings(max_examples=20)
@given(ROOMS, st.sampled_from(["text", "shakespeare", "tinyshakespeare"]))
def test_what_the_rule_finds_can_be_trained_and_is_not_larger_than_time_and_text(room, preset):
    config = config_for(room, base(preset), nothing_said)
    model, train = config.model, config.train
    assert (model.d_model, model.n_layers) in SHAPES and model.d_head == HEAD
    assert model.n_ctx < room.n_train and train.batch_size * model.n_ctx <= max(TOKENS_A_STEP, model.n_ctx)
    assert model.n_ctx <= (256 if room.kind == "char" and model.d_model >= 256 else 128)
    assert config_for(room, base(preset), nothing_said) == config
    if (model.d_model, model.n_layers) != SHAPES[0]:
        assert tokens_within(room, config) >= TOKENS_A_PARAMETER * blocks(config)
        assert blocks(config) <= PARAMETERS_A_TOKEN * room.n_train


@settings(max_examples=20)
@given(ROOMS, st.floats(1, 100))
def test_more_time_or_a_faster_machine_never_makes_it_smaller(room, factor):
    size = blocks(config_for(room, base(), nothing_said))
    for more in ({"seconds": room.seconds * factor}, {"flops": room.flops * factor}):
        larger = Room(**(room.__dict__ | more))
        assert blocks(config_for(larger, base(), nothing_said)) >= size


def test_what_is_read_many_times_gets_dropout_and_a_short_text_a_small_model():
    found = []
    for n_train in (10**8, 10**6, 250_000, 50_000):
        config = config_for(Room(300, 150 * GIGA, "char", n_train, 5000), base(), nothing_said)
        found.append((blocks(config), config.model.dropout))
    sizes, dropouts = zip(*found, strict=True)
    assert list(sizes) == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert list(dropouts) == sorted(dropouts) and dropouts[0] == 0 < dropouts[-1]


GIVEN = [
    "model.d_model=100",
    "model.d_model=90",
    "model.n_layers=7",
    "model.n_heads=3",
    "model.n_kv_heads=4",
    "model.n_kv_heads=4 model.d_model=512",
    "model.n_heads=6 model.n_kv_heads=6",
    "model.d_mlp=50",
    "model.n_ctx=48",
    "model.n_ctx=100 train.micro_batch_size=16",
    "model.dropout=0.35",
    "data.window=300",
    "data.window=64",
    "data.stride=290",
    "data.window=4096 model.n_ctx=4096",
    "train.batch_size=5",
    "train.micro_batch_size=7",
    "train.optimizer=adamw",
    "train.optimizer=muon",
    "train.lr=0.123 train.warmup_steps=77",
    "train.decay=cosine train.decay_fraction=0.3 train.lr_final=0.2",
    "train.weight_decay=0.5",
    "train.eval_every=9 train.checkpoint_every=8",
]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A working directory with nothing in it."""
    monkeypatch.chdir(tmp_path)


def planned(data: str, settings: str) -> Plan:
    """The plan of `tformer train DATA --minutes 5` with these settings."""
    layers = [flag_layer(settings.split(), {})]
    return plan_training(TrainRequest([data], layers, device="cpu", minutes=5))


@pytest.mark.parametrize("settings", GIVEN)
@pytest.mark.parametrize("data", ["a.txt", "shakespeare"])
@pytest.mark.parametrize("n_train", [50_000, 10**8])
def test_what_is_given_by_hand_stands_and_the_rest_goes_with_it(data, settings, n_train, empty):
    plan = planned(data, settings)
    config = plan.config.updated("model", vocab_size=2048)
    found = config_for(Room(3000, 300 * GIGA, "bpe", n_train, 5000), config, plan.leaves_open)
    for setting in settings.split():
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        assert str(getattr(getattr(found, section), name)) == value
    if "lr=" not in settings:
        most = 1e-3 if "adamw" in settings else by_time.MUON_LR[found.model.family]
        assert 0 < found.train.lr <= most and found.train.warmup_steps == by_time.SCHEDULE["warmup_steps"]


def test_a_model_that_memory_has_no_room_for_gives_way_to_a_smaller_one():
    room = Room(3000, 300 * GIGA, "bpe", 10**8, 5000)
    free = config_for(room, base(), nothing_said)
    found = config_for(room, base(), nothing_said, lambda config: config.model.d_model <= 128)
    assert found.model.d_model == 128 < free.model.d_model
    assert config_for(room, base(), nothing_said, lambda config: False).model.d_model == SHAPES[0][0]


# ---------------------------------------------------------------------------- the machine


class Clock:
    """It goes on by a second whenever it is asked."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("preset", ["text", "shakespeare"])
def test_the_speed_is_what_steps_of_a_small_model_take_and_leaves_no_trace(preset):
    config = base(preset).updated("train", precision="fp32", compile="off", kernels="blocks")
    before = torch.random.get_rng_state()
    flops = measured_flops(config, torch.device("cpu"), 1.0, Clock())
    assert torch.equal(before, torch.random.get_rng_state())
    shape = {"d_model": 128, "n_layers": 4, "n_heads": 2, "n_kv_heads": 0, "d_mlp": 0, "n_ctx": 128}
    model = config.updated("model", **shape).model
    # Three steps are counted: the clock is asked as they begin, after them, and when they are over.
    assert flops == pytest.approx(flops_per_token(model, 128) * TOKENS_A_STEP / (2 / 3))


# ---------------------------------------------------------------------------- through the command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A text, on a machine of which the speed is known, where any time has room for two steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "names.txt").write_text(LINES)
    monkeypatch.setattr("tformer.training.completed.measured_flops", lambda *args: 5e8)
    monkeypatch.setattr("tformer.training.budget.steps_within", lambda seconds, costs, train: 2)
    return tmp_path


def train(*args: object) -> tuple[dict, dict, str]:
    """`tformer train … --out run`: its settings, its result, what it said."""
    words = ["train", *map(str, args), "--out", "run", "--json", "--set", "train.precision=fp32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output or done.exception
    with open("run/tformer.yaml") as file:
        return parse_yaml(file.read(), ""), json.loads(done.stdout), " ".join(done.stderr.split())


def test_a_time_alone_chooses_the_model_which_is_said_recorded_and_kept(place, monkeypatch):
    own, result, said = train("a.txt", "--minutes", 5)
    assert (own["model"]["d_model"], own["model"]["n_layers"]) == SHAPES[0]
    assert "room for 2 layers, 64 wide" in said and result["steps"] == 2
    assert (
        own["model"]["dropout"] > 0 and own["train"]["decay_fraction"] == by_time.SCHEDULE["decay_fraction"]
    )
    assert "preset" not in own["record"]
    monkeypatch.setattr("tformer.training.completed.measured_flops", lambda *args: 1 / 0)
    again, result, said = train("a.txt", "--resume", "--minutes", 5)
    assert again["model"] == own["model"] and "room for" not in said and result["steps"] == 2


def test_settings_and_a_file_of_them_go_before_the_rule(place):
    (place / "own.yaml").write_text("model: {n_layers: 1}\n")
    wanted = ["--config", "own.yaml", "--lr", 0.004, "--set", "model.n_heads=3", "--set", "data.window=16"]
    own, _, said = train("a.txt", "--minutes", 5, *wanted)
    assert (own["model"]["n_layers"], own["model"]["d_model"], own["data"]["window"]) == (1, 66, 16)
    assert own["train"]["lr"] == 0.004 and own["train"]["batch_size"] == TOKENS_A_STEP // 16
    assert "1 layer, 66 wide, windows of 16, 128 a step" in said
    both = ["--set", "model.n_layers=1", "--set", "model.d_model=32", "--overwrite"]
    own, _, said = train("a.txt", "--minutes", 5, *both)
    assert own["model"]["d_model"] == 32 and own["model"]["n_heads"] == 4 and "room for" not in said


def test_the_machine_is_measured_and_a_text_to_validate_on_is_thought_of(place, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr("tformer.training.budget.steps_within", lambda seconds, costs, train: 2)
    (place / "other.txt").write_text(TEXT[::-1])
    window = ["--set", "data.window=1100", "--set", "data.vocab_size=300"]
    own, _, said = train("a.txt", "--minutes", 0.2, "--val-data", "other.txt", "--tokenizer", "char", *window)
    assert "windows of 1100, 1 a step" in said and own["model"]["n_ctx"] == 1100
    monkeypatch.setattr("tformer.training.by_time.free_bytes", lambda device: 1000)
    done = CliRunner().invoke(app, ["train", "a.txt", "--minutes", "5", "--out", "no"])
    assert "give a smaller model" in str(done.exception) and not (place / "no").exists()


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_every_kind_of_token_and_a_folder_of_ids_has_it(place, kind):
    (place / "a.txt").write_text(TEXT * 8)
    small = ["--set", "data.vocab_size=300"]
    own, _, _ = train("a.txt", "--minutes", 5, "--tokenizer", kind, *small)
    assert own["model"]["n_ctx"] == by_time.WINDOW
    tokenizer = ["--tokenizer", "run", "--processes", "1"]
    done = CliRunner().invoke(app, ["tokenize", "a.txt", *tokenizer, "--out", "ids/"])
    assert done.exit_code == 0, done.output
    ids, _, said = train("ids/", "--minutes", 5, "--tokenizer", "run", "--overwrite")
    assert ids["model"]["n_ctx"] == own["model"]["n_ctx"] and "the time has room for" in said


def test_a_preset_a_list_and_a_trained_model_keep_theirs(place):
    small = ["--set", "model.n_layers=1", "--set", "model.n_heads=1", "--set", "model.d_model=8"]
    _, _, said = train("a.txt", "--minutes", 5, "--preset", "text", *small)
    assert "room for" not in said
    own, _, said = train("names.txt", "--minutes", 5, "--overwrite", *small)
    assert own["record"]["preset"] == "list" and "room for" not in said
    tokenizer = Tokenizer.train("char", [TEXT])
    save_run(place / "older", tiny_model(vocab_size=tokenizer.vocab_size, n_ctx=16), tokenizer)
    _, _, said = train("a.txt", "--minutes", 5, "--overwrite", "--init-from", "older")
    assert "room for" not in said


def test_a_text_of_a_line_has_a_window_and_one_of_nothing_is_refused(place):
    (place / "a.txt").write_text("To be, or not to be, that is the question.\n")
    own, _, _ = train("a.txt", "--minutes", 5, "--tokenizer", "char")
    assert own["model"]["n_ctx"] == 8
    (place / "a.txt").write_text("a")
    done = CliRunner().invoke(app, ["train", "a.txt", "--minutes", "5", "--out", "no", "--tokenizer", "char"])
    assert isinstance(done.exception, RequestError) and not (place / "no").exists()
