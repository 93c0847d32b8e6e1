"""What a checkpoint builds on is on the disk before the checkpoint counts."""

import os
from pathlib import Path

import pytest

from tests.faults.tiny import TRAIN, place
from tformer import files
from tformer.cli import app


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nothing says which file a descriptor is of")
def test_metrics_and_folders_are_synced_before_a_checkpoint_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(place(tmp_path / "here"))
    done: list[tuple[str, str]] = []
    sync, rename, write = os.fsync, os.rename, files.append_line

    def synced(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(old, new):
        done.append(("rename", str(Path(new).resolve())))
        rename(old, new)

    def written(path, values):
        done.append(("write", str(path.resolve())))
        write(path, values)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr("tformer.run.checkpoint.append_line", written)
    app([*TRAIN, "--out", "runs/new"], standalone_mode=False)
    run = tmp_path / "here" / "runs" / "new"
    for step in (2, 4, 6):
        until = done[: done.index(("rename", str(run / "checkpoints" / f"step-{step:08d}")))]
        lines = [i for i, call in enumerate(until) if call == ("write", str(run / "metrics.jsonl"))]
        assert len(lines) == step
        assert ("sync", str(run / "metrics.jsonl")) in until[lines[-1] :], f"step {step}"
    for folder in (run, run.parent):
        assert ("sync", str(folder)) in until
    made = until.index(("sync", str(run.parent)))
    assert made < until.index(("write", str(run / "metrics.jsonl")))
