"""`tformer train … --estimate`: what a run costs, by formula and by a measured second."""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tformer.config import Config
from tformer.counted import counted
from tformer.device import synchronise
from tformer.errors import RequestError, short
from tformer.free_memory import free_bytes, held_bytes
from tformer.run.checkpoint import open_run
from tformer.run.huggingface import empty_model
from tformer.run.manifest import steps_in
from tformer.run.swap import CHECKPOINTS, discard
from tformer.signals import undone_by_signal
from tformer.temporary import lock
from tformer.training.budget import Clock, costs_beside
from tformer.training.costs import (
    ACCELERATORS,
    OPTIMAL,
    UTILISATION,
    Disk,
    Memory,
    OnAccelerator,
    disk_of,
    find_accelerator,
    flops_per_token,
    on_accelerator,
    parameters_by_part,
    training_memory,
)
from tformer.training.fit import Learner, State, fit
from tformer.training.memory import LOGIT_BYTES, USABLE, kept_for_backward
from tformer.training.opening import Prepared, build_session
from tformer.training.session import Session

MEASURED = 1.0  # seconds of training that are timed, about
MOST_GPUS = 10**6
PREFIX, MINUTE = "tformer-estimate-", 60.0  # of its directory; seconds in which a new one is held


@dataclass(frozen=True)
class Here:
    """What was measured on this machine, and what the whole run comes to by it."""

    device: str
    seconds_per_step: float
    seconds_per_evaluation: float
    tokens_per_second: float
    flops_per_second: float
    seconds: float
    process: int | None  # bytes of memory at its peak, with Python, PyTorch, text and ids; None: nobody knows


@dataclass(frozen=True)
class Estimate:
    """All that a run costs. Bytes, seconds and counts; `here` is None where it is planned for elsewhere."""

    parameters: dict[str, int]
    flops_per_token: int
    flops_per_step: int
    steps: int
    windows_at_once: int
    memory: Memory
    disk: Disk
    tokens: int
    optimal_tokens: int
    utilisation: float
    here: Here | None
    accelerators: list[OnAccelerator]

    @property
    def n_parameters(self) -> int:
        """All of them."""
        return sum(self.parameters.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the totals."""
        totals = {"memory": {"total": self.memory.total}, "disk": {"total": self.disk.total}}
        whole = asdict(self)
        return whole | {key: whole[key] | total for key, total in totals.items()}


def estimate(
    prepared: Prepared,
    folder: Path,
    gpus: int | None = None,
    accelerator: str | None = None,
    precision: str = "auto",
    resuming: bool = False,
) -> Estimate:
    """What a run in `folder` would cost, here, or on so many of the accelerator that is named.

    `precision` is what is asked for: what auto comes to here it need not come to there. Of a run that goes on
    the steps to its last checkpoint cost nothing. Raises RequestError, with what to lower, where it has no
    room.
    """
    done = max(steps_in(folder / CHECKPOINTS), default=0) if resuming else 0
    config, left = prepared.config, max(0, prepared.config.train.steps - done)
    train, length = config.train, config.data.window or config.model.n_ctx
    at_once = train.micro_batch_size or train.batch_size
    before = held_bytes()
    memory, disk = training_memory(config, at_once), disk_of(config, _bytes_of_ids(prepared))
    after = held_bytes()  # what counts imports PyTorch's compiler
    beside = after[0] - before[0] if before and after else 0
    if gpus is None and accelerator is None:
        halved = 2 if train.precision == "bf16" else 1
        _check_memory(memory, halved, at_once, length, free_bytes(prepared.device))
        _check_disk(disk, folder)
        here, there = (
            _measured(prepared, memory, at_once, beside, left),
            [on_accelerator(config, name, precision=precision) for name in ACCELERATORS],
        )
    else:
        here, there = None, _planned(config, gpus or 1, accelerator, precision)
    there = [replace(way, seconds=way.seconds * left / train.steps) for way in there]
    per_token, parts = flops_per_token(config.model, length), parameters_by_part(empty_model(config.model))
    return Estimate(
        parts,
        per_token,
        per_token * train.batch_size * length,
        left,
        at_once,
        memory,
        disk,
        left * train.batch_size * length,
        OPTIMAL * sum(parts.values()),
        UTILISATION,
        here,
        there,
    )


def _planned(config: Config, gpus: int, accelerator: str | None, precision: str) -> list[OnAccelerator]:
    """On so many accelerators, with the model whole on each and sharded."""
    if not 1 <= gpus <= MOST_GPUS:
        raise RequestError(f"--gpus {short(str(gpus))}", f"expected 1 to {MOST_GPUS}")
    if accelerator is None:
        raise RequestError("--gpus without --accelerator", "", "name one: " + ", ".join(ACCELERATORS))
    kind = find_accelerator(accelerator)
    ways = [
        on_accelerator(config, accelerator, gpus, sharded, precision=precision) for sharded in (False, True)
    ]
    ways = ways if gpus > 1 else ways[:1]
    if not any(way.has_room for way in ways):
        least, weights = min(way.memory for way in ways), training_memory(config, 1).weights
        if weights > kind.memory:
            raise RequestError(
                f"at an evaluation the first GPU has a whole copy of the weights, {weights / 1e9:.1f} GB",
                f"each {accelerator} has {kind.memory / 1e9:.0f} GB",
                "give a smaller model",
            )
        raise RequestError(
            f"a step with one window at a time takes {least / 1e9:.1f} GB on each of {gpus} {accelerator}",
            f"each has {kind.memory / 1e9:.0f} GB",
            "give more --gpus, or a smaller data.window or model",
        )
    return ways


def _check_memory(memory: Memory, halved: int, at_once: int, length: int, free: int | None) -> None:
    """Raises RequestError for what has no room. Of activations in bf16 half of the bound is certain."""
    if free is None or memory.total - memory.activations + memory.activations // halved <= free:
        return
    state = memory.total - memory.activations
    one = memory.activations // at_once
    advice = "give a smaller model or data.window"
    if at_once > 1 and state + one <= USABLE * free:
        most = int((USABLE * free - state) // one)
        advice = f"set train.micro_batch_size to {most} or less, a divisor of train.batch_size"
    raise RequestError(
        f"a step takes up to {memory.total / 1e9:.1f} GB: {state / 1e9:.1f} GB for the model, its "
        f"gradients and moments, {memory.activations / 1e9:.1f} GB for {counted(at_once, 'window')} of "
        f"{counted(length, 'token')} at a time",
        f"{free / 1e9:.1f} GB are free",
        advice,
    )


def _bytes_of_ids(prepared: Prepared) -> int:
    return prepared.data.kept.n_bytes if prepared.data.kept else 0


def _check_disk(disk: Disk, folder: Path) -> None:
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # nobody knows
        return
    if free < disk.total:
        raise RequestError(
            f"the run leaves {disk.total / 1e9:.1f} GB in {place}",
            f"{free / 1e9:.1f} GB are free",
            "make room, lower train.keep_checkpoints, or give another --out",
        )


# ---------------------------------------------------------------------------- measured


def _measured(
    prepared: Prepared, memory: Memory, at_once: int, beside: int, left: int, clock: Clock = time.perf_counter
) -> Here:
    """About a second of training, in a directory that is thrown away, and what `left` steps take by it.

    `beside` are bytes that this process holds for its counting, and a training does not.
    """
    config = prepared.config
    _sweep_estimates()
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as place,
        undone_by_signal(lambda: discard(Path(place))),
        open_run(Path(place) / "run") as run,
    ):
        session = build_session(run, replace(prepared, limit=None, overwrite=False))
        start = held_bytes()
        group = timed_windows(session, clock)
        step = step_seconds(session, group, clock)
        costs = costs_beside(session, step, 0.0, clock)
        end = held_bytes()
        window = _window_bytes(session) if group < at_once else 0
    process = None
    if prepared.device.type == "cpu" and start and end:
        state = start[0] + memory.gradients + memory.optimizer
        process = max(end[1], state + at_once * window) - beside
    length = config.data.window or config.model.n_ctx
    per_step = config.train.batch_size * length
    return Here(
        str(prepared.device),
        step,
        costs.evaluation,
        per_step / step,
        flops_per_token(config.model, length) * per_step / step,
        costs.of(left, config.train),
        process,
    )


def _sweep_estimates() -> None:
    """Remove the directories of estimates that were killed: each may hold a whole checkpoint."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            old = time.time() - place.stat().st_mtime > MINUTE
            if old and (descriptor := lock(place / "run")) is not None:
                try:
                    discard(place)
                finally:
                    os.close(descriptor)


def _window_bytes(session: Session) -> int:
    """What each window adds to the memory of a step, by what a forward pass keeps as the run has it."""
    model, precision = session.model.train(), session.config.train.precision
    device = next(model.parameters()).device
    ids = torch.from_numpy(session.data.batches.batch(0, 1)[0]).to(device)
    return kept_for_backward(model, ids, precision) + LOGIT_BYTES * ids.numel() * model.config.vocab_size


def timed_windows(session: Session, clock: Clock) -> int:
    """How many windows at a time are timed: those of the run, or as many as take about a second."""
    group = session.config.train.micro_batch_size or session.config.train.batch_size
    _timed_steps(session, 1, 1, 1, clock)  # uncounted: memory is found
    one = _timed_steps(session, 1, 1, 1, clock)
    return group if group * one <= 2 * MEASURED else max(1, int(MEASURED / one))


def step_seconds(session: Session, group: int, clock: Clock) -> float:
    """Seconds of a step, by steps of one group of its windows and of two, where all of it would take long."""
    groups = session.config.train.batch_size / group
    once = _timed_steps(session, group, group, 1, clock)
    times = max(3, min(50, int(MEASURED / once)))
    once = _timed_steps(session, group, group, times, clock)
    if groups == 1:
        return once
    twice = _timed_steps(session, 2 * group, group, max(2, times // 2), clock)
    each = max(twice - once, once / 2)
    return max(0.0, once - each) + groups * each


def _timed_steps(session: Session, windows: int, at_once: int, steps: int, clock: Clock) -> float:
    """Seconds of a step of so many windows: the median of some."""
    device = next(session.model.parameters()).device
    train = session.config.train.model_copy(
        update={
            "batch_size": windows,
            "micro_batch_size": at_once if at_once < windows else 0,
            "steps": steps,
            "eval_every": 0,
            "patience": 0,
            "warmup_steps": 0,
        }
    )
    learner = Learner(session.model, session.optimizers, session.forward)
    began, seconds = clock(), []
    for _ in fit(learner, session.data.batches, train, State()):
        synchronise(device)
        seconds.append(clock() - began)
        began = clock()
    return sorted(seconds)[len(seconds) // 2]
