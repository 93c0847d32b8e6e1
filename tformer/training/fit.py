"""`fit`: the training loop, a generator of steps done. Knows nothing of terminals or files.

Everything random is a function of (seed, step), so a run that is resumed takes the very steps that it
would have taken.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tformer.config import ModelConfig, TrainConfig
from tformer.device import autocast, runs_ahead, to_device, to_host
from tformer.errors import TformerError
from tformer.fast.kernels import dropout_streams
from tformer.loss import cross_entropy
from tformer.ranks import BY_ITSELF, Ranks, here
from tformer.text.data import STREAM_DROPOUT, Batches, rng
from tformer.training.optim import Optimizers, lr_at
from tformer.training.sharded import clip_gradients, holders, is_sharded


@dataclass(frozen=True)
class State:
    """Where training stands: all that `fit` needs, beside weights and optimizer state, to go on."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_val_loss: float = math.inf
    best_step: int = 0
    evals_since_best: int = 0

    def as_dict(self) -> dict[str, int | float | None]:
        """For JSON, which has no infinity."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, int | float | None]) -> "State":
        """The inverse of `as_dict`. Raises TformerError where a field is another version's."""
        if unknown := sorted(values.keys() - {known.name for known in fields(cls)}):
            raise TformerError(
                "the state of a checkpoint is another version's", f"it has {unknown[0]}", "upgrade"
            )
        for name, value in values.items():
            known = (int,) if cls.__annotations__[name] is int else (int, float, type(None))
            if isinstance(value, bool) or not isinstance(value, known):
                raise TformerError("the state of a checkpoint is not one of ours", f"{name} is {value!r}")
        return cls(**{k: math.inf if v is None else v for k, v in values.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepDone:
    """One step done: its own loss and gradient norm, and the evaluation if there was one.

    Of a device that runs ahead, whoever asks for the loss waits for the step; see `StepNumbers`.
    """

    state: State
    numbers: "StepNumbers"
    lr: float
    val_loss: float | None = None
    bits_per_byte: float | None = None
    is_best: bool = False
    stops_early: bool = False
    noted: dict[str, Any] = field(default_factory=dict)  # what else was measured where it was evaluated

    @property
    def loss(self) -> float:
        """Nats a token, before the update."""
        return self.numbers.read()[0]

    @property
    def grad_norm(self) -> float:
        """The norm of the whole gradient, before clipping."""
        return self.numbers.read()[1]


def is_exhausted(state: State, train: TrainConfig) -> bool:
    """Whether `train.patience` evaluations have passed without improvement."""
    return 0 < train.patience <= state.evals_since_best


def has_steps_left(state: State, train: TrainConfig) -> bool:
    """Whether there are steps left to take."""
    return state.step < train.steps and not is_exhausted(state, train)


def is_due(step: int, train: TrainConfig) -> bool:
    """Whether there is an evaluation after this step: every `train.eval_every` steps, and after the last."""
    return step == train.steps or (train.eval_every > 0 and step % train.eval_every == 0)


def is_read(step: int, train: TrainConfig) -> bool:
    """Whether what this step finds is judged, written or saved at once."""
    saved = train.checkpoint_every > 0 and step % train.checkpoint_every == 0
    return is_due(step, train) or step % train.log_every == 0 or saved


class DivergedError(TformerError):
    """A loss, its gradient, a weight or the validation loss is not a number: nothing of it is saved."""

    def __init__(self, when: str, found: str, train: TrainConfig):
        advice = f"go on with --resume and a lower rate (--lr {train.lr / 3:.2g})"
        advice += ", or begin another run with more train.warmup_steps"
        advice += ", a train.grad_clip such as 1" * (train.grad_clip == 0)
        advice += ", --precision fp32" * (train.precision == "bf16")
        advice += "; --init-from begins one with the weights that this one saved"
        super().__init__(f"training diverged {when}", found, advice)


def nonfinite(tensors: dict[str, Tensor], holders: Ranks = BY_ITSELF) -> str | None:
    """The name of the first tensor with a number that is not finite, in any of those that hold parts."""
    parts = [here(tensor) for tensor in tensors.values()]
    norm = torch.nn.utils.get_total_norm(parts)
    if not holders.any(not math.isfinite(norm.item())):  # it may overflow, but hides nothing
        return None
    bad = holders.sum(torch.tensor([int(not part.isfinite().all()) for part in parts]))
    return next((name for name, n in zip(tensors, bad.tolist(), strict=True) if n), None)


def nonfinite_flag(numbers: list[Tensor], weights: list[Tensor]) -> Tensor:
    """1 where a number or a weight is not finite, else 0; the device is not waited for."""
    largest = torch.nn.utils.get_total_norm(weights, math.inf)  # a sum of squares may overflow
    return torch.stack([*numbers, largest]).isfinite().all().logical_not().float()


@dataclass
class StepNumbers:
    """What a step finds, its loss and the norm of its gradient, read when somebody asks for them.

    A device that runs ahead is at the next step by then, and has not waited for Python: it skips an update
    by itself, and what arrives from it has a third number, 1 where it has.
    """

    model: nn.Module
    ranks: Ranks
    train: TrainConfig
    step: int
    arrive: Callable[[], list[float]]
    known: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm. Raises DivergedError where one of them, or a weight, is not finite."""
        if self.known is None:
            loss, grad_norm, *skipped = self.arrive()
            is_well = skipped == [0.0]
            if not is_well and (found := self._spoilt(loss, grad_norm)):
                raise DivergedError(f"at step {self.step}", f"{found}; the update was not made", self.train)
            self.known = loss, grad_norm
        return self.known

    def _spoilt(self, loss: float, grad_norm: float) -> str | None:
        """What is not finite, if anything is; the weights are those before the update."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        name = nonfinite(weights, holders(self.model, self.ranks))
        return f"{name} holds numbers that are not finite" if name else None


Validate = Callable[[], tuple[float, float]]  # loss in nats a token, bits per byte


@dataclass
class Learner:
    """What is trained, and what by.

    `model` is a Transformer or has what is used of it: logits of ids, and `config.dropout`. `forward` stands
    in for the model's own where there is one (a compiled one, or that of several processes, whose `ranks` are
    here). `whole` is where training stands with its last update; None before the first, and while one is
    being made. `numbers` are what the last step finds, which nobody may have read yet.
    """

    model: nn.Module
    optimizers: Optimizers
    forward: Callable[[Tensor], Tensor] | None = None
    whole: State | None = None
    ranks: Ranks = BY_ITSELF
    numbers: StepNumbers | None = None

    def gradient_sync(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around a group of windows: gradients go to others with the last one of a step alone."""
        forward = self.forward
        if is_sharded(self.model):
            self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        if is_last or not isinstance(forward, DistributedDataParallel):
            return nullcontext()
        return forward.no_sync()

    def wait(self) -> None:
        """Wait for the last step. Raises DivergedError where its update was not made."""
        if self.numbers:
            self.numbers.read()


def fit(
    learner: Learner,
    batches: Batches,
    train: TrainConfig,
    state: State,
    validate: Validate | None = None,
) -> Iterator[StepDone]:
    """Train from `state` to `train.steps`, yielding each step as it is done.

    Of several processes each takes its share of a batch; the gradients of all are added up, so a step is the
    same however many they are. `train.precision` is bf16, or anything else for float32. Seconds count the
    steps alone, not evaluation nor what the consumer does. Raises DivergedError before an update by or of
    numbers that are not finite; stops after `train.patience` evaluations without improvement.

    A device that runs ahead is given a step before the one before it is read, and skips its updates itself
    from the first number on that is not finite: the error then comes a step later, and names the right one.
    """
    model, optimizers, ranks = learner.model, learner.optimizers, learner.ranks
    device, config = next(model.parameters()).device, cast(ModelConfig, model.config)
    # Not `forward or model`: a compiled module has a length, and it raises.
    forward = model if learner.forward is None else learner.forward
    micro = train.micro_batch_size or train.batch_size
    masks = dropout_streams(model)
    ahead = runs_ahead(device) and not is_sharded(model)  # one in parts would have to agree on what to skip
    skip: tuple[Tensor, ...] = (torch.zeros((), device=device),) if ahead else ()
    learner.wait()  # steps that go on from others go on from whole ones
    while state.step < train.steps and not is_exhausted(state, train):
        began = time.perf_counter()
        model.train()
        step, lr = state.step, lr_at(state.step, train)
        batch, own = batches.batch(step, train.batch_size), ranks.share(train.batch_size)
        inputs, targets = (to_device(a[own], device) for a in batch)
        n_targets = targets.numel() * ranks.world
        if config.dropout:
            stream = step + (ranks.rank << 40)  # the first process has the numbers of one that is alone
            seed = int(rng(train.seed, STREAM_DROPOUT, stream).integers(2**63))
            torch.manual_seed(seed)
            for mask in masks:
                mask.begin(seed)
        loss = torch.zeros((), device=device)
        groups = list(zip(inputs.split(micro), targets.split(micro), strict=True))
        for i, (some_inputs, some_targets) in enumerate(groups, 1):
            with learner.gradient_sync(i == len(groups)):
                with autocast(train.precision, device):
                    logits = forward(some_inputs)
                part = cross_entropy(logits, some_targets).sum() / n_targets
                (part * ranks.world).backward()  # the mean over the processes is taken of gradients
            loss += part.detach()
        ranks.sum(loss)
        grad_norm = clip_gradients(model, train.grad_clip or math.inf, ranks)
        if ahead:  # and no update after one that was skipped
            spoils = nonfinite_flag([loss, grad_norm], [p.detach() for p in model.parameters()])
            skip = (torch.maximum(skip[0], spoils),)
        arrive = to_host(torch.stack([loss, grad_norm, *skip]))
        numbers = StepNumbers(model, ranks, train, step + 1, arrive)
        if not ahead:
            numbers.read()
        learner.whole = None
        optimizers.step(lr, *skip)
        learner.wait()
        learner.numbers = numbers
        if is_read(step + 1, train):
            learner.wait()
        state = learner.whole = replace(
            state,
            step=step + 1,
            tokens=state.tokens + n_targets,
            seconds=state.seconds + time.perf_counter() - began,
        )
        done = StepDone(state, numbers, lr)
        if validate and is_due(state.step, train):
            done = _evaluated(done, *validate(), train)
            state = done.state
        yield done


def _evaluated(done: StepDone, val_loss: float, bits_per_byte: float, train: TrainConfig) -> StepDone:
    state = done.state
    if not math.isfinite(val_loss):
        raise DivergedError(f"at step {state.step}", f"validation loss {val_loss}", train)
    is_best = val_loss < state.best_val_loss
    if is_best:
        state = replace(state, best_val_loss=val_loss, best_step=state.step, evals_since_best=0)
    else:
        state = replace(state, evals_since_best=state.evals_since_best + 1)
    return replace(
        done,
        state=state,
        val_loss=val_loss,
        bits_per_byte=bits_per_byte,
        is_best=is_best,
        stops_early=is_exhausted(state, train),
    )
