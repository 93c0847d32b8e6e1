"""Writers that are wrong on purpose, each in one way: the experiments have to catch them all.

An experiment that finds nothing may be blind. Each of these takes the place of the real writer in the copy
of this process that trains.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from tests.faults.every_change import State, fresh_run
from tests.faults.power import new_run, recorded
from tests.faults.row import Outcome, Row
from tests.faults.tiny import TRAIN, made, place

EVERY = 9  # so manyth change after which the power fails

Writer = Callable[[], object]


def no_sync() -> None:
    """Nothing is synced."""
    from tformer import files
    from tformer.run import checkpoint, swap

    def write_new(path: Path, write: Callable[[Any], object]) -> None:
        with path.open("w+b") as file:
            write(file)

    def nothing(path: Path) -> None:
        pass

    files.write_new = checkpoint.write_new = write_new
    files.sync_folder = checkpoint.sync_folder = swap.sync_folder = nothing
    checkpoint.sync_file = nothing


def rename_first() -> None:
    """A file has its name before it has its bytes."""
    from tformer import files
    from tformer.run import card, checkpoint
    from tformer.show import run_page, training

    def write_file(path: Path, data: bytes | Callable[[Any], object]) -> None:
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        with temporary.open("w+b") as file:
            os.replace(temporary, path)
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(file.fileno())
        files.sync_folder(path.parent)

    for module in (files, checkpoint, card, run_page, training):
        assert hasattr(module, "write_file")
        module.write_file = write_file


def manifest_first() -> None:
    """A checkpoint is written under its name, and what it promises before what keeps the promise."""
    from tformer.run import checkpoint

    def save(run: checkpoint.Run, model: Any, optimizer: Any, state: dict, keep: int, identity: dict) -> Path:
        final = run.checkpoints / checkpoint.checkpoint_name(state["step"])
        final.mkdir(parents=True)
        tensors = {
            "model.safetensors": checkpoint.to_hf(model.config, model.state_dict()),
            "optimizer.safetensors": {k: t.detach().contiguous() for k, t in optimizer.items()},
        }
        files = {name: save_tensors(held, {"format": "pt"}) for name, held in tensors.items()}
        promised = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
        manifest = {"format": 1, "state": state, **identity, "files": promised}
        manifest["sha256"] = checkpoint.manifest_hash(manifest)
        files = {"manifest.json": json.dumps(manifest).encode()} | files
        for name, data in files.items():
            checkpoint.write_new(final / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        checkpoint.sync_folder(final)
        checkpoint.sync_folder(run.checkpoints)
        for old in run._names()[keep:]:
            shutil.rmtree(run.checkpoints / old)
        return final

    checkpoint.Run.write_checkpoint = save  # type: ignore[method-assign]


def prune_first() -> None:
    """Older checkpoints go before the new one is there."""
    from tformer.run import checkpoint

    real = checkpoint.Run.write_checkpoint

    def save(run: checkpoint.Run, *rest: Any) -> Path:
        for old in run._names()[1:]:
            shutil.rmtree(run.checkpoints / old)
        return real(run, *rest)

    checkpoint.Run.write_checkpoint = save  # type: ignore[method-assign]


WRITERS = {
    "no fsync": no_sync,
    "rename before write": rename_first,
    "manifest first": manifest_first,
    "prune before commit": prune_first,
}


def caught(writer: Writer, folder: Path, end: State, whole: bool) -> dict[str, int]:
    """How many failures each experiment finds, by its name."""
    kills = folder / "kills"
    kills.mkdir(parents=True)
    turns = range(1, 1000) if whole else telling(writer, folder)
    failures: list[str] = []
    new_run(folder / "power", end, failures, EVERY if whole else 5 * EVERY, writer)
    return {"kills": len(fresh_run(kills, end, turns, writer)[1]), "power loss": len(failures)}


def telling(writer: Writer, folder: Path) -> list[int]:
    """For a sample: the changes right after one that gives or takes the name of weights or a checkpoint."""
    changes = recorded([*TRAIN, "--resume"], place(folder / "telling"), writer)
    named = [
        n
        for n, change in enumerate(changes, 1)
        if change.kind in ("rename", "rmdir", "mkdir")
        and ("/checkpoints/" in change.path or change.to.endswith("/model.safetensors"))
    ]
    return [n + 1 for n in named]


def measure(folder: Path, whole: bool) -> Outcome:
    """Both experiments on every writer."""
    ends, told, outcome = made(folder / "made")[1], [], Outcome()
    for name, writer in WRITERS.items():
        by = caught(writer, folder / name, ends["new"], whole)
        told.append(f"{name} by " + (" and ".join(f"{k} ({n})" for k, n in by.items() if n) or "nothing"))
        outcome.failures += [f"{name} is not caught"] * (not any(by.values()))
    outcome.found = "; ".join(told)
    return outcome


ROW = Row(
    "broken writers",
    "writers that are wrong on purpose: no fsync, rename before write, manifest first, prune before commit",
    "each is caught",
    measure,
)
