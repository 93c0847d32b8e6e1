"""A reader beside a trainer that begins again over its run has one run or the other, never half of each."""

import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from tests.faults.tiny import TRAIN, trained
from tformer.cli import app
from tformer.errors import RequestError, TformerError
from tformer.run import loaded
from tformer.run.loaded import load_run
from tformer.run.swap import WHOLE, take_place

NEW = "0123456789 " * 80


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs whose texts share no letter, and whose models have the same shapes; `run` is the old one."""
    folder = tmp_path_factory.mktemp("runs") / "here"
    same = [*TRAIN, "--set", "model.vocab_size=64", "--out"]
    trained(folder, [*same, "old"])
    with chdir(folder):
        Path("text.txt").write_text(NEW)
        app([*same, "new"], standalone_mode=False)
        shutil.copytree("old", "run")
    return folder


def replace() -> None:
    """As `train --overwrite` does it."""
    shutil.copytree("new", "run/.tmp-run")
    take_place(Path("run"))


def is_whole(run: loaded.LoadedRun) -> bool:
    """Whether model and tokenizer are those of one run."""
    for name in ("old", "new"):
        one = load_run(Path(name))
        if run.weights_sha256 == one.weights_sha256:
            same = all(map(lambda a, b: a.equal(b), run.model.parameters(), one.model.parameters()))
            return same and run.tokenizer.to_json() == one.tokenizer.to_json()
    return False


@pytest.mark.parametrize("at", ["read_record", "weights_hash", "load_model", "end_ids"])
def test_a_run_that_is_replaced_while_it_is_read_is_read_again(at, here, monkeypatch):
    real, done = getattr(loaded, at), []

    def then_replaced(*arguments):
        found = real(*arguments)
        if not done:
            done.append(at)
            replace()
        return found

    monkeypatch.setattr(loaded, at, then_replaced)
    run = load_run(Path("run"))
    assert done and is_whole(run)


def test_a_run_that_is_replaced_after_it_was_read_is_what_it_was(here):
    run = load_run(Path("run"))
    replace()
    assert is_whole(run) and run.tokenizer.decode(run.tokenizer.encode("To be")) == "To be"


def test_what_cannot_be_read_in_between_is_read_again(here, monkeypatch):
    """The configuration of one run and the weights of the other need not go together."""
    real, done = loaded.load_model, []

    def refused(*arguments):
        if not done:
            done.append(1)
            replace()
            raise RequestError("run has tensors too many")
        return real(*arguments)

    monkeypatch.setattr(loaded, "load_model", refused)
    assert is_whole(load_run(Path("run")))


def test_what_is_damaged_is_refused_and_not_read_for_ever(here):
    Path("run/model.safetensors").write_bytes(b"half")
    with pytest.raises(RequestError, match="is it whole"):
        load_run(Path("run"))


def test_a_run_that_is_held_up_on_its_way_is_said(here, monkeypatch):
    monkeypatch.setattr(loaded, "recover", lambda folder: None)  # whoever moves it is alive, and stopped
    shutil.copytree("new", Path("run") / WHOLE)
    with pytest.raises(TformerError, match="another run is on its way into run; try again"):
        load_run(Path("run"))
    shutil.rmtree(Path("run") / WHOLE)
    assert is_whole(load_run(Path("run")))
