"""Runs on disk: what is written comes back to the bit, and whatever breaks, nothing is lost in silence."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_model
from tformer.config import Config, TrainConfig
from tformer.errors import RequestError, TformerError
from tformer.layers import flag_layer
from tformer.run.checkpoint import Run, open_run
from tformer.run.data import prepare_data
from tformer.run.record import read_record
from tformer.show.training import draw_last
from tformer.text.tokenizer import Tokenizer
from tformer.training.fit import State
from tformer.training.opening import Prepared, open_session
from tformer.training.optim import Optimizers
from tformer.training.session import Session
from tformer.training.settings import decide, resume_config

pytestmark = pytest.mark.drawn

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 4
KINDS = {
    "gpt2-adamw-dropout": {"model": {"family": "gpt2", "dropout": 0.2}, "train": {"optimizer": "adamw"}},
    "nanochat-muon": {"model": {"family": "nanochat"}, "train": {"optimizer": "muon"}},
}
CHECKPOINT = ("manifest.json", "model.safetensors", "optimizer.safetensors")


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def config(kind: str = "gpt2-adamw-dropout", **train) -> Config:
    small = {"n_ctx": 8, "n_layers": 1, "n_heads": 2, "d_model": 8}
    steps = {
        "steps": 8,
        "batch_size": 2,
        "warmup_steps": 2,
        "checkpoint_every": 2,
        "eval_every": 3,
        "log_every": 1,
        "precision": "fp32",
        "compile": "off",
    }
    settled = {"documents": "file", "val_split": "end"}  # as a run on one text has settled it
    sections = {"model": small | KINDS[kind]["model"], "train": steps | KINDS[kind]["train"] | train}
    return Config.model_validate(sections | {"data": settled})


def begin(run: Run, text: Path, wanted: Config) -> Session:
    """What `tformer train` does, with or without --resume."""
    tokenizer = Tokenizer.load(run.folder) if (run.folder / "tokenizer.json").exists() else None
    data = prepare_data(wanted, [str(text)], tokenizer, run.record().data)
    return open_session(run, Prepared(decide(wanted, CPU, data.tokenizer.vocab_size), data, CPU))


def train(folder: Path, text: Path, wanted: Config, until: int = 0, killed_after: int = 0) -> Session:
    """Train to the end, or be stopped by a signal after `until`, or by a kill after `killed_after`."""
    with open_run(folder) as run:
        session = begin(run, text, wanted)
        for done in session.train(stop=lambda: session.state.step == until):
            if done.state.step == killed_after:
                break  # nothing after the yield happens
        return session


def read(folder: Path, wanted: Config, vocab_size: int):
    """The checkpoint that a resumed run would take, and the problems on the way to it."""
    model = tiny_model(**wanted.model.model_dump() | {"vocab_size": vocab_size})
    with open_run(folder) as run:
        return run.read_checkpoint(model)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def metrics(folder: Path) -> list[dict]:
    """All but the seconds, which are the clock's."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


# ---------------------------------------------------------------------------- what is written comes back


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_holds_weights_optimizer_and_state_to_the_bit(model, optimizer, tmp_path):
    optimizers = Optimizers(model, TrainConfig.model_validate({"optimizer": optimizer}))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step(0.1)
    state = State(step=12, tokens=99, seconds=0.1 + 0.2, evals_since_best=1)  # best_val_loss is infinite
    with open_run(tmp_path) as run:
        tensors = optimizers.state_tensors()
        folder = run.write_checkpoint(model, tensors, state.as_dict(), 2, {"seed": 7})
        found, problems = run.read_checkpoint(model)
    assert folder == tmp_path / "checkpoints" / "step-00000012"
    assert (found.step, problems, found.manifest["seed"]) == (12, [], 7)
    assert State.from_dict(found.state) == state
    for tensors, expected in (
        (found.model, model.state_dict()),
        (found.optimizer, optimizers.state_tensors()),
    ):
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensors[name], tensor), name
            assert tensors[name].dtype == tensor.dtype, name


def test_a_run_without_checkpoints_has_none_and_no_problem(tmp_path):
    with open_run(tmp_path / "new" / "run") as run:
        assert run.read_checkpoint(tiny_model()) == (None, [])


def test_a_run_directory_holds_what_the_contract_says_and_no_pickle(tmp_path, text):
    folder = tmp_path / "run"
    session = train(folder, text, config())
    session.finish()
    draw_last(session)
    top = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "tformer.yaml",
        "metrics.jsonl",
        "loss.svg",
        "report.html",
        "README.md",
    }
    checkpoints = {f"checkpoints/step-0000000{n}/{name}" for n in (6, 8) for name in CHECKPOINT}
    assert files(folder) == top | checkpoints
    for path in map(folder.joinpath, files(folder)):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            n_header = int.from_bytes(data[:8], "little")
            said = json.loads(data[8 : 8 + n_header])["__metadata__"]
            seal = said.pop("tformer_sha256", None)
            assert said == {"format": "pt"} and (seal is None) == (path.name == "optimizer.safetensors")
            blank = data.replace(seal.encode(), b"0" * 64) if seal else b""
            assert seal in (None, hashlib.sha256(blank).hexdigest())
        elif path.suffix == ".json":
            assert isinstance(json.loads(data), dict)
        else:
            assert data.decode(), f"{path.name} is text"
    assert (folder / "loss.svg").read_text().rstrip().endswith("</svg>")
    first, *_, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert list(first) == ["step", "tokens", "seconds", "loss", "lr", "grad_norm"]
    assert list(last) == [*first, "val_loss", "bits_per_byte"]
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["stopped", "stopped twice", "killed", "killed before the first checkpoint"])
def test_a_resumed_run_is_the_uninterrupted_run_to_the_bit(kind, how, tmp_path, text):
    whole, resumed, wanted = tmp_path / "whole", tmp_path / "resumed", config(kind)
    train(whole, text, wanted)
    for interruption in {
        "stopped": [{"until": 3}],
        "stopped twice": [{"until": 3}, {"until": 5}],
        "killed": [{"killed_after": 7}],
        "killed before the first checkpoint": [{"killed_after": 1}],
    }[how]:
        train(resumed, text, wanted, **interruption)
        torch.rand(5)  # the process that goes on has another past
    session = train(resumed, text, wanted)
    assert session.state.tokens == 8 * 2 * 8
    assert metrics(resumed) == metrics(whole)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [folder / "checkpoints" / "step-00000008" / name for folder in (whole, resumed)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_stopped_run_is_a_model_directory(tmp_path, text):
    train(tmp_path / "run", text, config(), until=1)
    assert "checkpoints/step-00000001/manifest.json" in files(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_that_is_stopped_again_has_its_newest_weights_while_none_is_best(keep, tmp_path, text):
    wanted = config(keep=keep, eval_every=0)
    for step in (3, 5):
        train(tmp_path, text, wanted, until=step)
        saved = tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors"
        assert (tmp_path / "model.safetensors").read_bytes() == saved.read_bytes()


# ---------------------------------------------------------------------------- damage


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the parsed manifest."""

    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def flip(name: str, at: float) -> Callable[[Path], None]:
    """Turn one bit at a fraction of the file's length."""

    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(at * len(data))] ^= 1
        (folder / name).write_bytes(data)

    return apply


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def zero(name: str) -> Callable[[Path], None]:
    """A file of the right length that was never filled: what a lost write leaves."""
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE = {
    **{f"bit of {name} at {at}": flip(name, at) for name in CHECKPOINT for at in (0, 0.5, 0.999)},
    **{f"{name} cut": cut(name) for name in CHECKPOINT},
    **{f"{name} missing": remove(name) for name in CHECKPOINT},
    **{f"{name} of zeros": zero(name) for name in CHECKPOINT},
    "manifest a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest huge": lambda folder: (folder / "manifest.json").write_bytes(b" " * (2 << 20)),
    "manifest deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "older format": edit(lambda m: m.update(format=0)),
    "no format": edit(lambda m: m.pop("format")),
    "no files": edit(lambda m: m.pop("files")),
    "files a list": edit(lambda m: m.update(files=[1])),
    "a file's facts a number": edit(lambda m: m["files"].update({"model.safetensors": 1})),
    "no state": edit(lambda m: m.pop("state")),
    "state a number": edit(lambda m: m.update(state=1)),
    "state with an unknown key": edit(lambda m: m["state"].update(nobody=1)),
    "state of another step": edit(lambda m: m["state"].update(step=3)),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Config, int]:
    """A run with checkpoints of steps 2 and 4; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT)
    session = train(folder / "run", folder / "text.txt", config(steps=4))
    return folder / "run", session.config, session.config.model.vocab_size


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, Config, int]:
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", *finished[1:]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(damage, copied):
    damage(copied[0] / "checkpoints" / "step-00000004")
    found, problems = read(*copied)
    assert found.step == 2
    assert len(problems) == 1 and problems[0].startswith("step-00000004: ")


def test_no_bit_of_a_manifest_can_turn_unnoticed(copied):
    path = copied[0] / "checkpoints" / "step-00000004" / "manifest.json"
    whole = path.read_bytes()
    model = tiny_model(**copied[1].model.model_dump())
    with open_run(copied[0]) as run:
        for at in range(0, len(whole), 17):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert run.read_checkpoint(model)[0].step == 2, f"byte {at}"


@pytest.mark.parametrize(
    "damage", [cut("model.safetensors"), remove("manifest.json")], ids=["cut", "missing"]
)
def test_a_run_whose_every_checkpoint_is_damaged_never_starts_from_zero(damage, copied, text):
    for checkpoint in (copied[0] / "checkpoints").iterdir():
        damage(checkpoint)
    before = (copied[0] / "metrics.jsonl").read_bytes()
    with pytest.raises(TformerError, match=r"step-00000004: .*step-00000002: "):
        train(copied[0], text, copied[1])
    assert (copied[0] / "metrics.jsonl").read_bytes() == before


def test_training_goes_on_over_a_damaged_checkpoint_and_replaces_it(copied, text):
    whole = (copied[0] / "checkpoints" / "step-00000004" / "optimizer.safetensors").read_bytes()
    flip("optimizer.safetensors", 0.7)(copied[0] / "checkpoints" / "step-00000004")
    session = train(copied[0], text, copied[1])
    assert len(session.warnings) == 1
    assert (copied[0] / "checkpoints" / "step-00000004" / "optimizer.safetensors").read_bytes() == whole
    assert read(*copied)[1] == []


def test_pruning_never_removes_the_checkpoint_just_written_for_damaged_newer_ones(tmp_path, text):
    wanted = config(keep_checkpoints=3)
    vocab_size = train(tmp_path, text, wanted, until=6).config.model.vocab_size  # 2, 4 and 6
    for step in (4, 6):
        cut("model.safetensors")(tmp_path / "checkpoints" / f"step-0000000{step}")
    train(tmp_path, text, config(keep_checkpoints=2), until=3)
    found, _ = read(tmp_path, wanted, vocab_size)
    assert found.step == 3


# ---------------------------------------------------------------------------- what may change on resume


def resumed(copied, *settings: str) -> Config:
    return resume_config(read_record(copied[0]), [flag_layer(settings, {})])


def test_more_steps_may_be_asked_of_a_run(copied, text):
    wanted = resumed(copied, "train.steps=6", "train.log_every=2", "train.lr=1e-3")  # lr is what it was
    assert wanted == copied[1].updated("train", steps=6, log_every=2)
    session = train(copied[0], text, wanted)
    assert session.state.step == 6
    assert [line["step"] for line in metrics(copied[0])] == [1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    "setting",
    [
        "train.optimizer=muon",
        "train.seed=1",
        "train.batch_size=4",
        "model.n_layers=2",
        "model.family=nanochat",
        "data.val_fraction=0.2",
        # Zero and false are values like any others, where they do not mean "the default".
        "train.weight_decay=0",
        "train.grad_clip=0",
        "train.warmup_steps=0",
        "model.dropout=0",
        "model.bias=false",
        "data.val_fraction=0",
    ],
)
def test_a_setting_that_would_make_another_run_is_refused_by_name(setting, copied):
    with pytest.raises(RequestError, match=setting.partition("=")[0].replace(".", r"\.")):
        resumed(copied, setting)


@pytest.mark.parametrize("setting", ["model.vocab_size=0", "model.d_mlp=0", "train.precision=auto"])
def test_a_setting_left_to_the_program_is_what_it_was(setting, copied):
    assert resumed(copied, setting) == copied[1]


def test_other_data_is_refused(copied, text):
    before = files(copied[0]), (copied[0] / "metrics.jsonl").read_bytes()
    text.write_text(TEXT.replace("question", "noitseuq"))
    with pytest.raises(RequestError, match="data of this run has changed"):
        train(copied[0], text, copied[1])
    assert (files(copied[0]), (copied[0] / "metrics.jsonl").read_bytes()) == before


def test_a_finished_run_takes_no_step_and_changes_no_weight(copied, text):
    before = {name: (copied[0] / name).read_bytes() for name in files(copied[0]) if name != "tformer.yaml"}
    session = train(copied[0], text, copied[1])
    assert session.state.step == 4
    assert {name: (copied[0] / name).read_bytes() for name in before} == before


def test_a_finished_run_of_which_more_is_asked_is_unfinished_until_it_is_done(copied, text):
    folder = copied[0]
    with open_run(folder) as run:
        begin(run, text, copied[1]).finish()
    assert read_record(folder).is_finished
    train(folder, text, resumed(copied, "train.steps=8"), until=5)
    assert not read_record(folder).is_finished


def test_a_run_that_lost_patience_is_done(tmp_path, text, monkeypatch):
    monkeypatch.setattr(Session, "validate", lambda self: (1.0, 1.0))
    wanted = config(eval_every=1, patience=2)
    assert train(tmp_path, text, wanted).state.step == 3
    assert train(tmp_path, text, wanted).state.step == 3, "resuming it takes no further step"
