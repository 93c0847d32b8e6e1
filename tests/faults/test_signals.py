"""A signal is answered at once, however long the step and its evaluation take, and in whatever call."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.command import run, start
from tests.faults.tiny import TRAIN, place
from tformer import signals
from tformer.text.tokenizer import Tokenizer
from tformer.training.session import Session

SOON = 5.0  # seconds; the calls below take minutes
SAID = "stopping after this step; once more to leave at once\n"


def evaluating(folder: Path) -> subprocess.Popen:
    """A training that is in the middle of an evaluation, which goes on until there is a file `over`."""

    def validate(self):
        print("evaluating", file=sys.stderr, flush=True)
        until = time.monotonic() + 100
        while not Path("over").exists() and time.monotonic() < until:
            time.sleep(0.02)
        return 1.0, 1.0

    def prepare():
        Session.validate = validate

    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = start(TRAIN, place(folder), prepare=prepare, **streams)
    while "evaluating" not in process.stderr.readline():
        assert process.poll() is None
    return process


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
    ],
)
def test_the_first_signal_is_answered_before_it_is_obeyed(number, code, tmp_path):
    process = evaluating(tmp_path / "here")
    process.send_signal(number)
    assert process.stderr.readline() == SAID, "before the evaluation is over"
    (tmp_path / "here" / "over").touch()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "after step 2; run is saved: continue with the same command and --resume" in rest
    assert SAID not in rest


def test_the_second_signal_leaves_at_once(tmp_path):
    process = evaluating(tmp_path / "here")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == SAID
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


# ---------------------------------------------------------------------------- in the last step, and after it

FINISHING = "finishing the run; once more to leave at once\n"
PHASES = {  # what is going on, and what is answered then
    "its evaluation": ("tformer.training.session:Session.validate", SAID),
    "the record of its end": ("tformer.training.session:Session.finish", FINISHING),
    "its pictures": ("tformer.show.training:draw_last", FINISHING),
    "its table": ("tformer.show.training:summarise", FINISHING),
}


def at_the_end(folder: Path, phase: str) -> subprocess.Popen:
    """A training of two steps that is in the middle of a phase, which goes on from when there is `over`."""
    module, _, name = PHASES[phase][0].partition(":")

    def prepare():
        *owners, last = name.split(".")
        owner = sys.modules[module]
        for part in owners:
            owner = getattr(owner, part)
        real = getattr(owner, last)

        def held_up(*arguments, **options):
            print("held up", file=sys.stderr, flush=True)
            until = time.monotonic() + 100
            while not Path("over").exists() and time.monotonic() < until:
                time.sleep(0.02)
            return real(*arguments, **options)

        setattr(owner, last, held_up)

    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = start([*TRAIN, "--steps", "2"], place(folder), prepare=prepare, **streams)
    while "held up" not in process.stderr.readline():
        assert process.poll() is None
    return process


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_last_step_or_later_is_obeyed_when_all_is_saved(phase, number, tmp_path):
    process, here = at_the_end(tmp_path / "here", phase), tmp_path / "here"
    process.send_signal(number)
    assert process.stderr.readline() == PHASES[phase][1]
    (here / "over").touch()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert rest.endswith("run is finished: there is nothing to resume\n") and "--resume" not in rest
    assert (here / "run" / "report.html").exists()
    assert yaml.safe_load((here / "run" / "tformer.yaml").read_text())["record"]["result"]["steps"] == 2
    again = run(*TRAIN, "--steps", "2", "--resume", cwd=here, check=0)
    assert "it is finished: 2 steps" in again.stderr


def test_a_second_signal_at_the_end_leaves_at_once(tmp_path):
    process = at_the_end(tmp_path / "here", "its pictures")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == FINISHING
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 143


# ---------------------------------------------------------------------------- in one long call

needs_watching = pytest.mark.skipif(os.name == "nt", reason="nothing tells a thread of a signal there")


def long_call(rounds: int = 10**9) -> None:
    """One call that takes minutes and lets other threads go on, as PyTorch's and the tokenizers' do."""
    print("calling", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


def calling(folder: Path, arguments: list[str], prepare) -> subprocess.Popen:
    """A command that is in the middle of such a call."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = start(arguments, place(folder), prepare=prepare, **streams)
    while "calling" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)  # so that it is in it
    return process


@needs_watching
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_call_that_takes_minutes_ends_a_command_at_once(number, tmp_path):
    def prepare():
        Tokenizer.train = classmethod(lambda *rest, **how: long_call())

    learn = ["tokenize", "--train", "text.txt", "--tokenizer", "bpe", "--out", "made.json"]
    process = calling(tmp_path / "here", learn, prepare)
    began = time.monotonic()
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 128 + number and time.monotonic() - began < SOON


@needs_watching
def test_both_signals_are_answered_in_an_evaluation_that_is_one_call(tmp_path):
    def prepare():
        Session.validate = lambda self: long_call()

    process = calling(tmp_path / "here", TRAIN, prepare)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == SAID
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 2 * SOON


@needs_watching
def test_a_signal_that_was_answered_in_a_call_is_no_second_one_after_it(tmp_path):
    """Python comes to its handler when the call is over."""

    def prepare():
        def validate(self):
            long_call(5 * 10**6)  # some seconds: longer than Python is waited for
            return 1.0, 1.0

        Session.validate = validate
        signals.CALLED_WITHIN = 0.05

    process = calling(tmp_path / "here", TRAIN, prepare)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said.count(SAID) == 1 and "after step 2; run is saved" in said


@needs_watching
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process is copied")
def test_a_signal_to_a_copy_of_the_process_is_not_taken_for_one_of_its_own(tmp_path):
    def prepare():
        def validate(self):
            child = os.fork()
            if child == 0:
                time.sleep(0.5)
                os._exit(0)
            time.sleep(0.2)
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            time.sleep(3 * signals.CALLED_WITHIN)
            return 1.0, 1.0

        Session.validate = validate

    process = start(TRAIN, place(tmp_path / "here"), prepare=prepare, stderr=subprocess.PIPE, text=True)
    assert process.communicate(timeout=60)[1].count(SAID) <= 3, "of the copies alone"
    assert process.returncode == 0
