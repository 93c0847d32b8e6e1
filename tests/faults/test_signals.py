"""A signal is answered at once, however long the step and its evaluation take."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import start
from tests.faults.test_kills import TRAIN, place
from tformer.training.session import Session

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
