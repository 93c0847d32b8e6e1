"""What a run that goes on has otherwise than before: settings and machine, and what that means for its bits.

What is said of these is recorded too: `changed` and `sessions` in `tformer.yaml`. Another tokenizer and
another text make another run, and are refused.
"""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tformer import __version__
from tformer.config import Config, TrainConfig
from tformer.errors import RequestError, TformerError
from tformer.run.own_tokenizer import other_tokenizer
from tformer.run.record import Changed, Continued, Record
from tformer.run.source import given_source, sha256_of
from tformer.training.optim import lr_at
from tformer.training.settings import MAY_CHANGE, OF_THE_RATE

OF_SUMS = ("micro_batch_size", "shard")  # settings that say in which order gradients are added up
COMPARED = 1000  # rates of a run so far, at most

# ---------------------------------------------------------------------------- refused


def other_inputs(folder: Path, recorded: Record, sources: Sequence[str]) -> list[str]:
    """What beside its settings is not as it was in a run that is refused for these: tokenizer and text."""
    told = []
    if differs := other_tokenizer(folder, recorded):
        told.append(f"tokenizer.json has {differs}")
    return told + other_text(recorded, sources)


def other_text(recorded: Record, sources: Sequence[str]) -> list[str]:
    """Whether the text is not the recorded one; nothing of one that cannot be read.

    Standard input is read to its end: whoever asks is about to refuse the run, and reads no text.
    """
    known = recorded.data.sha256
    if not known or not ("-" in sources or given_source(sources).is_here):
        return []
    try:
        found = sha256_of(sources, recorded)
    except (TformerError, OSError):
        return []
    return [] if found == known else [f"the text has sha256 {found[:12]}…, recorded is {known[:12]}…"]


# ---------------------------------------------------------------------------- settings


def changed_settings(before: dict[str, Any], config: Config) -> dict[str, Any]:
    """Of the settings that may change those that were others before, as they were."""
    now = {name: getattr(config.train, name) for name in MAY_CHANGE}
    found = {name: before[name] for name in MAY_CHANGE if before.get(name, now[name]) != now[name]}
    try:
        config.updated("train", **found)
    except ValidationError:  # they are no settings
        return {}
    return found


def refuse_unused_rate(was: dict[str, Any], config: Config, step: int) -> None:
    """Raises RequestError for another rate where no step is left that could have it."""
    if "lr" in was and step >= config.train.steps:
        raise RequestError(
            f"train.lr {config.train.lr:g}",
            f"the run has all of its {step:,} steps, with {was['lr']:g}",
            "give it more --steps, or leave --lr out",
        )


def with_changes(record: Record, was: dict[str, Any], step: int) -> Record:
    """The record with what changes after a step; what was to change from there on before is forgotten."""
    kept = [one for one in record.changed if one.after_step < step]
    if was and step:
        kept.append(Changed(after_step=step, was=was))
    if kept == record.changed:
        return record
    return record.updated(changed=kept) if kept else record.without("changed")


def told_of_settings(was: dict[str, Any], config: Config, step: int) -> tuple[str, ...]:
    """For a person: which settings are others than up to a step, and whose bits the run will have."""
    if not step:  # nothing of before is left
        return ()
    told = []
    if of_rate := _listed(was, OF_THE_RATE, config):
        same = _same_rates(config.updated("train", **was).train, config.train, step)
        like = "match a run" if same else "differ from those of a run"
        bits = "" if same else "not "
        told.append(f"{of_rate}: rates so far {like} that had it from the start; {bits}bit-identical to it")
    if beside := _listed(was, [name for name in was if name not in (*OF_THE_RATE, *OF_SUMS)], config):
        told.append(f"{beside}: every step stays bit-identical")
    if sums := _listed(was, OF_SUMS, config):
        told.append(f"{sums}: the same steps, summed in another order: results may differ in the last bits")
    return tuple(told)


def _listed(was: dict[str, Any], names: Iterable[str], config: Config) -> str:
    found = [
        f"train.{name} {_shown(was[name])}, now {_shown(getattr(config.train, name))}"
        for name in names
        if name in was
    ]
    return "; ".join(found)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _same_rates(before: TrainConfig, now: TrainConfig, step: int) -> bool:
    """Whether steps so far had the rates that they would have now."""
    some = range(0, step, max(1, step // COMPARED))
    return all(lr_at(i, before) == lr_at(i, now) for i in (*some, step - 1))


def rate_again(was: dict[str, Any], config: Config, step: int) -> list[str]:
    """A warning where more steps than a run had make its rate rise again: it is that of a run of so many."""
    steps = was.get("steps", config.train.steps)
    if not step <= steps < config.train.steps:
        return []
    had, has = lr_at(step - 1, config.updated("train", **was).train), lr_at(step, config.train)
    if has <= had:
        return []
    return [
        f"{config.train.steps:,} steps in place of {steps:,}: the learning rate goes on at {has:.2e}, "
        f"where it was {had:.2e}"
    ]


# ---------------------------------------------------------------------------- the machine


def environment(device: torch.device, world: int = 1) -> dict[str, Any]:
    """What the bits of a training depend on, beside what it is told."""
    return {
        "versions": {
            "tformer": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": world,
    }


def with_session(record: Record, now: dict[str, Any], step: int) -> tuple[Record, list[str]]:
    """The record of a run that goes on after a step in this environment, and what is not as it was before."""
    before = record.sessions[-1] if record.sessions else record
    if step == 0:  # nothing of before is left
        return record.updated(**now).without("sessions"), []
    parts = [(name, before.versions.get(name), found) for name, found in now["versions"].items()]
    parts += [(name, getattr(before, name), now[name]) for name in ("device", "threads", "processes")]
    told = [f"{name} {old}, now {new}" for name, old, new in parts if old is not None and old != new]
    if not told:
        return record, []
    record = record.updated(sessions=[*record.sessions, Continued(after_step=step, **now)])
    return record, [
        f"the run was made with {'; '.join(told)}: results may differ from one session's in the last bits"
    ]
