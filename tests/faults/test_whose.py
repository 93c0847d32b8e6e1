"""A checkpoint says whose it is: nobody goes on with another's, and what cannot be read now is not damage."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.faults.tiny import ANOTHER, TRAIN, edited, trained
from tformer.cli import app
from tformer.errors import RequestError, TformerError

MORE = [*TRAIN, "--resume", "--steps", "8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs of one text, which differ in their seed, with checkpoints of steps 4 and 6."""
    return trained(tmp_path_factory.mktemp("whose") / "here", TRAIN, [*ANOTHER, "--out", "other"])


def train(*arguments: str) -> None:
    app([*arguments], standalone_mode=False)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def change_record(run: Path, section: str, **changes) -> None:
    values = yaml.safe_load((run / "tformer.yaml").read_text())
    values[section] |= changes
    (run / "tformer.yaml").write_text(yaml.safe_dump(values))


# ---------------------------------------------------------------------------- another's


def test_a_checkpoint_of_another_run_is_refused_by_name(here):
    shutil.rmtree(here / "run" / "checkpoints")
    shutil.copytree(here / "other" / "checkpoints", here / "run" / "checkpoints")
    before = (here / "run" / "model.safetensors").read_bytes()
    with pytest.raises(RequestError, match=r"checkpoint of another run \(run .*train\.seed 5, here"):
        train(*MORE)
    assert (here / "run" / "model.safetensors").read_bytes() == before


def test_a_setting_changed_by_hand_is_named(here):
    change_record(here / "run", "train", weight_decay=0.5)
    with pytest.raises(RequestError, match=r"another run \(train\.weight_decay [\d.e-]+, here it is 0\.5\)"):
        train(*MORE)


def test_another_tokenizer_is_refused(here):
    path = here / "run" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(RequestError, match=r"tokenizer\.json is not the one that this run was trained with"):
        train(*MORE)


def test_a_checkpoint_of_an_older_version_says_nothing_and_is_taken(here, capsys):
    for checkpoint in (here / "run" / "checkpoints").iterdir():
        edited(checkpoint, owner=None)
    change_record(here / "run", "record", id=None)
    train(*MORE)
    assert "continuing after step 6" in capsys.readouterr().err


def test_checkpoints_that_are_a_link_go_with_the_run_that_is_overwritten(here):
    """The link goes and what it leads to stays; nothing of it can be taken for the new run's."""
    shutil.move(here / "run" / "checkpoints", here / "disk")
    (here / "run" / "checkpoints").symlink_to(here / "disk")
    train(*ANOTHER, "--overwrite")
    assert not (here / "run" / "checkpoints").is_symlink()
    assert (here / "disk" / "step-00000006").exists()
    assert json.loads((newest(here / "run") / "manifest.json").read_text())["seed"] == 5


# ---------------------------------------------------------------------------- not damaged


def test_a_checkpoint_of_a_newer_version_is_refused_and_stays(here):
    edited(newest(here / "run"), format=2)
    with pytest.raises(TformerError, match=r"newer tformer \(format 2, this version reads 1\); upgrade"):
        train(*MORE)
    assert newest(here / "run").name == "step-00000006"


def test_a_checkpoint_that_cannot_be_read_now_ends_it_and_stays(here, monkeypatch):
    reads = Path.read_bytes

    def read(path):
        if path.parent.name == "step-00000006" and path.name == "optimizer.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return reads(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(TformerError, match=r"step-00000006 \(Input/output error\); .*try again"):
        train(*MORE)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    train(*MORE)
    assert newest(here / "run").name == "step-00000008"


def test_a_damaged_checkpoint_is_put_aside_and_not_removed(here, capsys):
    damaged = newest(here / "run") / "optimizer.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    train(*TRAIN, "--resume")
    assert "passed over a checkpoint: step-00000006: optimizer" in capsys.readouterr().err
    names = sorted(p.name for p in (here / "run" / "checkpoints").iterdir())
    assert names == ["damaged-step-00000006", "step-00000004", "step-00000006"]
    train(*MORE)
    assert (here / "run" / "checkpoints" / "damaged-step-00000006").exists(), "and it stays there"
