"""A signal ends a command at any moment, at once and silently; also in the middle of an import."""

import os

import pytest

from tests.faults.endings import endings
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, made

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the process is copied to be ended")

CAUSALITY = ["eval", "causality", "--run", "run", "--device", "cpu", "--positions", "2"]
TOKENIZE = ["tokenize", "text.txt", "--tokenizer", "run", "--stats"]
LEARN = ["tokenize", "text.txt", "--train", "--tokenizer", "word", "--out", "made.json"]
ANSWER = ["answer", "heads", "--run", "run"]
COMMANDS = {  # and how many imports there are from one at which a copy is ended to the next
    "help": (["--help"], 5),
    "sample": (SAMPLE, 7),
    "tokenize": (TOKENIZE, 7),
    "tokenize --train": (LEARN, 7),
    "eval loss": (EVAL, 20),
    "eval causality": (CAUSALITY, 20),
    "answer": (ANSWER, 20),
    "train": ([*TRAIN[:3], "new", *TRAIN[4:]], 20),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return made(tmp_path_factory.mktemp("endings") / "here")[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [name if name in ("help", "sample") else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS],
)
def test_a_signal_in_the_middle_of_an_import_ends_the_command_at_once(name, here):
    """NumPy that PyTorch has half imported stays so: Ctrl-C there was once lost, or called a bug."""
    arguments, every = COMMANDS[name]
    found = endings(arguments, here, "import", every)
    assert len(found) > 10
    others = [ending for ending in found if not ending.is_silent()]
    if name == "train":  # its last imports are those of the pictures
        others = [ending for ending in others if not ending.is_told_that_it_is_finished()]
        assert found[-1].is_told_that_it_is_finished()
    assert others == []


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every"), [("help", 2000), ("sample", 9000), ("tokenize", 2000), ("eval causality", 20_000)]
)
def test_a_signal_at_any_call_ends_the_command_at_once(name, every, here):
    """Matplotlib's callbacks lose an exception, or go on with a matrix that is half computed."""
    found = endings(COMMANDS[name][0], here, "call", every)
    assert len(found) > 10
    assert [ending for ending in found if not ending.is_silent()] == []
