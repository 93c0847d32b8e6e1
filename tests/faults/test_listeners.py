"""Nothing that is for people ends a training, and whatever else ends it, its last step is saved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import start
from tests.faults.tiny import TRAIN, place, state
from tformer.answer import investigate
from tformer.cli import app
from tformer.errors import TformerError
from tformer.show import training as show
from tformer.training.session import Session

UNSAVED = ["--set", "train.checkpoint_every=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A place with a run in it for which all went well."""
    with pytest.MonkeyPatch.context() as patch:
        folder = place(tmp_path_factory.mktemp("trained") / "here")
        patch.chdir(folder)
        train()
    return folder


@pytest.fixture(scope="module")
def whole(trained) -> tuple[object, ...]:
    """What the run comes to then."""
    return state(trained / "run")


@pytest.fixture
def with_run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "here"))


def train(*arguments: str) -> None:
    app([*TRAIN, *arguments], standalone_mode=False)


def process(here: Path, arguments=TRAIN, **how) -> subprocess.Popen:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
    return start(arguments, here, clean | {"OMP_NUM_THREADS": "1"}, **how)


# ---------------------------------------------------------------------------- lines


@pytest.mark.parametrize("lines", [0, 2])
def test_training_goes_on_when_nobody_reads_its_lines_any_more(lines, here, whole):
    running = process(here, fresh=lines == 0, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    for _ in range(lines):
        running.stderr.readline()
    running.stderr.close()
    assert running.wait(timeout=120) == 141
    assert state(here / "run") == whole


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_training_goes_on_when_its_lines_find_no_room(here, whole):
    with open("/dev/full", "w") as full:
        assert process(here, stderr=full, stdout=subprocess.DEVNULL).wait(timeout=120) == 141
    assert state(here / "run") == whole


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminal to take away")
def test_training_goes_on_when_its_terminal_goes_away(here, whole):
    ours, theirs = os.openpty()
    running = process(here, stderr=theirs, stdout=subprocess.DEVNULL, start_new_session=True)
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    assert running.wait(timeout=120) == 141
    assert state(here / "run") == whole


JUDGE = ["eval", "loss", "--run", "run", "--device", "cpu"]
OTHERS = {  # what is on stdout then
    "eval": ([*JUDGE, "--json"], '"perplexity"'),
    "sample": (["sample", "T", "--run", "run", "--max-tokens", "3", "--device", "cpu"], "T"),
    "answer": (["answer", "5", "--run", "run"], "mask"),
    "tokenize": (["tokenize", "text.txt", "--stats"], "characters"),
}


def of_a_second() -> None:
    """Of a question the experiments that take no longer: the others have tests of their own."""
    every = investigate.experiments_of
    investigate.experiments_of = lambda question: tuple(e for e in every(question) if e.slug == "prefixes")


@pytest.mark.parametrize("name", OTHERS)
def test_a_command_is_done_when_nobody_reads_its_lines_any_more(name, with_run):
    here = with_run
    (here / "runs").mkdir()
    (here / "run").rename(here / "runs" / "run")
    arguments, has = OTHERS[name]
    reader, writer = os.pipe()
    os.close(reader)
    how = {"prepare": of_a_second} if name == "answer" else {"fresh": name == "tokenize"}
    done = process(here, arguments, stdout=subprocess.PIPE, stderr=writer, **how)
    os.close(writer)
    out = done.communicate(timeout=120)[0].decode()
    said_something = name in ("answer", "tokenize")
    assert done.returncode == (141 if said_something else 0)
    assert has in out


def lines_of_evaluations(here: Path) -> int:
    path = here / "run" / "evals.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("arguments", [JUDGE, [*JUDGE, "--json"], ["eval", "causality", *JUDGE[2:]]])
def test_an_evaluation_is_kept_when_nobody_reads_its_result(arguments, with_run):
    here = with_run
    before = lines_of_evaluations(here)
    reader, writer = os.pipe()
    os.close(reader)
    done = process(here, arguments, fresh=arguments is JUDGE, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.communicate(timeout=120)[1], done.returncode) == (b"", 141)
    assert lines_of_evaluations(here) == before + 1


def test_a_report_is_written_when_nobody_reads_the_answers(with_run):
    here = with_run
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["answer", "5", "--run", "run", "--report", "page.md"]
    done = process(here, arguments, prepare=of_a_second, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    assert done.wait(timeout=120) == 141
    assert "mask" in (here / "page.md").read_text()


# ---------------------------------------------------------------------------- pictures


def test_training_goes_on_when_there_is_no_room_for_a_picture(here, whole, monkeypatch, capsys):
    def full(path, data):
        raise TformerError(f"cannot write {path}", "No space left on device")

    monkeypatch.setattr(show, "write_file", full)
    monkeypatch.setattr(show, "FIRST_PICTURE", 0.0)
    train()
    assert state(here / "run") == whole
    said = capsys.readouterr().err
    assert said.count("could not be drawn, and training goes on: cannot write") == 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="every file name is text there")
def test_a_text_whose_name_is_not_utf_8_is_trained_on_and_evaluated(here, monkeypatch, capsys):
    name = os.fsdecode(b"caf\xe9.txt")
    (here / "text.txt").rename(here / name)
    app([TRAIN[0], name, *TRAIN[2:]], standalone_mode=False)
    app(["eval", "loss", "--run", "run", "--device", "cpu"], standalone_mode=False)
    assert "warning" not in capsys.readouterr().err
    assert "caf\\udce9.txt" in (here / "run" / "report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------- the last step


def failing_at(step: int, method):
    """A method of a session that finds no memory at a step."""

    def fail(session):
        if session.learner.whole.step == step:
            raise MemoryError("no room")
        return method(session)

    return fail


@pytest.mark.parametrize("name", ["validate", "notes"])
def test_what_ends_a_training_beside_its_steps_costs_none_of_them(name, here, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Session, name, failing_at(4, getattr(Session, name)))
        with pytest.raises(TformerError, match="out of memory"):
            train(*UNSAVED)
    assert [p.name for p in (here / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    train("--resume")
    assert state(here / "run")[1:] == whole[1:]


def test_a_step_in_the_middle_of_its_update_is_not_saved(here, monkeypatch):
    def half(optimizers, lr):
        raise MemoryError("no room")

    monkeypatch.setattr("tformer.training.optim.Optimizers.step", half)
    with pytest.raises(TformerError, match="out of memory"):
        train(*UNSAVED)
    assert not (here / "run" / "checkpoints").exists()
