"""Evidence for question 5: under the mask, one forward of a sequence is an example for each position."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, build, tiny
from tformer.answer.parts import copy_of, start_random
from tformer.figures import Table
from tformer.loss import cross_entropy
from tformer.model import Transformer


@torch.inference_mode()
def prefix_losses(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target by a forward of its prefix alone, shape (batch, position).

    Nothing after a position is there to be seen, whatever the mask is.
    """
    return torch.stack(_losses_by_prefix(model, inputs, targets), dim=1)


def _losses_by_prefix(model: Transformer, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    ends = range(1, inputs.shape[1] + 1)
    return [cross_entropy(model(inputs[:, :end]), targets[:, :end])[:, -1] for end in ends]


def seconds_of(work: Callable[[], object], times: int) -> float:
    """The median CPU time of one thread: others on the machine do not count."""
    work()
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def gradient_of(model: Transformer, loss: Callable[[], Tensor]) -> Tensor:
    """The loss's gradient by all parameters, as one vector; the model is left without gradients."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return gradient


@dataclass(frozen=True)
class PrefixEvidence:
    """The losses of one forward of T positions against those of T forwards of the T prefixes."""

    positions: int
    largest_difference: float  # nats
    gradient_difference: float  # of all weights, relative
    positions_computed_once: int
    positions_computed_by_prefixes: int
    milliseconds_once: float
    milliseconds_by_prefixes: float


def measure_prefixes(effort: Effort, seed: int, subject: Subject | None) -> PrefixEvidence:
    """Score the same tokens both ways, with the weights of the run or with random ones."""
    length = effort.pick(quick=32, full=128) + 1
    if subject:
        model, ids = copy_of(subject.model), subject.ids(1, length, seed)
    else:
        model = build(tiny(vocab_size=32, n_ctx=length), seed, start_random).eval()
        ids = torch.randint(32, (1, length))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    n = inputs.shape[1]
    with torch.inference_mode():
        once = cross_entropy(model(inputs), targets)
        difference = float((once - prefix_losses(model, inputs, targets)).abs().max())
        seconds_once = seconds_of(lambda: cross_entropy(model(inputs), targets), 9)
        seconds_by_prefixes = seconds_of(lambda: prefix_losses(model, inputs, targets), 3)
    whole = gradient_of(model, lambda: cross_entropy(model(inputs), targets).sum())
    summed = gradient_of(model, lambda: torch.cat(_losses_by_prefix(model, inputs, targets)).sum())
    return PrefixEvidence(
        n,
        difference,
        gradient_difference=float((whole - summed).norm() / whole.norm()),
        positions_computed_once=n,
        positions_computed_by_prefixes=n * (n + 1) // 2,
        milliseconds_once=1000 * seconds_once,
        milliseconds_by_prefixes=1000 * seconds_by_prefixes,
    )


def show_prefixes(seeds: Seeds[PrefixEvidence]) -> Finding:
    """The same losses to rounding, for a fraction of the work."""
    n = seeds.first.positions
    table = Table(
        "The same losses, computed twice",
        ("", "forwards", "positions computed", "CPU time"),
        (
            (
                "one forward of the sequence",
                "1",
                str(seeds.first.positions_computed_once),
                str(seeds.of(lambda e: e.milliseconds_once, ".3g", "ms")),
            ),
            (
                "a forward for each prefix",
                str(n),
                str(seeds.first.positions_computed_by_prefixes),
                str(seeds.of(lambda e: e.milliseconds_by_prefixes, ".3g", "ms")),
            ),
        ),
    )
    claims = (
        at_most(
            f"One forward of {n} positions gives the losses of all {n} prefixes",
            seeds.of(lambda e: e.largest_difference, ".1e", "nats"),
            1e-4,
            "Rounding of float32 in matrix products of other shapes is about 1e-6.",
        ),
        at_most(
            "The gradient of the one is the sum of the others'",
            seeds.of(lambda e: e.gradient_difference, ".1e"),
            1e-3,
            "Relative to its size; rounding, as above, added up over all of them.",
        ),
        at_least(
            f"{n} forwards of the prefixes take many times as long",
            seeds.of(lambda e: e.milliseconds_by_prefixes / max(e.milliseconds_once, 1e-6), ".3g"),
            n / 4,
            f"(T + 1)/2 = {(n + 1) / 2:g} if time goes by positions, T = {n} if by calls; half of the less.",
        ),
    )
    return Finding("Every position of one forward is an example of its own.", (table,), (), claims)
