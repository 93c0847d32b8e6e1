"""What processes that were killed left in a run goes when the next one holds it, and nothing else does."""

from pathlib import Path

import pytest

from tests.faults.test_kills import TRAIN, place
from tformer.cli import app
from tformer.errors import RequestError
from tformer.run.checkpoint import open_run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(place(tmp_path / "here"))
    app(TRAIN, standalone_mode=False)
    return tmp_path / "here"


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
