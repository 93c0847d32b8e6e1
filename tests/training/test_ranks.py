"""Several processes train what one trains, and none is left waiting for another that is gone."""

import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

from tests.command import ENVIRONMENT
from tests.command import start as copy
from tests.conftest import tiny_model
from tests.training.test_noted import TEXT
from tformer.cli import app
from tformer.config import Config
from tformer.errors import RequestError
from tformer.layers import flag_layer
from tformer.ranks import Ranks, own_device, ranks_of_torchrun
from tformer.text import shards
from tformer.text.data import Windows
from tformer.training.fit import Learner, State, fit
from tformer.training.optim import Optimizers
from tformer.training.plan import TrainRequest, plan_training

ROOT = Path(__file__).parents[2]
TINY = shlex.split(
    "--tokenizer char --precision fp32 --no-compile --device cpu --batch-size 8 --lr 1e-2 "
    "--set model.n_layers=1 --set model.d_model=16 --set model.n_heads=2 --set model.n_ctx=16 "
    "--set model.dropout=0 --set train.log_every=1 --set train.eval_every=5 --json"
)
ALONE = ("--rdzv-endpoint", "127.0.0.1:0")
OF_FIFTY_STEPS = ((2, "adamw", "--no-shard"), (4, "muon", "--shard"))  # the others are exhaustive


def start(
    folder: Path, processes: int, *words: object, restarts: int = 0, meet: Sequence[str] = ALONE
) -> subprocess.Popen:
    """`torchrun -m tformer train text.txt …` in a folder; `meet` says where with another torchrun."""
    (folder / "text.txt").write_text(TEXT)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    torchrun += ["--max-restarts", str(restarts), "--rdzv-backend", "c10d", *meet]
    torchrun += ["-m", "tformer", "train", "text.txt", *TINY, *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TFORMER_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *torchrun],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen, within: float = 100) -> tuple[int, str, str]:
    """Its exit code and what it said; all of its processes end with it."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def side_by_side(
    folder: Path,
    processes: int,
    *words: object,
    prepare: Callable[[], object] = lambda: None,
    data: str = "text.txt",
    anew: str = "",
) -> tuple[int, str, str]:
    """The same without torchrun's own process, in copies of this one, which need not import torch again.

    `anew` is what new processes run in their place, where threads of this one would be missed.
    """
    (folder / "text.txt").write_text(TEXT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment = ENVIRONMENT | address | own | {"LOCAL_WORLD_SIZE": str(processes)}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        arguments = ["train", data, *TINY, *map(str, words)]
        if anew:
            command, environment = (
                [sys.executable, "-c", anew, *arguments],
                environment | {"PYTHONPATH": str(ROOT)},
            )
            started.append(subprocess.Popen(command, cwd=folder, env=environment, **streams))
        else:
            started.append(copy(arguments, folder, environment, prepare=prepare, **streams))
    try:
        said = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    return max(codes, key=abs), "".join(out for out, _ in said), "".join(err for _, err in said)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def alone(folder: Path, *words: object, data: str = "text.txt") -> list[float]:
    (folder / "text.txt").write_text(TEXT)
    given = ["train", str(folder / data), *TINY, *map(str, words), "--out", str(folder / "alone")]
    assert CliRunner().invoke(app, given).exit_code == 0
    return losses(folder / "alone")


def check_alike(folder: Path, found: tuple[int, str, str], *words: object, data: str = "text.txt") -> None:
    code, out, err = found
    assert code == 0, err
    assert len(out.splitlines()) == 1, "the first process alone speaks"
    assert losses(folder / "run") == pytest.approx(alone(folder, *words, data=data), rel=1e-5)


def test_two_processes_train_what_one_trains(tmp_path):
    words = ("--steps", 6, "--set", "train.micro_batch_size=2", "--set", "train.optimizer=muon")
    check_alike(tmp_path, finished(start(tmp_path, 2, *words, "--out", "run")), *words)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == "gpt2"


def test_two_processes_share_the_windows_of_a_folder_of_token_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 400)  # ids: many files
    lines = "".join(f"{line} {i}\n" for i, line in enumerate(TEXT.split("\n") * 4))
    (tmp_path / "lines.txt").write_text(lines)
    text, out = str(tmp_path / "lines.txt"), f"{tmp_path / 'ids'}/"
    for words in (
        ["--train", "--tokenizer", "char", "--out", str(tmp_path / "char.json")],
        ["--tokenizer", str(tmp_path / "char.json"), "--documents", "line", "--out", out],
    ):
        assert CliRunner().invoke(app, ["tokenize", text, *words]).exit_code == 0
    assert len(list((tmp_path / "ids").glob("ids-*.npy"))) > 3
    words = ("--steps", 8, "--set", "data.val_split=documents", "--set", "train.eval_every=4")
    check_alike(tmp_path, side_by_side(tmp_path, 2, *words, "--out", "run", data="ids"), *words, data="ids")
    val = [
        [line["val_loss"] for line in metrics(tmp_path / run) if "val_loss" in line]
        for run in ("run", "alone")
    ]
    assert val[0] == pytest.approx(val[1], rel=1e-5) and len(val[0]) == 2


@pytest.mark.parametrize(
    ("processes", "optimizer", "how"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case in OF_FIFTY_STEPS else pytest.mark.exhaustive)
        for case in itertools.product((2, 4), ("adamw", "muon"), ("--no-shard", "--shard"))
    ],
)
def test_fifty_steps_have_the_same_losses(tmp_path, processes, optimizer, how):
    words = ("--steps", 50, "--set", f"train.optimizer={optimizer}", how)
    check_alike(tmp_path, side_by_side(tmp_path, processes, *words, "--out", "run"), *words)


def workers(agent: int) -> list[int]:
    """The processes that torchrun started, in order."""
    text = Path(f"/proc/{agent}/task/{agent}/children").read_text()
    return [int(word) for word in text.split()]


def await_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while not list((folder / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


LONG = ("--out", "run", "--set", "train.checkpoint_every=20", "--set", "train.eval_every=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        pytest.param(0, "--no-shard", marks=pytest.mark.exhaustive),
        (1, "--no-shard"),
        pytest.param(0, "--shard", marks=pytest.mark.exhaustive),
    ],
)
def test_the_others_leave_when_one_is_killed(tmp_path, victim, how):
    process = start(tmp_path, 2, *LONG, how, "--steps", 1_000_000)
    await_checkpoint(tmp_path, process)
    mine = workers(process.pid)
    os.kill(mine[victim], signal.SIGKILL)
    code, _, _ = finished(process, within=60)
    assert code != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in mine)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        pytest.param(0, "--no-shard", marks=pytest.mark.exhaustive),
        pytest.param(1, "--no-shard", marks=pytest.mark.exhaustive),
        (1, "--shard"),
    ],
)
def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path, victim, how):
    words = (*LONG, how, "--resume", "--steps", 800, "--set", "train.decay_fraction=0")
    process = start(tmp_path, 2, *words, restarts=1)
    await_checkpoint(tmp_path, process)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    code, out, err = finished(process)
    assert code == 0, err
    assert "continuing after step" in err and json.loads(out.splitlines()[-1])["steps"] == 800
    assert len(losses(tmp_path / "run")) == 800


@pytest.mark.slow
def test_all_leave_at_once_when_torchrun_is_told_to(tmp_path):
    """It tells each of them once, and kills those that are there after 30 seconds."""
    process = start(tmp_path, 2, *LONG, "--steps", 1_000_000)
    await_checkpoint(tmp_path, process)
    began = time.monotonic()
    process.terminate()
    code, _, err = finished(process, within=60)
    assert code != 0 and "continue with the same command and --resume" in err
    assert time.monotonic() - began < 20 and "SIGKILL" not in err, err
    steps = len(losses(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps:08d}").exists(), "saved after its last step"


@pytest.mark.slow
def test_processes_with_other_texts_are_told_to_have_the_same(tmp_path):
    (tmp_path / "other").mkdir()

    def on_machines_of_their_own() -> None:
        if os.environ["RANK"] == "1":
            os.chdir("other")

    def train(text: str, out: str) -> tuple[int, str, str]:
        (tmp_path / "other" / "text.txt").write_text(text)
        words = ("--steps", 1, "--out", tmp_path / out)
        return side_by_side(tmp_path, 2, *words, prepare=on_machines_of_their_own)

    code, _, err = train(TEXT[::-1], "one")
    assert (code, "process 1 reads another text than the first one (sha256 " in err) == (1, True), err
    assert "; give each machine the same files\n" in err
    assert train(TEXT, "other run")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("--no-shard", marks=pytest.mark.exhaustive), "--shard"])
def test_a_signal_ends_all_after_the_same_step_and_another_number_of_processes_goes_on(tmp_path, how):
    process = start(tmp_path, 2, *LONG, how, "--steps", 800)
    await_checkpoint(tmp_path, process)
    os.kill(workers(process.pid)[1], signal.SIGTERM)
    code, _, err = finished(process, within=60)
    assert code != 0 and "continue with the same command and --resume" in err
    stopped = len(losses(tmp_path / "run"))
    code, _, err = finished(start(tmp_path, 1, *LONG, "--steps", 800, "--resume"))
    assert code == 0 and f"continuing after step {stopped}" in err, err
    assert "processes 2, now 1" in err
    assert len(losses(tmp_path / "run")) == 800


@pytest.mark.slow
def test_two_nodes_of_a_cluster_train_what_one_trains_and_the_job_goes_on(tmp_path):
    """The script for Slurm, with two agents on this machine in place of srun's."""
    (tmp_path / "bin").mkdir()
    for name, script in {
        "scontrol": "echo 127.0.0.1; seq 100000",  # more than a pipe holds
        "srun": '"$@" & "$@" && wait $!',
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = free.getsockname()[1] % 10_000
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TFORMER_", "SLURM_"))}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "two", "SLURM_NNODES": "2", "SLURM_JOB_ID": str(job)}
    environment |= {"SLURM_GPUS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "1"}
    steady = ("--set", "train.decay_fraction=0", "--set", "train.warmup_steps=0")
    expected = alone(tmp_path, *steady, "--steps", 12)
    for steps, said in ((6, "step 6/6"), (12, "continuing after step 6")):
        done = subprocess.run(
            ["bash", ROOT / "examples" / "slurm.sh", "text.txt", *TINY, *steady, "--steps", str(steps)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0 and said in done.stderr, done.stderr
        assert len(done.stdout.splitlines()) == 1, "the first process alone speaks"
    assert losses(tmp_path / "runs" / f"job-{job}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["--set train.micro_batch_size=3", "--resume --overwrite", "--tokenizer"])
def test_a_wrong_request_is_refused_once_and_at_once(tmp_path, wrong):
    """By its configuration, by what options say together, and by the command line itself."""
    code, out, err = finished(start(tmp_path, 2, "--out", "run", *wrong.split()), within=60)
    assert code != 0 and not out and err.count("tformer: error: ") == 1, err


def test_gradients_are_added_up_once_a_step(tmp_path):
    """However many groups of windows a step has."""
    config = Config.model_validate({"train": {"steps": 2, "batch_size": 8, "micro_batch_size": 2}})
    model = tiny_model(std=0.05)
    ids = torch.randint(0, model.config.vocab_size, (200,)).numpy()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        forward = DistributedDataParallel(model)
        sent = []

        def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            sent.append(bucket.is_last())
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        forward.register_comm_hook(None, count)
        learner = Learner(model, Optimizers(model, config.train), forward)
        steps = list(fit(learner, Windows(ids, model.config.n_ctx), config.train, State()))
    finally:
        dist.destroy_process_group()
    assert len(steps) == 2 and sent.count(True) == 2


def test_shares_are_the_whole_batch_in_order():
    for world in (1, 2, 4):
        shares = [list(range(8))[Ranks(rank, world).share(8)] for rank in range(world)]
        assert [window for share in shares for window in share] == list(range(8))


def test_what_torchrun_says_is_read_or_refused(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_torchrun() == Ranks(3, 8, 1, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks_of_torchrun() == Ranks(3, 8, 1, 2)
    assert own_device("cpu", Ranks(3, 8, 1)) == "cpu"
    monkeypatch.setenv("RANK", "three")
    with pytest.raises(RequestError, match="torchrun"):
        ranks_of_torchrun()


@pytest.mark.parametrize(
    "words",
    [["--batch-size", "7"], ["--minutes", "1", "--batch-size", "8"], ["--estimate", "--batch-size", "8"]],
)
def test_what_several_cannot_do_is_refused_before_they_meet(tmp_path, monkeypatch, words):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "text.txt").write_text(TEXT)
    done = CliRunner().invoke(app, ["train", str(tmp_path / "text.txt"), *words])
    assert isinstance(done.exception, RequestError), done.output


def test_what_several_are_told_to_do_instead_is_enough(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def planned(*flags, **request):
        layers, out = [flag_layer(flags, {})], tmp_path / "new"
        return plan_training(TrainRequest([str(text)], layers, out=out, ranks=Ranks(0, 2, 0), **request))

    with pytest.raises(RequestError, match=r"over 2 processes.*; --batch-size 8$"):
        planned("train.batch_size=7")
    assert planned("train.batch_size=8")
    with pytest.raises(RequestError, match="--minutes with 2 processes; say how many --steps"):
        planned("train.batch_size=8", minutes=1.0)
    assert planned("train.batch_size=8", "train.steps=5")
    with pytest.raises(RequestError, match=r"standard input for 2 processes.*; save it as a file"):
        plan_training(TrainRequest(["-"], ranks=Ranks(0, 2, 0)))
    assert planned()  # which has it as a file
    measured = {"seconds_before": 1.0, "seconds_per_step": 1.0, "seconds_per_evaluation": 1.0}
    begun = {"train": {"steps": 7}, "record": {"budget": {"minutes": 1.0, "steps": 7, **measured}}}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tformer.yaml").write_text(json.dumps(begun))
    assert planned(minutes=1.0, resume=True).config.train.steps == 7, "it has its steps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match=r"3 processes .* \(2 GPUs\); lower --nproc-per-node$"):
        own_device("auto", Ranks(2, 3, 2, 3))
    assert own_device("auto", Ranks(1, 2, 1, 2)) == "cuda:1"
    monkeypatch.undo()
    words = ["train", str(text), "--estimate", "--gpus", "2", "--accelerator", "h100"]  # "--gpus N plans …"
    assert CliRunner().invoke(app, words).exit_code == 0
