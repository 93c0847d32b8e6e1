"""A signal is answered at once, however long the step and its evaluation take."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.test_kills import TRAIN, place

SLOW = """
import sys, time
from tformer.training.session import Session

def validate(self):
    print("evaluating", file=sys.stderr, flush=True)
    until = time.monotonic() + {seconds}
    while time.monotonic() < until:
        time.sleep(0.05)
    return 1.0, 1.0

Session.validate = validate
sys.argv = ["tformer", *{arguments}]
from tformer.cli import main
main()
"""
SAID = "stopping after this step; once more to leave at once\n"


def evaluating(folder, seconds: float) -> subprocess.Popen:
    """A training that is in the middle of an evaluation."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
    code = SLOW.format(seconds=seconds, arguments=TRAIN)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=place(folder),
        env=clean | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "evaluating" not in process.stderr.readline():
        assert process.poll() is None
    return process


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_the_first_signal_is_answered_before_it_is_obeyed(number, code, tmp_path):
    process = evaluating(tmp_path / "here", 3)
    began = time.monotonic()
    process.send_signal(number)
    assert process.stderr.readline() == SAID
    assert time.monotonic() - began < 2, "before the evaluation is over"
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "stopped after step 2; run is saved: continue with --resume" in rest and SAID not in rest


def test_the_second_signal_leaves_at_once(tmp_path):
    process = evaluating(tmp_path / "here", 100)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == SAID
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
