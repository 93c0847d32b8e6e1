"""Standard streams that are full, closed or strange, memory that is not there, and an early Ctrl-C."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tformer import cli
from tformer.errors import FAILED

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")} | {"OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell that can close a stream")


@pytest.fixture
def told(monkeypatch, capsys) -> Callable[..., str]:
    """What somebody who gave a command line is told of an error, of which it ends."""
    monkeypatch.delenv("TFORMER_DEBUG", raising=False)

    def tell(error: BaseException, line: str = "eval") -> str:
        monkeypatch.setattr(sys, "argv", ["tformer", *line.split()])
        assert cli._exit_code(error) == FAILED
        return capsys.readouterr().err

    return tell


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A line of the shell in which `tformer` is the command."""
    line = line.replace("tformer", f"{sys.executable} -m tformer")
    return subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )


TOKENIZE = "tformer tokenize --train text.txt --tokenizer char --out t.json --json"


def test_a_result_that_is_lost_is_an_error(here):
    done = shell(f"{TOKENIZE} >&-", here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tformer: error: standard output: Bad file descriptor"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_device_is_named_as_what_it_is(here):
    done = shell(f"{TOKENIZE} >/dev/full", here)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tformer: error: standard output: No space left on device"


def test_nobody_has_to_hear_what_is_said(here):
    done = shell(f"{TOKENIZE} 2>&-", here)
    assert done.returncode == 0 and '"kind": "char"' in done.stdout


EARLY = """
import builtins, os, runpy, signal, sys
plain = builtins.__import__
def slow(name, *args, **options):
    if name == "typer":  # while the command line is being read in
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *args, **options)
builtins.__import__ = slow
sys.argv = ["tformer", "--help"]
runpy.run_module("tformer", run_name="__main__")
"""


def test_ctrl_c_before_the_command_is_there_is_silent(here):
    done = subprocess.run([sys.executable, "-c", EARLY], cwd=here, env=ENVIRONMENT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


WORDS = {
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"),
    "torch": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes."
    ),
    "torch on windows": RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8000000000 bytes."
    ),
    "cuda": RuntimeError(
        "CUDA out of memory. Tried to allocate 7.45 GiB. GPU 0 has a total capacity of 4 GiB of "
        "which 1.20 GiB is free."
    ),
    "system": OSError(12, "Cannot allocate memory"),
}


ASKED = {
    "numpy": "7.45 GiB were asked for",
    "cuda": "7.45 GiB were asked for, 1.20 GiB are free",
    "torch": "8.0 GB were asked for",
    "torch on windows": "8.0 GB were asked for",
}


@pytest.mark.parametrize("who", WORDS)
def test_out_of_memory_says_how_much_was_asked_for(who, told):
    found = f" ({ASKED[who]})" if who in ASKED else ""
    assert told(WORDS[who]).startswith(f"tformer: error: out of memory{found}; give a shorter text, ")


LOWER = {  # by command line, what it is told to lower, with what it asked for or would have by itself
    "sample T": "lower -n (it is 1) or --max-tokens (it is 200), or give a shorter prompt",
    "sample T -n 6 --max-tokens=9": "lower -n (it is 6) or --max-tokens (it is 9), or give a shorter prompt",
    "--debug sample -n 5": "lower -n (it is 5) or --max-tokens (it is 200), or give a shorter prompt",
    "eval generations -n 9": "lower -n (it is 9) or --max-tokens (it is 200), or give a run with a smaller "
    "model",
    "eval generations": "lower -n or --max-tokens (it is 200), or give a run with a smaller model",
    "eval reversal": "lower -n (it is 2000), or give a run with a smaller model",
    "eval attention --run sample": "lower -n (it is 2000), or give a shorter text",
    "eval causality": "lower --positions (it is 64), or give a run with a smaller model or context",
    "eval loss": "give a shorter text, a run with a smaller model or context, or --device cpu",
    "eval": "give a shorter text, a run with a smaller model or context, or --device cpu",
    "train a.txt": "lower --batch-size, or set train.micro_batch_size, data.window or a smaller model",
    "tokenize a.txt": "give the text as several files, or on standard input, which is read in pieces",
    "answer 5": "leave --full or --run out",
}


@pytest.mark.parametrize("line", LOWER)
def test_out_of_memory_says_what_to_lower_for_the_command(line, told):
    assert told(MemoryError(), line) == f"tformer: error: out of memory; {LOWER[line]}\n"


@pytest.mark.parametrize("name", cli.TO_LOWER)
def test_what_is_to_be_lowered_are_options_of_the_command(name):
    command = typer.main.get_command(cli.app)
    for word in f"{name} loss".split() if name == "eval" else name.split():  # of most tasks
        command = command.commands[word]
    options, otherwise = cli.TO_LOWER[name]
    named = {*options, *re.findall(r"--[a-z-]+", otherwise)}
    given = {option for parameter in command.params for option in parameter.opts}
    assert named <= given


@pytest.mark.parametrize(
    "why", ["CUDA error: unspecified launch failure", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"]
)
def test_a_device_that_failed_is_no_bug_and_says_how_to_go_on(why, told):
    said = told(RuntimeError(f"{why}\nCUDA kernel errors might be …"))
    assert said.startswith(f"tformer: error: the device failed ({why}); what was saved is whole")
    assert "--resume" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "other",
    ["shapes cannot be multiplied", "CUDA error: device-side assert triggered"],  # an index of ours
)
def test_another_error_is_not_taken_for_one_of_memory_or_of_a_device(other, told):
    assert "this is a bug" in told(RuntimeError(other))
