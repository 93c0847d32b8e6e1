"""What processes that were killed left goes with the next start, and nothing of a living one does."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults.kill import run as in_a_copy
from tests.faults.tiny import TRAIN, trained
from tformer.cli import app
from tformer.errors import RequestError
from tformer.files import write_file
from tformer.run.checkpoint import open_run
from tformer.temporary import DAY, remove_left


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("made") / "here", TRAIN)


def leave(run: Path) -> None:
    (run / ".tmp-1-model.safetensors").write_bytes(b"half")
    (run / ".tmp-run").mkdir()
    (run / ".tmp-run" / "config.json").write_bytes(b"half")
    (run / ".tmp-notes").write_bytes(b"somebody's")
    (run / "notes.txt").write_bytes(b"somebody's")


def test_what_killed_processes_left_goes_with_the_next_start(here):
    leave(here / "run")
    app([*TRAIN, "--resume"], standalone_mode=False)
    assert {p.name for p in (here / "run").glob(".t*")} == {".tmp-notes"}
    assert (here / "run" / "notes.txt").exists()


def test_what_a_living_process_writes_is_left_alone(here):
    with open_run(here / "run"):
        leave(here / "run")
        with pytest.raises(RequestError, match="is being written by another process"):
            app([*TRAIN, "--resume"], standalone_mode=False)
        assert (here / "run" / ".tmp-1-model.safetensors").exists()
        assert (here / "run" / ".tmp-run").exists()


# ---------------------------------------------------------------------------- beside any file that is written


def temporaries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith(".tmp-"))


def writing(path: Path, meanwhile) -> None:
    """Write a file in pieces, in a process of its own that is alive while something happens here."""
    ready, told = os.pipe()
    done, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tells)
        write_file(path, lambda file: (file.write(b"whole"), os.write(told, b"x"), os.read(done, 1)))
        os._exit(0)
    os.read(ready, 1)
    try:
        meanwhile(child)
    finally:
        os.close(tells)
    os.waitpid(child, 0)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied")


@needs_fork
def test_the_next_writer_of_a_file_removes_what_one_left_that_was_killed(tmp_path):
    writing(tmp_path / "t.json", lambda child: os.kill(child, signal.SIGKILL))
    assert len(temporaries(tmp_path)) == 1
    (tmp_path / ".tmp-7-0123abcd-other.json").touch()  # of another file
    (tmp_path / ".tmp-7-t.json").touch()  # as versions before this one named it
    write_file(tmp_path / "t.json", b"new")
    assert temporaries(tmp_path) == [".tmp-7-0123abcd-other.json"]
    assert (tmp_path / "t.json").read_bytes() == b"new"


@needs_fork
def test_a_living_writer_keeps_its_file_beside_another_writer_and_a_trainer_that_begins(here):
    def meanwhile(child):
        write_file(here / "run" / "report.html", b"another")
        app([*TRAIN, "--resume"], standalone_mode=False)
        assert len(temporaries(here / "run")) == 1

    writing(here / "run" / "report.html", meanwhile)
    assert (here / "run" / "report.html").read_bytes() == b"whole"
    assert temporaries(here / "run") == []


def test_without_locks_only_an_old_file_is_taken_for_one_that_was_left(tmp_path, monkeypatch):
    def none(descriptor):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("tformer.temporary._take", none)
    for name, age in ((".tmp-1-new", 60.0), (".tmp-1-old", DAY + 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
        remove_left(tmp_path / name)
    assert temporaries(tmp_path) == [".tmp-1-new"]
    write_file(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_temporary_link_leads_nowhere(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".tmp-1-a").symlink_to(tmp_path / "mine")
    write_file(tmp_path / "a", b"whole")
    assert (tmp_path / "mine").read_bytes() == b"mine"


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_file(tmp_path, number):
    (tmp_path / "a.txt").write_text("To be, or not to be\n" * 20)

    def interrupted():
        def write(path, write):
            return write_file(path, lambda file: (file.write(b"half"), os.kill(os.getpid(), number)))

        patch = pytest.MonkeyPatch()
        patch.setattr("tformer.commands.tokenize_train.write_file", write)  # where it is used

    train = ["tokenize", "--train", "a.txt", "--tokenizer", "char", "--out", "t.json"]
    assert in_a_copy(train, tmp_path, prepare=interrupted) == (128 + number, "")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_estimate_removes_what_one_left_that_was_killed(here, monkeypatch):
    (here / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(here / "tmp"))
    for name in ("dead", "new", "living"):
        (here / "tmp" / f"tformer-estimate-{name}" / "run").mkdir(parents=True)
        if name != "new":
            os.utime(here / "tmp" / f"tformer-estimate-{name}", (time.time() - 600,) * 2)
    with open_run(here / "tmp" / "tformer-estimate-living" / "run"):
        os.utime(here / "tmp" / "tformer-estimate-living", (time.time() - 600,) * 2)
        app([*TRAIN[:2], *TRAIN[4:], "--estimate"], standalone_mode=False)
        assert {p.name for p in (here / "tmp").glob("tformer-*")} == {  # a compiler has its own there
            "tformer-estimate-new",
            "tformer-estimate-living",
        }
