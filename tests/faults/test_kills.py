"""A process is killed before any file operation of a run: the same command goes on, to the same bits."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.faults.kill import run

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied to be killed"),
    pytest.mark.timeout(600),
]

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 10
SETTINGS = {
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.d_model": 8,
    "model.n_ctx": 8,
    "model.dropout": 0.1,
    "train.warmup_steps": 1,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.checkpoint_every": 2,
}
TRAIN = ["train", "text.txt", "--out", "run", "--device", "cpu", "--precision", "fp32", "--no-compile"]
TRAIN += ["--tokenizer", "char", "--batch-size", "2", "--steps", "6"]
TRAIN += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
ANOTHER = [*TRAIN, "--seed", "5"]  # an older run that is overwritten
SAMPLE = ["sample", "--run", "run", "T", "--max-tokens", "2", "--device", "cpu"]


def place(folder: Path) -> Path:
    """A folder with a text."""
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    return folder


def state(folder: Path) -> tuple[object, ...]:
    """What must not depend on whether it was interrupted: weights, the newest checkpoint, and metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = max((folder / "checkpoints").iterdir())
    files = [folder / "model.safetensors", *sorted(newest.glob("*.safetensors"))]
    return (
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        newest.name,
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, tuple[object, ...]]]:
    """A folder with the older run, and what both runs come to when nothing interrupts them."""
    folder = place(tmp_path_factory.mktemp("kills") / "here")
    ends = {}
    for name, command in (("new", TRAIN), ("old", ANOTHER)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        code, said = run(command, folder)
        assert code == 0, said
        ends[name] = state(folder / "run")
    return folder, ends


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def left_behind(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob(".t*")]


# Every operation has its turn in the exhaustive test; the ordinary one takes some.
SOME = (2, 4, 7, 11, 16, 22, 27, 34, 48, 70)


ALL = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]
EVERY = pytest.param(range(1, 1000), id="every", marks=ALL)
each = pytest.mark.parametrize("turns", [EVERY, pytest.param(SOME, id="some")])


@each
def test_a_run_that_is_killed_anywhere_is_continued_by_the_same_command_to_the_bit(turns, made, tmp_path):
    for turn in turns:
        folder = place(tmp_path / str(turn))
        killed, said = run([*TRAIN, "--resume"], folder, turn)
        if killed != -9:
            assert killed == 0, said
            break
        code, said = run([*TRAIN, "--resume"], folder)
        assert code == 0, f"killed at {turn}: {said}"
        assert state(folder / "run") == made[1]["new"], f"killed at {turn}"
        assert left_behind(folder) == [], f"killed at {turn}"
        shutil.rmtree(folder)
    assert turn > 60, "a run has that many operations"


@each
def test_a_run_that_is_overwritten_is_there_until_the_new_one_has_weights(turns, made, tmp_path):
    for turn in turns:
        folder = place(tmp_path / str(turn))
        shutil.copytree(made[0] / "run", folder / "run")
        killed, said = run([*TRAIN, "--overwrite"], folder, turn)
        if killed != -9:
            assert killed == 0, said
            break
        code, said = run(SAMPLE, folder)
        assert code == 0, f"killed at {turn}: {said}"
        if weights_of(folder / "run") == made[1]["old"][2][0]:
            assert state(folder / "run") == made[1]["old"], f"killed at {turn}"
        else:
            code, said = run([*TRAIN, "--resume"], folder)
            assert code == 0 and state(folder / "run") == made[1]["new"], f"killed at {turn}: {said}"
        code, said = run([*TRAIN, "--overwrite"], folder)
        assert code == 0 and state(folder / "run") == made[1]["new"], f"killed at {turn}: {said}"
        assert left_behind(folder) == [], f"killed at {turn}"
        shutil.rmtree(folder)
    assert turn > 60, "a run has that many operations"
