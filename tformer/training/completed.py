"""What text and memory say of a configuration, where no layer of settings says it: once, as a run begins.

It is recorded like any other setting, and obeyed on resume.
"""

from tformer.config import Config
from tformer.counted import counted
from tformer.run.data import Data
from tformer.text.data import Windows
from tformer.training.further import steps_for
from tformer.training.memory import free_bytes, windows_at_a_time
from tformer.training.plan import Plan
from tformer.training.settings import OF_A_LIST

PASSES_FOR_DROPOUT = 10  # over a list; `examples/benchmarks/LOG.md` has lists that are read 4.5 and 21 times


def completed(plan: Plan, config: Config, data: Data) -> tuple[Config, tuple[str, ...]]:
    """The configuration with what follows from the text and the memory, and what a person is told of it."""
    if not isinstance(data.batches, Windows) or plan.resuming:
        return config, ()
    if plan.pretrained:
        return _trained_further(plan, config, data.batches), ()
    if plan.preset == OF_A_LIST and plan.leaves_open("model", "dropout"):
        return _of_a_list(config, data)
    return config, ()


def _trained_further(plan: Plan, config: Config, windows: Windows) -> Config:
    """Windows, steps and how many windows at a time, of a model that is trained further."""
    if windows.n_ctx < config.model.n_ctx:
        config = config.updated("data", window=windows.n_ctx)
    if plan.by_recipe and plan.request.minutes is None:
        found = steps_for(windows.per_epoch, config.train.batch_size)
        config = config.updated("train", **{k: v for k, v in found.items() if plan.leaves_open("train", k)})
    if not config.train.micro_batch_size:
        ranks = plan.request.ranks
        at_once = windows_at_a_time(config, free_bytes(plan.device, ranks.here), ranks.world)
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
