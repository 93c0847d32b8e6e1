"""A time budget turned into a number of steps: what a step and an evaluation take is measured.

The steps are then the run's like any others: they fix the schedule of the learning rate, are recorded, and
hold when the run is resumed. Once they are counted again, by the steps that were taken: while the rate is
still that of any number of them, so that the run is the one that has had the new number from its start.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from tformer.config import MOST_STEPS, TrainConfig
from tformer.device import random_numbers_kept, synchronise
from tformer.errors import RequestError
from tformer.evals.loss import TOKENS_AT_ONCE, text_loss
from tformer.run.record import TimeBudget
from tformer.text.data import Batches
from tformer.training.fit import Learner, State, fit
from tformer.training.optim import Optimizers, steps_before_decay
from tformer.training.session import STATES, Session

Clock = Callable[[], float]

UNCOUNTED = 2  # first steps: memory is found, and a compiler compiles
LEAST, MOST = 3, 50  # steps that are counted
MEASURING = 0.02  # of the budget, for the counted steps
SAMPLE = 2 * TOKENS_AT_ONCE  # tokens of the validation part that are scored to time the rest
RESERVE = 0.07  # of what is left: pictures, lines of metrics, and a machine that has slower moments
LEAST_SHARE = 0.75  # of the steps: so many at least stay where they are counted again
LEAST_AGAIN = 20  # steps by which they are; of fewer one learns nothing new
RESERVE_AGAIN = 0.03  # of what is left then: steps were timed with all that is done beside them
SAVED_PER_SECOND = 2e8  # bytes of a checkpoint, synced, on a disk that is not the fastest


@dataclass(frozen=True)
class TimeLimit:
    """When a run is to be over: so many minutes after `began`, a time of the clock that measures."""

    minutes: float
    began: float


@dataclass(frozen=True)
class Costs:
    """Seconds: of a step, of an evaluation with what is measured beside it, of a save, of the very end."""

    step: float
    evaluation: float
    save: float
    end: float

    def of(self, steps: int, train: TrainConfig) -> float:
        """What a run of so many steps takes."""
        evaluations = -(-steps // train.eval_every) if train.eval_every else 1
        saves = -(-steps // train.checkpoint_every) if train.checkpoint_every else 1
        return steps * self.step + evaluations * self.evaluation + saves * self.save + self.end


@dataclass
class TimedRecount:
    """The steps of a time limit counted again by what those took that were taken. Called after each step."""

    limit: TimeLimit
    costs: Costs
    clock: Clock
    counted_from: float = 0.0

    def __call__(self, session: Session) -> TimeBudget | None:
        """The new budget, after the one step at which there is one."""
        train, taken, budget = session.config.train, session.state.step, session.record.budget
        now, at = self.clock(), shared_steps(train)
        if taken == UNCOUNTED:
            self.counted_from = now
        beside = [n for n in (train.eval_every, train.checkpoint_every) if 0 < n <= at]
        if budget is None or taken != at or at < LEAST_AGAIN or beside:
            return None
        step = (now - self.counted_from) / (taken - UNCOUNTED)
        left = (60 * self.limit.minutes - (now - self.limit.began)) * (1 - RESERVE_AGAIN)
        steps = steps_within(left + taken * step, replace(self.costs, step=step), train)
        steps = max(steps, int(LEAST_SHARE * train.steps))
        return budget.model_copy(update={"steps": steps, "seconds_per_step": round(step, 6)})


def shared_steps(train: TrainConfig) -> int:
    """How many first steps are the same for any number of steps from three quarters of these on."""
    return steps_before_decay(train.model_copy(update={"steps": int(LEAST_SHARE * train.steps)}))


def steps_within(seconds: float, costs: Costs, train: TrainConfig) -> int:
    """The most steps of which a run with all that comes beside them takes at most `seconds`; or 0."""
    at_most = min(MOST_STEPS, max(0.0, seconds / costs.step + 1))  # a quotient may be rounded down
    low, high = 0, int(at_most) + 1
    while high - low > 1:  # costs grow with the steps
        middle = (low + high) // 2
        low, high = (middle, high) if costs.of(middle, train) <= seconds else (low, middle)
    return low


def choose_steps(
    session: Session, limit: TimeLimit, drawing: float = 0.0, clock: Clock = time.perf_counter
) -> tuple[TimeBudget, TimedRecount]:
    """How many steps a run that has not begun has time for, by which measurements, and their recount.

    `drawing` is how many seconds the pictures of its end will take. The session, its weights and torch's
    random numbers are afterwards what they were before. Raises RequestError where a step takes longer.
    """
    assert session.state.step == 0, "a run that goes on has its steps"
    train, seconds = session.config.train, 60 * limit.minutes
    trial = replace(session, optimizers=Optimizers(session.model, train))
    with _undone(session.model):
        costs = time_costs(trial, seconds * MEASURING, drawing, clock)
    before = clock() - limit.began
    steps = steps_within((seconds - before) * (1 - RESERVE), costs, train)
    if steps == 0:
        least = (before + costs.of(1, train) / (1 - RESERVE)) / 60
        raise RequestError(
            f"--minutes {limit.minutes:g} is too short",
            f"startup took {before:.0f} s, and one step with its evaluation takes {costs.of(1, train):.0f} s",
            f"give at least --minutes {1.2 * least:.2g}, or a smaller model",
        )
    budget = TimeBudget(
        minutes=limit.minutes,
        steps=steps,
        seconds_before=round(before, 3),
        seconds_per_step=round(costs.step, 6),
        seconds_per_evaluation=round(costs.evaluation, 3),
    )
    return budget, TimedRecount(limit, costs, clock)


@contextmanager
def _undone(model: nn.Module) -> Iterator[None]:
    """Leave weights and torch's random numbers as they are found."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with random_numbers_kept(next(model.parameters()).device):
        try:
            yield
        finally:
            model.load_state_dict(weights)


def time_costs(trial: Session, seconds: float, drawing: float, clock: Clock) -> Costs:
    """Time steps for about `seconds`, and an evaluation. Trains the model of the session for a moment."""
    learner = Learner(trial.model, trial.optimizers, trial.forward)
    step = time_of_step(learner, trial.data.batches, trial.config.train, seconds, clock)
    return costs_beside(trial, step, drawing, clock)


def time_of_step(
    learner: Learner, batches: Batches, train: TrainConfig, seconds: float, clock: Clock
) -> float:
    """What a step takes, by those of about so many seconds. Trains the model for a moment."""
    device = next(learner.model.parameters()).device
    train = train.model_copy(update={"steps": UNCOUNTED + MOST, "eval_every": 0, "patience": 0})
    steps_done = fit(learner, batches, train, State())
    for _ in range(UNCOUNTED):
        next(steps_done)
    synchronise(device)
    began, counted = clock(), 0
    for _ in steps_done:
        counted += 1
        if counted >= LEAST and clock() - began >= seconds:
            break
    synchronise(device)
    return (clock() - began) / counted


def costs_beside(trial: Session, step: float, drawing: float, clock: Clock) -> Costs:
    """The costs with a step that is known: an evaluation is timed, a save is by its bytes."""
    device = next(trial.model.parameters()).device
    n_bytes = STATES * sum(p.numel() * p.element_size() for p in trial.model.parameters())
    verdict = 4 * _validation(trial, device, clock) if trial.data.reversal else 0.0
    evaluation = _validation(trial, device, clock) + _timed(trial.notes, device, clock)
    return Costs(step, evaluation, n_bytes / SAVED_PER_SECOND, drawing + verdict)


def _validation(trial: Session, device: torch.device, clock: Clock) -> float:
    """Seconds of a validation, by that of a part of the text."""
    if trial.data.reversal:
        trial.validate()
        return _timed(trial.validate, device, clock)
    ids = trial.data.val_ids
    if ids is None:
        return 0.0
    n_bytes, precision = trial.data.n_bytes, trial.config.train.precision
    part = ids[: SAMPLE + 1]
    text_loss(trial.model, part[: SAMPLE // 2 + 1], n_bytes, precision)  # uncounted
    took = _timed(lambda: text_loss(trial.model, part, n_bytes, precision), device, clock)
    return took * (len(ids) - 1) / (len(part) - 1)


def _timed(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    began = clock()
    work()
    synchronise(device)
    return clock() - began
