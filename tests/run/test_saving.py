"""A run directory that is written: which checkpoints stay, what a save that fails leaves, and one writer."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from tests.conftest import tiny_model
from tests.run.test_checkpoint import CHECKPOINT, files
from tformer.config import TrainConfig
from tformer.errors import RequestError, TformerError
from tformer.run.checkpoint import Run, open_run
from tformer.training.fit import State
from tformer.training.optim import Optimizers


def save(run: Run, model, step: int, keep: int = 2) -> None:
    optimizers = Optimizers(model, TrainConfig.model_validate({}))
    run.write_checkpoint(model, optimizers.state_tensors(), State(step=step).as_dict(), keep, {})


def steps_of(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_checkpoints_are_kept(keep, tmp_path):
    model = tiny_model()
    with open_run(tmp_path) as run:
        for step in (1, 2, 9, 10, 11):
            save(run, model, step, keep)
    assert steps_of(tmp_path) == [f"step-{n:08d}" for n in (9, 10, 11)[-keep:]]


def test_that_of_the_weights_at_the_top_stays_until_a_better_one_is_whole(tmp_path):
    model = tiny_model()
    optimizer = Optimizers(model, TrainConfig.model_validate({})).state_tensors()
    with open_run(tmp_path) as run:
        for step, at_top, left in ((1, 1, [1]), (2, 1, [1, 2]), (3, 1, [1, 2, 3]), (4, 1, [1, 3, 4])):
            run.write_checkpoint(model, optimizer, State(step=step).as_dict(), 2, {"kept": {"step": at_top}})
            assert steps_of(tmp_path) == [f"step-{n:08d}" for n in left]
        run.write_checkpoint(model, optimizer, State(step=5).as_dict(), 2, {"kept": {"step": 5}})
    assert steps_of(tmp_path) == ["step-00000004", "step-00000005"]


def test_a_damaged_checkpoint_takes_no_other_ones_place(tmp_path):
    model = tiny_model()
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            save(run, model, step, 3)
    file = tmp_path / "checkpoints" / "step-00000002" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with open_run(tmp_path) as run:
        assert run.read_checkpoint(model)[0].step == 3
        save(run, model, 4, 3)
        assert steps_of(tmp_path) == [f"step-{n:08d}" for n in (1, 2, 3, 4)], "of which three are whole"
        save(run, model, 5, 3)
        assert steps_of(tmp_path) == [f"step-{n:08d}" for n in (3, 4, 5)]


@pytest.mark.parametrize("left", [5, 4], ids=["same step", "another step"])
def test_a_leftover_temporary_directory_is_ignored_and_goes_with_the_next_save(left, tmp_path):
    model = tiny_model()
    with open_run(tmp_path) as run:
        save(run, model, 3)
        leftover = tmp_path / "checkpoints" / f".tmp-step-0000000{left}"
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
        assert run.read_checkpoint(model)[0].step == 3
        save(run, model, 5)
        assert run.read_checkpoint(model)[0].step == 5
    assert steps_of(tmp_path) == ["step-00000003", "step-00000005"]
    assert {p.name for p in (tmp_path / "checkpoints" / "step-00000005").iterdir()} == set(CHECKPOINT)


class Killed(BaseException):
    """The process is gone: no handler of OSError or Exception runs."""


def failing_at(n: int, monkeypatch, error: BaseException) -> None:
    """Make the n-th system call of a save fail: a sync, a rename, a new folder, or for a kill a removal."""
    calls = iter(range(1, 1000))

    def guard(function):
        def call(*args, **kwargs):
            if next(calls) == n:
                raise error
            return function(*args, **kwargs)

        return call

    for owner, name in ((os, "fsync"), (os, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        if name == "rmtree" and isinstance(error, OSError):
            continue  # a removal that fails is passed over
        monkeypatch.setattr(owner, name, guard(getattr(owner, name)))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=repr)
def test_a_save_that_fails_anywhere_leaves_a_whole_checkpoint(error, tmp_path):
    model, failures = tiny_model(), 0
    for n in range(1, 50):
        folder = tmp_path / str(n)
        with open_run(folder) as run, pytest.MonkeyPatch.context() as patch:
            save(run, model, 1)
            save(run, model, 2)
            failing_at(n, patch, error)
            try:
                save(run, model, 3)
                failed = False
            except (TformerError, Killed) as caught:
                failed = True
                assert isinstance(error, Killed) or "No space left on device" in str(caught)
            patch.undo()
            found, problems = run.read_checkpoint(model)
            assert found.step in (2, 3) and not problems, f"failure {n}"
            if isinstance(error, OSError) and failed:
                assert all(name.startswith("step-") for name in steps_of(folder)), "no temporary is left"
            save(run, model, 3)  # and the next attempt succeeds
            assert run.read_checkpoint(model)[0].step == 3
            assert steps_of(folder) == ["step-00000002", "step-00000003"]
        if not failed:
            break
        failures += 1
    assert 8 <= failures < 49, "two new folders, three files' and two folders' syncs, a rename at least"


def test_no_space_for_the_bytes_themselves_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def write(path, write):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    model = tiny_model()
    with open_run(tmp_path) as run:
        save(run, model, 1)
        monkeypatch.setattr("tformer.run.checkpoint.write_new", write)
        with pytest.raises(TformerError, match="No space left on device"):
            save(run, model, 2)
        found, problems = run.read_checkpoint(model)
    assert (found.step, problems, steps_of(tmp_path)) == (1, [], ["step-00000001"])


def test_weights_that_cannot_be_written_leave_the_ones_before(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_run(tmp_path) as run:
        run.write_weights(tiny_model(0))
        before = (tmp_path / "model.safetensors").read_bytes()
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(TformerError, match="No space left on device"):
            run.write_weights(tiny_model(1))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert files(tmp_path) == {"model.safetensors"}
    assert safetensors.torch.load(before)


# ---------------------------------------------------------------------------- one writer, one story


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    first = Run(tmp_path)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(RequestError, match="another process"):
            Run(tmp_path)
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files, "a refused writer leaves nothing open"
    first.close()
    first.close()  # twice does no harm
    Run(tmp_path).close()


def test_the_lock_is_freed_when_a_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path):
        _ = 1 / 0
    Run(tmp_path).close()


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}'])
def test_metrics_are_rewound_to_a_step(tail, tmp_path):
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log({"step": step, "loss": 0.1 * step})
        with run.metrics.open("a") as file:
            file.write(tail)
        run.rewind_metrics(2)
        run.log({"step": 3, "loss": 7.0})
        assert [(m["step"], m["loss"]) for m in run.read_metrics()] == [(1, 0.1), (2, 0.2), (3, 7.0)]
