"""What `tformer train` is asked for, and what that comes to before a text is read: request → plan.

Which device, directory, preset and configuration; what contradicts itself is refused here.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tformer.config import Config
from tformer.counted import counted
from tformer.device import resolve_device
from tformer.errors import RequestError
from tformer.layers import Layer, preset_layer
from tformer.ranks import BY_ITSELF, Ranks
from tformer.run.checkpoint import Run, open_run
from tformer.run.find import new_run_folder, unfinished_run
from tformer.run.pretrained import Pretrained, is_origin, read_pretrained
from tformer.run.record import ANOTHER_RUN, Record, read_record
from tformer.run.swap import is_untouched, recover
from tformer.run.token_folders import check_kind
from tformer.text.corpus import are_lists, corpus_name, shadowed
from tformer.text.piped import USUAL_FIELD
from tformer.training.by_time import start_layer
from tformer.training.changed import other_inputs
from tformer.training.settings import OF_A_LIST, OtherRunError, default_preset, other_run, training_config

REVERSAL = ["reversal"]  # DATA that is no text
UNSHARED = "train.shard shares nothing out: this process is alone (torchrun starts several)"


@dataclass(frozen=True)
class TrainRequest:
    """What `tformer train` was asked for. `layers` are settings beside a preset, the later ones winning."""

    sources: Sequence[str]
    layers: Sequence[Layer] = ()
    preset: str | None = None
    device: str = "auto"
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    init_from: str | None = None
    val_data: Sequence[str] = ()
    eval_data: str | None = None
    minutes: float | None = None
    ranks: Ranks = BY_ITSELF
    elsewhere: bool = False  # it is planned for other machines, and what this one has does not count
    began: float = field(default_factory=time.perf_counter)  # the minutes are counted from here


@dataclass(frozen=True)
class Plan:
    """What a request comes to, before a text is read."""

    request: TrainRequest
    device: torch.device
    name: str  # of the data, and so of a run in runs/
    folder: Path
    recorded: Record  # of the run that is resumed; empty for one that begins
    pretrained: Pretrained | None
    preset: str
    config: Config
    notes: tuple[str, ...] = ()  # for a person
    by_time: bool = False  # whether its model follows from the time that it has

    @property
    def by_recipe(self) -> bool:
        """Whether it goes on from trained weights by the recipe for that, which the text completes."""
        return self.pretrained is not None and not self.request.preset and self.config.data.task == "text"

    def leaves_open(self, section: str, name: str) -> bool:
        """Whether no layer of settings says what a setting is."""
        return leaves_open(self.request.layers, section, name)

    @property
    def resuming(self) -> bool:
        """Whether a run goes on."""
        return not self.recorded.is_empty


def plan_training(request: TrainRequest) -> Plan:
    """Which device, directory, preset and configuration. Raises RequestError for what contradicts itself."""
    if request.ranks.are_several and "-" in request.sources:
        what = f"standard input for {request.ranks.world} processes"
        raise RequestError(what, "one alone reads it", "save it as a file")
    preset = preset_layer(request.preset) if request.preset else None
    device = resolve_device(request.device)
    sources = list(request.sources)
    name = "reversal" if sources == REVERSAL else corpus_name(sources)
    folder = _folder(request, name)
    recover(folder)
    recorded = read_record(folder) if request.resume else Record()
    resuming = not recorded.is_empty
    _check_folder(folder, resuming, request.overwrite)
    pretrained = _pretrained(request.init_from, folder, recorded)
    default = default_preset(sources, device, on_gpu=not (preset or resuming or pretrained))
    smaller = default_preset(sources, device, on_gpu=False)
    chosen = f"a GPU: preset {default}, the larger one (the other: --preset {smaller})"
    if default == "text" and not (preset or resuming or pretrained) and _is_list(request):
        default, chosen = OF_A_LIST, f"a list: preset {OF_A_LIST} (the other: --preset text)"
    by_time = default != OF_A_LIST and _is_by_time(request, device, recorded)
    start = [start_layer(request.layers)] if by_time else []
    try:
        config = training_config(default, preset, [*start, *request.layers], recorded, pretrained)
    except OtherRunError as error:
        raise other_run(error.others, other_inputs(folder, recorded, sources)) from None
    if (config.data.task == "reversal") != (sources == REVERSAL):
        raise RequestError(
            f"data.task is {config.data.task}", f"DATA is {' '.join(sources)}", "they must agree"
        )
    check_kind(sources, [layer.values.get("data", {}).get("tokenizer") for layer in request.layers])
    if request.val_data and sources == REVERSAL:
        raise RequestError("--val-data is for a run on text", "this one is on reversal", "leave it out")
    if resuming and request.val_data and not recorded.data.val_source:
        what = f"{folder} is validated on a part of its text"
        raise RequestError(what, "found --val-data", f"leave it out, or {ANOTHER_RUN}")
    if request.val_data and config.data.val_split not in ("auto", "end") and not resuming:
        what = f"--val-data and data.val_split={config.data.val_split} both say what it is validated on"
        raise RequestError(what, "", "leave one out")
    if request.val_data or recorded.data.val_source:
        config = config.updated("data", val_fraction=0.0)
    if resuming and request.minutes is not None:
        _check_minutes(request.minutes, recorded, config)
    _check_ranks(request, config, resuming)
    return Plan(
        request,
        device,
        name,
        folder,
        recorded,
        pretrained,
        request.preset or default,
        config,
        by_time=by_time,
        notes=(
            *shadowed([*sources, *request.val_data]),
            *(() if default == smaller else (chosen,)),
            *(pretrained.notes if pretrained else ()),
            *((UNSHARED,) if config.train.shard and not request.ranks.are_several else ()),
        ),
    )


def leaves_open(layers: Sequence[Layer], section: str, name: str) -> bool:
    """Whether none of them says what a setting is."""
    return all(name not in layer.values.get(section, {}) for layer in layers)


def _is_by_time(request: TrainRequest, device: torch.device, recorded: Record) -> bool:
    """Whether time is all that says which model: no preset, run, other model or settings do.

    The rule for that is known on CPUs, and not of lists, which have a preset of their own.
    """
    said = request.preset or request.init_from or not recorded.is_empty or list(request.sources) == REVERSAL
    is_open = any(leaves_open(request.layers, "model", name) for name in ("d_model", "n_layers"))
    return request.minutes is not None and device.type == "cpu" and is_open and not said


def _is_list(request: TrainRequest) -> bool:
    """Whether DATA is a list, and no setting says that it is something else."""
    data = [layer.values.get("data", {}) for layer in request.layers]
    said = {values.get("documents", "auto") for values in data}
    field = [USUAL_FIELD, *(values["field"] for values in data if isinstance(values.get("field"), str))][-1]
    return said <= {"auto", "line"} and are_lists(request.sources, field)


def _folder(request: TrainRequest, name: str) -> Path:
    """--out, or the newest unfinished run of that name, or a new one."""
    if request.out is not None:
        return request.out
    if not request.resume:
        return new_run_folder(name)
    folder = unfinished_run(name)
    if folder is None:
        raise RequestError(
            f"no unfinished run of {name}", "", "leave --resume out to start one, or say which: --out DIR"
        )
    return folder


def _check_folder(folder: Path, resuming: bool, overwrite: bool) -> None:
    """Nothing that exists is overwritten unless --overwrite says so, and then only a run."""
    if not folder.exists() or resuming:
        return
    if not folder.is_dir():
        raise RequestError(f"{folder} is a file", "expected a folder to write a run in")
    is_run = (folder / "tformer.yaml").exists()
    if not (is_untouched(folder) or (overwrite and is_run)):
        found = "a run stands there" if is_run else "it is not empty, and not a run"
        advice = "--overwrite, --resume, or another --out" if is_run else "give another --out"
        raise RequestError(f"{folder} exists", found, advice)


def _pretrained(init_from: str | None, folder: Path, recorded: Record) -> Pretrained | None:
    """What the run begins with; None for one that is resumed, which has weights of its own."""
    if init_from is None:
        return None
    if recorded.is_empty:
        pretrained = read_pretrained(init_from)
        if pretrained.folder.resolve() == folder.resolve():
            raise RequestError(f"{folder} is what --init-from reads", "", "give another --out")
        return pretrained
    if not is_origin(init_from, recorded):
        origin = recorded.init_from.source if recorded.init_from else "random weights"
        raise RequestError(
            f"{folder} did not begin from {init_from}", f"it began from {origin}", "leave --init-from out"
        )
    return None


def _check_ranks(request: TrainRequest, config: Config, resuming: bool) -> None:
    """What several processes cannot do together. A run that goes on has its steps, by minutes or not."""
    world, batch = request.ranks.world, config.train.batch_size
    if batch % world:
        advice = f"--batch-size {max(1, round(batch / world)) * world}"
        raise RequestError(
            f"train.batch_size {batch} over {world} processes", "expected a number that they divide", advice
        )
    if world > 1 and request.minutes is not None and not resuming:
        raise RequestError(f"--minutes with {world} processes", "", "say how many --steps")


def _check_minutes(minutes: float, recorded: Record, config: Config) -> None:
    """A run that goes on has the steps that its minutes gave it."""
    known = recorded.budget.minutes if recorded.budget else None
    if known != minutes:
        found = counted(known, "minute", spec="g") if known else "steps"
        raise RequestError(
            f"--minutes {minutes:g} with --resume",
            f"this run was given {found}, and has {counted(config.train.steps, 'step')}",
            "leave it out to continue; --steps N gives it more",
        )


def locked(plan: Plan) -> AbstractContextManager[Run]:
    """The directory of the run, for this process alone while the block runs."""
    request, folder = plan.request, plan.folder
    if request.out is None and not request.resume:
        folder = new_run_folder(plan.name)  # another process may have taken the name meanwhile
    return _locked(folder, plan.resuming, request.overwrite)


@contextmanager
def _locked(folder: Path, resuming: bool, overwrite: bool) -> Iterator[Run]:
    with open_run(folder) as run:
        _check_folder(folder, resuming, overwrite)  # again, now that nobody else can write
        run.sweep()
        yield run
