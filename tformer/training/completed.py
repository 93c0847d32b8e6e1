"""What text and memory say of a configuration, where no layer of settings says it: once, as a run begins.

It is recorded like any other setting, and obeyed on resume.
"""

import time
from functools import partial

import torch

from tformer.config import Config
from tformer.counted import counted
from tformer.errors import RequestError
from tformer.free_memory import free_bytes
from tformer.run.data import Complete, Data
from tformer.text.data import Windows
from tformer.text.tokenizer import Tokenizer
from tformer.training.budget import RESERVE, Clock
from tformer.training.by_time import PROBING, Room, config_for, describe, measured_flops
from tformer.training.further import steps_for, window_for
from tformer.training.memory import windows_at_a_time
from tformer.training.plan import Plan
from tformer.training.settings import OF_A_LIST, decide

PASSES_FOR_DROPOUT = 10  # over a list; `examples/benchmarks/LOG.md` has lists that are read 4.5 and 21 times


def completing(plan: Plan, clock: Clock = time.perf_counter) -> Complete | None:
    """What completes the configuration of a plan once the size of the text is known, if anything does."""
    if plan.pretrained:
        return partial(_windowed, plan.device)
    return partial(_by_time, plan, clock) if plan.by_time else None


def _windowed(device: torch.device, config: Config, tokenizer: Tokenizer, n_train: int, n_val: int) -> Config:
    """With a window that suits text and device, where a person leaves it open."""
    if config.data.window:
        return config
    window = max(window_for(config.model.n_ctx, n_train, device), config.data.stride)
    return config.updated("data", window=window) if window < config.model.n_ctx else config


def _by_time(
    plan: Plan, clock: Clock, config: Config, tokenizer: Tokenizer, n_train: int, n_val: int
) -> Config:
    """With the model that the time of the plan has room for on this machine."""
    minutes = plan.request.minutes
    assert minutes is not None
    settled = decide(config, plan.device, tokenizer.vocab_size)
    flops = measured_flops(settled, plan.device, 60 * minutes * PROBING, clock)
    seconds = (60 * minutes - (clock() - plan.request.began)) * (1 - RESERVE)
    if plan.request.val_data:  # it is not read yet, and is as a rule no longer than a part of the text
        n_val = n_train // 9
    room = Room(max(seconds, 1.0), flops, tokenizer.kind, n_train, n_val)
    return config_for(room, settled, plan.leaves_open, partial(_has_memory, plan))


def _has_memory(plan: Plan, config: Config) -> bool:
    """Whether a window of it has room on the device."""
    try:
        _at_a_time(plan, config)
    except RequestError:
        return False
    return True


def completed(plan: Plan, config: Config, data: Data) -> tuple[Config, tuple[str, ...]]:
    """The configuration with what follows from the text and the memory, and what a person is told of it."""
    if not isinstance(data.batches, Windows) or plan.resuming:
        return config, ()
    if plan.pretrained:
        return _at_a_time(plan, _trained_further(plan, config, data.batches)), ()
    if plan.by_time:
        return _at_a_time(plan, config), (describe(config),)
    by_steps = plan.request.minutes is None  # else they are not known yet
    if plan.preset == OF_A_LIST and by_steps and plan.leaves_open("model", "dropout"):
        return _of_a_list(config, data)
    return config, _untrained_positions(config)


def _untrained_positions(config: Config) -> tuple[str, ...]:
    """What to say of learned positions that no window reaches, where a new model is judged by them."""
    window, n_ctx = config.data.window, config.model.n_ctx
    if not window or window == n_ctx or config.model.positions != "learned":
        return ()
    return (
        f"positions from {window} on are never trained (data.window), and validation has all {n_ctx}; "
        f"--set model.n_ctx={window}: a model that ends there",
    )


def _trained_further(plan: Plan, config: Config, windows: Windows) -> Config:
    """Windows and steps of a model that is trained further."""
    if windows.n_ctx < config.model.n_ctx:
        config = config.updated("data", window=windows.n_ctx)
    if plan.by_recipe and plan.request.minutes is None:
        found = steps_for(windows.per_epoch, config.train.batch_size)
        config = config.updated("train", **{k: v for k, v in found.items() if plan.leaves_open("train", k)})
    return config


def _at_a_time(plan: Plan, config: Config) -> Config:
    """With as many windows at a time as memory has room for."""
    if not config.train.micro_batch_size and not plan.request.elsewhere:
        ranks = plan.request.ranks
        free, on_cpu = free_bytes(plan.device, ranks.here), plan.device.type == "cpu"
        at_once = windows_at_a_time(config, free, ranks.world, on_cpu)
        if at_once < config.train.batch_size // ranks.world:
            config = config.updated("train", micro_batch_size=at_once)
    return config


def _of_a_list(config: Config, data: Data) -> tuple[Config, tuple[str, ...]]:
    """No dropout for a list that is too long to be learnt by heart; a short one has that of its preset."""
    train, windows, dropout = config.train, data.batches, config.model.dropout
    assert isinstance(windows, Windows)
    passes = train.steps * train.batch_size * windows.n_ctx / (data.facts.train_tokens or 1)
    read = f"in {counted(train.steps, 'step')} the list is read {counted(passes, 'time', spec='.2g')}"
    if passes >= PASSES_FOR_DROPOUT:
        return config, (f"dropout {dropout:g}: {read}; otherwise: --set model.dropout=0",)
    said = f"no dropout: {read}, and it would help from {PASSES_FOR_DROPOUT} on"
    return config.updated("model", dropout=0.0), (f"{said}; otherwise: --set model.dropout={dropout:g}",)
