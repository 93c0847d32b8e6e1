"""What errors of a run's checkpoints, of the place for them, and of what it was trained on advise."""

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import fields, make_dataclass
from pathlib import Path

import torch

from tests.faults.advised.following import (
    AGAIN,
    ANOTHER,
    MORE,
    NEW,
    RESUME,
    Followed,
    fails_once,
    instead,
    move,
    steps,
    tensors,
    tformer,
    write,
)
from tests.faults.tiny import edited
from tformer.run.manifest import ANOTHERS, LATER, check_regular, checkpoint_name
from tformer.temporary import lock
from tformer.training.fit import State

GO_ON = RESUME.replace("--steps 1", "--steps 2")
CHECKPOINT = Path("done/checkpoints", checkpoint_name(1))
AT_STEP = "sample The --device cpu --max-tokens 2 --run done --step 1"
KEPT = AT_STEP.replace(" --step 1", "")
WEIGHTS = "leave --step out for the weights that it keeps"
FULL = "tformer.run.checkpoint.shutil.disk_usage"
READ = "tformer.run.manifest.check_regular"
NO_SPACE, NO_ANSWER = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
)
Usage = namedtuple("Usage", ["total", "used", "free"])
DISK = shutil.disk_usage
HELD: list[int] = []


def hold() -> None:
    """Another process that writes the run."""
    descriptor = lock(Path("done"))
    assert descriptor is not None
    HELD.append(descriptor)


def no_room() -> None:
    """A disk that is full, under one name."""
    instead(FULL, lambda path: Usage(1, 1, 0) if "full" in Path(path).parts else DISK(path))


def checkpoint_of_another() -> None:
    """The checkpoint of another run in the place of its own."""
    tformer(f"{NEW} --seed 5 --out other")
    shutil.rmtree("done/checkpoints")
    shutil.copytree("other/checkpoints", "done/checkpoints")


def unreadable() -> None:
    """A newest checkpoint of two that a disk does not give."""
    tformer(GO_ON)

    def read(path: Path) -> None:
        if path.parent.name == checkpoint_name(2):
            raise NO_ANSWER
        check_regular(path)

    instead(READ, read)


def state_of_a_newer_version() -> None:
    """Where training stands, with what only that knows."""
    known = [(one.name, one.type, one.default) for one in fields(State)]
    newer = make_dataclass("Newer", [*known, ("pauses", int, 0)], bases=(State,), frozen=True)
    instead("tformer.training.opening.State", newer)


ROWS = [
    Followed(
        "run/checkpoint.py __init__",
        GO_ON,
        "wait for it, or give another --out",
        GO_ON,
        first=hold,
        then=steps(lambda: tformer(AGAIN), lambda: os.close(HELD.pop())),
    ),
    Followed(
        "run/checkpoint.py check_room",
        f"{NEW} --out full/run",
        "make room, or give another --out",
        f"{NEW} --out full/run",
        first=no_room,
        then=steps(lambda: tformer(AGAIN), lambda: instead(FULL, DISK)),
    ),
    Followed(
        "run/checkpoint.py write_checkpoint",
        GO_ON,
        "the one before it is whole: continue with --resume",
        GO_ON,
        first=fails_once("tformer.run.checkpoint.write_new", NO_SPACE),
    ),
    Followed(
        "run/checkpoint.py write_checkpoint",
        AGAIN,
        "begin again with --resume",
        f"{AGAIN} --resume",
        first=fails_once("tformer.run.checkpoint.write_new", NO_SPACE),
    ),
    Followed(
        "run/checkpoint.py read_checkpoint",
        GO_ON,
        "start again in another --out",
        AGAIN,
        first=write(str(CHECKPOINT / "manifest.json"), "{"),
    ),
    Followed(
        "run/manifest.py _check_owner",
        GO_ON,
        ANOTHERS,
        (f"{NEW} --out new", GO_ON),
        first=checkpoint_of_another,
        then=move(str(CHECKPOINT), "away"),
    ),
    Followed("run/manifest.py _check_owner", AT_STEP, WEIGHTS, KEPT, first=checkpoint_of_another),
    Followed("run/manifest.py _told", GO_ON, LATER, GO_ON, first=fails_once(READ, NO_ANSWER)),
    Followed(
        "run/manifest.py _told",
        GO_ON,
        LATER,
        GO_ON,
        first=unreadable,
        then=move(f"done/checkpoints/{checkpoint_name(2)}", "away"),
    ),
    Followed(
        "run/manifest.py _told",
        AT_STEP,
        f"try again, or {WEIGHTS}",
        (AT_STEP, KEPT),
        first=fails_once(READ, NO_ANSWER),
    ),
    Followed(
        "run/manifest.py _read_manifest",
        GO_ON,
        "upgrade",
        GO_ON,
        first=lambda: edited(CHECKPOINT, format=2),
        then=lambda: instead("tformer.run.manifest.FORMAT", 2),
    ),
    Followed(
        "training/fit.py from_dict",
        GO_ON,
        "upgrade",
        GO_ON,
        first=lambda: edited(CHECKPOINT, lambda tensors, state: state.update(pauses=3)),
        then=state_of_a_newer_version,
    ),
    Followed(
        "training/optim.py load_state_tensors",
        GO_ON,
        "--init-from this run begins another with its weights",
        "train a.txt --init-from done --device cpu --batch-size 2 --steps 1 --out other",
        first=lambda: edited(CHECKPOINT, lambda tensors, state: tensors.update(nobody=torch.zeros(2))),
    ),
    Followed(
        "loss.py check_finite",
        KEPT,
        "give another --run",
        (AGAIN, KEPT.replace("done", "other")),
        first=tensors(lambda held: held["ln_f.weight"].fill_(3e38), "done/model.safetensors"),
    ),
    Followed("run/record.py check_hash", RESUME, ANOTHER, AGAIN, first=write("a.txt", MORE)),
]
