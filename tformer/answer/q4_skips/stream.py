"""What runs through the blocks: x before and after each, models of many random blocks, curves by block."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tformer.answer.experiment import E, Seeds
from tformer.answer.lab import build, tiny
from tformer.answer.parts import start_random
from tformer.figures import Series
from tformer.model import Block, Transformer
from tformer.watch import module_calls, put_blocks

DEPTH, RANDOM_SYMBOLS = 16, 32  # of the models with random weights
RUN = "the run"


def deep(kind: type[Block], seed: int, length: int) -> Transformer:
    """16 blocks of a kind with random weights, the same for every kind."""
    config = tiny(vocab_size=RANDOM_SYMBOLS, n_ctx=length, n_layers=DEPTH)
    return put_blocks(build(config, seed, start_random), kind)


def random_ids(seed: int, n: int, length: int) -> Tensor:
    """Inputs for such a model, shape (n, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(RANDOM_SYMBOLS, (n, length), generator=generator)


@torch.no_grad()
def streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """x before the first block and after each: n_layers + 1 tensors of (batch, position, d_model)."""
    with module_calls(model.blocks) as calls:
        model(ids)
    return [calls[0].x, *(call.output for call in calls)]


def curve(seeds: Seeds[E], name: str, x: Sequence[float], y: Callable[[E], Sequence[float]]) -> Series:
    """As `Seeds.curve`; but two seeds have no interval that is worth drawing."""
    return _of_three_or_more(seeds, seeds.curve(name, x, y))


def log_curve(seeds: Seeds[E], name: str, x: Sequence[float], y: Callable[[E], Sequence[float]]) -> Series:
    """As `Seeds.log_curve`; but two seeds have no interval that is worth drawing."""
    return _of_three_or_more(seeds, seeds.log_curve(name, x, y))


# Not a rule of `Seeds` itself: the other questions draw the band of two seeds as well, which is those two.
def _of_three_or_more(seeds: Seeds[E], drawn: Series) -> Series:
    return drawn if len(seeds) > 2 else replace(drawn, low=(), high=())
