"""A run that goes on elsewhere says so, and its record does not say what is not so."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.faults.tiny import TRAIN, trained
from tformer.cli import app


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("made") / "here", TRAIN)


def record() -> dict:
    return yaml.safe_load(Path("run/tformer.yaml").read_text())["record"]


def resumed(capsys, steps: int) -> list[str]:
    capsys.readouterr()
    app([*TRAIN, "--resume", "--steps", str(steps)], standalone_mode=False)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


def test_a_run_that_goes_on_elsewhere_says_so_once(here, capsys):
    path = here / "run" / "tformer.yaml"
    values = yaml.safe_load(path.read_text())
    values["record"] |= {"device": "cuda", "threads": 64}
    values["record"]["versions"]["torch"] = "1.0"
    path.write_text(yaml.safe_dump(values))
    torch_now, threads = torch.__version__, torch.get_num_threads()
    (warning,) = resumed(capsys, 7)
    for part in (f"torch 1.0, now {torch_now}", "device cuda, now cpu", f"threads 64, now {threads}"):
        assert part in warning
    (session,) = record()["sessions"]
    assert (session["after_step"], session["device"], session["threads"]) == (6, "cpu", threads)
    assert session["versions"]["torch"] == torch_now
    assert record()["device"] == "cuda", "of the session that began it"
    assert resumed(capsys, 8) == [], "it is as it was before"
    assert len(record()["sessions"]) == 1


def test_a_run_that_goes_on_where_it_was_says_nothing(here, capsys):
    assert resumed(capsys, 7) == []
    assert "sessions" not in record()
