"""torchrun starts the processes again, on one machine or several, and they go on from the last checkpoint."""

import os
import signal
import socket
import threading
import time

import pytest
import torch.distributed as dist

from tests.training.test_ranks import LONG, await_checkpoint, finished, losses, metrics, start, workers
from tformer.ranks import Ranks, start_of

STEADY = ("--resume", "--set", "train.decay_fraction=0", "--set", "train.warmup_steps=0")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_two_nodes_go_on_after_a_process_of_one_was_killed(tmp_path, killed):
    """Two torchruns on this machine. The one whose process it was counts a restart, the other does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = ("--rdzv-endpoint", f"127.0.0.1:{free.getsockname()[1]}", "--rdzv-id", "two", "--nnodes", "2")
    words = (*LONG, *STEADY, "--steps", 800)
    agents = [start(tmp_path, 1, *words, restarts=3, meet=meet) for _ in range(2)]
    await_checkpoint(tmp_path, agents[0])
    os.kill(workers(agents[killed].pid)[0], signal.SIGKILL)
    ended = [finished(agent) for agent in agents]
    said = "".join(err for _, _, err in ended)
    assert [code for code, _, _ in ended] == [0, 0], said
    assert "continuing after step" in said and len(losses(tmp_path / "run")) == 800
    assert sum(len(out.splitlines()) for _, out, _ in ended) == 1, "the first process alone speaks"


@pytest.mark.slow
@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_four_processes_go_on_whichever_is_killed_and_however_often(tmp_path, times):
    words = (*LONG, *STEADY, "--shard", "--steps", 1_000_000)
    process = start(tmp_path, 4, *words, restarts=times)
    before = -1
    for turn in range(times + 1):
        until = time.monotonic() + 100
        while (now := newest(tmp_path)) <= before:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        before = now
        if turn < times:
            os.kill(workers(process.pid)[turn % 4], signal.SIGKILL)
            before = newest(tmp_path)  # one more may just have been saved
    process.terminate()
    code, _, err = finished(process)
    assert code != 0 and err.count("continuing after step") == times, err
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1)), "each step once, none left out"


def newest(folder) -> int:
    """The step of the newest checkpoint; -1 where there is none."""
    found = (folder / "run" / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=-1)


def test_the_processes_of_a_start_agree_on_it_whatever_those_before_them_have_said():
    store = dist.HashStore()
    starts = []
    for _ in range(3):
        store.set("2 is", "somebody of a start that came to nothing")
        found: list[str] = []
        threads = [
            threading.Thread(
                target=lambda rank=rank, found=found: found.append(start_of(store, Ranks(rank, 4)))
            )
            for rank in (0, 3, 1, 2)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join(10)
        assert len(found) == 4 and len(set(found)) == 1
        starts += found[:1]
    assert len(set(starts)) == 3
