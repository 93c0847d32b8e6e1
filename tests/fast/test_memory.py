"""What a step frees the next one takes: counted in pages that the kernel hands out, not in seconds."""

import subprocess
import sys

import pytest

from tformer.fast import memory

PAGES_OF_A_STEP = """
import resource, sys, torch
from tformer.fast.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else False


def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    logits = torch.zeros(1 << 24)  # 64 MiB, as 2,048 tokens of 8,192 words are
    del logits
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(int(kept), *[step() for _ in range(40)])
"""


def pages(how: str) -> tuple[bool, list[int]]:
    """Whether memory is kept, and the pages that each of forty steps was given."""
    done = subprocess.run(
        [sys.executable, "-c", PAGES_OF_A_STEP, how], capture_output=True, text=True, check=True
    )
    kept, *steps = map(int, done.stdout.split())
    return bool(kept), steps


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of pages is Linux's")
def test_a_step_takes_the_pages_that_the_one_before_freed():
    _, given_back = pages("given back")
    kept, steps = pages("kept")
    if not kept:
        pytest.skip("the C library here is not glibc")
    assert min(given_back) > 1000, "the oracle: without it every step is handed 64 MiB of fresh pages"
    assert sum(steps[20:]) < 100, f"pages went back to the kernel: {steps}"


def test_where_the_c_library_has_no_such_option_nothing_changes(monkeypatch):
    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    assert memory.keep_freed_memory() is False


def test_training_keeps_what_it_frees(monkeypatch, tmp_path):
    from tformer.cli import app

    asked = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: asked.append(True))
    monkeypatch.chdir(tmp_path)
    settings = ["data.reversal_length=3", "data.reversal_symbols=4", "model.n_ctx=5", "model.d_model=8"]
    args = [word for setting in settings for word in ("--set", setting)]
    app(["train", "reversal", "--steps", "1", "--set", "model.n_heads=2", *args], standalone_mode=False)
    assert asked == [True]
