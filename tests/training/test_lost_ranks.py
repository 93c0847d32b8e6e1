"""What goes wrong in one process ends the others, and each says what it was."""

import itertools
import os
import signal
import subprocess
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.passages import write_passages
from tests.training.test_ranks import LONG, metrics, side_by_side
from tformer import ranks
from tformer.run import checkpoint
from tformer.training import optim

SOON = 60  # seconds


def at_the_third_step(rank: int, happens) -> None:
    """Have something happen in a process in place of its third update."""
    if os.environ["RANK"] != str(rank):
        return
    turns, step = itertools.count(1), optim.Optimizers.step

    def stepped(self, *args):
        if next(turns) == 3:
            happens()
        return step(self, *args)

    optim.Optimizers.step = stepped  # type: ignore[method-assign]


def fails() -> None:
    raise ArithmeticError("a fault of this process")


def lacks_memory() -> None:
    raise MemoryError


def stops_for_a_while() -> None:
    subprocess.Popen(
        ["sh", "-c", f"sleep 12; kill -CONT {os.getpid()}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.kill(os.getpid(), signal.SIGSTOP)


def lacks_room(rank: int) -> None:
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if os.environ["RANK"] == str(rank):
        checkpoint.write_new = refuse


@pytest.mark.parametrize(
    ("prepare", "how", "said"),
    [
        (lambda: at_the_third_step(1, fails), "--no-shard", "ArithmeticError: a fault of this process"),
        (lambda: at_the_third_step(1, lacks_memory), "--shard", "out of memory"),
        (lambda: lacks_room(0), "--shard", "cannot save the checkpoint"),
    ],
    ids=["exception", "memory", "disk"],
)
def test_a_failure_of_one_ends_the_others(tmp_path, prepare, how, said):
    words = (*LONG, how, "--steps", 1_000_000)
    began = time.monotonic()
    code, out, err = side_by_side(tmp_path, 2, *words, prepare=prepare)
    assert code == 1 and not out and said in err, err
    assert err.count("another process of this training is gone") == 1, err
    assert time.monotonic() - began < SOON


def stops(rank: int) -> None:
    ranks.TIMEOUT = timedelta(seconds=5)
    at_the_third_step(rank, stops_for_a_while)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_that_is_stopped_is_waited_for_no_longer_than_the_timeout(tmp_path, victim):
    """And finds nobody when it goes on."""
    began = time.monotonic()
    code, _, err = side_by_side(tmp_path, 2, *LONG, "--steps", 1_000_000, prepare=lambda: stops(victim))
    assert code == 1 and err.count("another process of this training is gone") == 2, err
    assert time.monotonic() - began < SOON


# Passages that take longer than the timeout, of which each is told.
WORKS_BY_ITSELF_FOR_LONG = """
import time
from datetime import timedelta
from tformer import ranks
from tformer.training import passages

ranks.TIMEOUT = timedelta(seconds=12)
score = passages.lambada

def slowly(model, asked, precision, progress=lambda *_: None):
    for done in range(15):
        time.sleep(1)
        progress(done, 15)
    return score(model, asked, precision, progress)

passages.lambada = slowly
from tformer.__main__ import program
program()
"""


@pytest.mark.slow
def test_the_others_wait_for_the_first_as_long_as_it_scores_passages(tmp_path):
    write_passages(tmp_path / "p.jsonl", ["not to be", "to suffer"])
    words = ("--steps", 3, "--set", "train.eval_every=2", "--eval-data", "p.jsonl", "--out", "run")
    code, _, err = side_by_side(tmp_path, 2, *words, anew=WORKS_BY_ITSELF_FOR_LONG)
    assert code == 0, err
    assert "next_word_loss" in metrics(tmp_path / "run")[-1]


def test_a_store_that_nobody_answers_is_a_lost_process_and_a_fault_of_ours_is_not():
    store = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=1), wait_for_workers=False)
    with pytest.raises(dist.DistStoreError) as waited:
        store.get("of nobody")
    with pytest.raises((dist.DistError, RuntimeError)) as alone:
        dist.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=1), wait_for_workers=True)
    assert ranks.is_of_a_peer(waited.value) and ranks.is_of_a_peer(alone.value)
    unlike = "[gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 672 vs 16"
    assert not ranks.is_of_a_peer(RuntimeError(unlike)), "two processes at two places: a bug"
