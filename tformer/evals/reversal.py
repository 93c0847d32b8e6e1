"""Accuracy on the reversal task, position by position, and the verdict on the mask.

Knows nothing of files or terminals.
"""

from dataclasses import dataclass

import torch

from tformer.device import autocast
from tformer.errors import RequestError
from tformer.evals.statistics import binomial_interval
from tformer.loss import check_finite
from tformer.model import Transformer
from tformer.text.data import Reversal

N = 2000  # sequences that a verdict is made on, where nothing else is asked for
CONFIDENCE = 0.999
SECOND_HALF_AT_LEAST = 0.999


@dataclass(frozen=True)
class PositionResult:
    """One target position of the reversal task. `half` is first or second, `expected` an accuracy."""

    position: int
    half: str
    expected: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class ReversalResult:
    """Accuracy by position and the verdict on the mask."""

    positions: list[PositionResult]
    first_half: float
    second_half: float
    chance: float
    interval: tuple[float, float]  # where first_half lies if the model sees no target
    position_interval: tuple[float, float]  # the same for one position
    passed: bool

    @property
    def confidence(self) -> float:
        """The share of all cases in which a model that sees no target lies inside an interval."""
        return CONFIDENCE

    def as_expected(self, position: PositionResult) -> bool:
        """Whether one of the positions is where it should be: inside the interval of chance, or known."""
        if position.half == "second":
            return position.accuracy >= SECOND_HALF_AT_LEAST
        return self.position_interval[0] <= position.accuracy <= self.position_interval[1]


@torch.inference_mode()
def reversal(
    model: Transformer, task: Reversal, n: int = N, precision: str = "fp32", index: int = 0
) -> ReversalResult:
    """Accuracy on `n` fresh sequences, position by position, and whether the mask is right.

    Passed means: over all positions of the first half together, the accuracy lies inside the 99.9 %
    binomial interval of chance, which is exact, since those targets are independent of everything that
    a masked model sees; and over the second half together it is at least 99.9 %. Raises TformerError
    where the logits are not finite.
    """
    if model.config.n_ctx < task.n_ctx:
        raise RequestError(
            f"the model sees {model.config.n_ctx} positions",
            f"sequences of 2 · {task.length} tokens need {task.n_ctx}",
        )
    device = next(model.parameters()).device
    model.eval()
    inputs, targets = (torch.from_numpy(a) for a in task.fresh(n, index))
    correct = torch.zeros(task.n_ctx, dtype=torch.int64)
    for some_inputs, some_targets in zip(inputs.split(512), targets.split(512), strict=True):
        with autocast(precision, device):
            logits = model(some_inputs.to(device))
        check_finite(logits, "logits", "scored")
        correct += (logits.argmax(-1).cpu() == some_targets).sum(0)
    chance = 1 / task.symbols
    n_first = task.length - 1
    positions = [
        PositionResult(
            position=i + 1,
            half="first" if i < n_first else "second",
            expected=chance if i < n_first else 1.0,
            accuracy=int(count) / n,
            n=n,
        )
        for i, count in enumerate(correct)
    ]
    first = int(correct[:n_first].sum()) / (n * n_first) if n_first else chance
    second = int(correct[n_first:].sum()) / (n * task.length)
    interval = binomial_interval(n * n_first, chance, CONFIDENCE) if n_first else (0.0, 1.0)
    return ReversalResult(
        positions=positions,
        first_half=first,
        second_half=second,
        chance=chance,
        interval=interval,
        position_interval=binomial_interval(n, chance, CONFIDENCE),
        passed=interval[0] <= first <= interval[1] and second >= SECOND_HALF_AT_LEAST,
    )
