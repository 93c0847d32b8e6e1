"""What Rust prints of a panic is kept off standard error, and nothing else is."""

import json
import os
import signal
import sys

import pytest
from tokenizers import Tokenizer as Engine

from tests.command import run
from tformer.text.panics import panics_unprinted
from tformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One whose pattern gives up, in a panic."""
    values = json.loads(Tokenizer.train("bpe", ["aab " * 100], 260).to_json())
    values["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a|a|aa)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    return Engine.from_str(json.dumps(values))


def panic(engine: Engine) -> None:
    engine.encode_batch_fast(["a" * 40 + "b"])


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.delenv("TFORMER_DEBUG", raising=False)


def test_a_panic_is_an_exception_and_no_lines(engine, capfd):
    for _ in range(3):  # the first of a process is printed with a note
        with pytest.raises(BaseException, match="Onig"), panics_unprinted():
            os.write(2, b"before\n")
            panic(engine)
    assert capfd.readouterr().err == "before\n" * 3
    with pytest.raises(BaseException, match="Onig"):
        panic(engine)
    assert "panicked" in capfd.readouterr().err, "it would have been printed"


def test_what_is_written_meanwhile_is_passed_on_to_the_byte(capfdbinary):
    with panics_unprinted():
        os.write(2, bytes(range(256)) * 1000)
    assert capfdbinary.readouterr().err == bytes(range(256)) * 1000


def test_whoever_asks_to_see_them_does(engine, capfd, monkeypatch):
    monkeypatch.setenv("TFORMER_DEBUG", "1")
    with pytest.raises(BaseException, match="Onig"), panics_unprinted():
        panic(engine)
    assert "panicked" in capfd.readouterr().err


def test_standard_error_that_is_closed_stays_so(tmp_path):
    def prepare():
        os.close(2)
        with panics_unprinted():
            pass
        try:
            os.fstat(2)
        except OSError:
            os._exit(7)
        os._exit(8)

    assert run("--version", cwd=tmp_path, prepare=prepare).returncode == 7


def test_a_signal_meanwhile_loses_nothing(tmp_path):
    def prepare():
        from tformer.signals import answered_by, leave_at_once

        answered_by(leave_at_once)
        with panics_unprinted():
            print("said", file=sys.stderr, end=" ")  # it is not written yet
            os.write(2, b"and written\n")
            signal.raise_signal(signal.SIGTERM)

    done = run("--version", cwd=tmp_path, prepare=prepare)
    assert (done.returncode, done.stderr) == (143, "and written\nsaid ")
