"""A time budget turned into a number of steps: what a step and an evaluation take is measured, once.

The steps are then the run's like any others: they fix the schedule of the learning rate, are recorded, and
hold when the run is resumed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tformer.config import TrainConfig
from tformer.errors import RequestError
from tformer.evals.loss import TOKENS_AT_ONCE, text_loss
from tformer.run.record import TimeBudget
from tformer.show.svg import loss_svg
from tformer.training.fit import State, fit
from tformer.training.optim import Optimizers
from tformer.training.session import Session

Clock = Callable[[], float]

UNCOUNTED = 2  # first steps: memory is found, and a compiler compiles
LEAST, MOST = 3, 50  # steps that are counted
MEASURING = 0.02  # of the budget, for the counted steps
SAMPLE = 2 * TOKENS_AT_ONCE  # tokens of the validation part that are scored to time the rest
KEPT_BACK = 0.07  # of what is left: pictures, lines of metrics, and a machine that has slower moments
SAVED_PER_SECOND = 2e8  # bytes of a checkpoint, synced, on a disk that is not the fastest
STATES = 3  # a checkpoint holds weights and up to two moments of each
PICTURES = 6  # a page and its curves take about as long as so many loss curves


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


def steps_within(seconds: float, costs: Costs, train: TrainConfig) -> int:
    """The largest number of steps that takes at most `seconds`, with all that comes beside them; or 0."""
    low, high = 0, max(0, int(seconds / costs.step)) + 1
    while high - low > 1:  # costs grow with the steps
        middle = (low + high) // 2
        low, high = (middle, high) if costs.of(middle, train) <= seconds else (low, middle)
    return low


def settle(session: Session, minutes: float, began: float, clock: Clock = time.perf_counter) -> None:
    """Give a run that has not begun as many steps as end `minutes` after `began`, a time of `clock`.

    Weights, optimizer state and random numbers are afterwards what they were before. How it was decided is
    recorded under `budget`. Raises RequestError where the time is too short for one step.
    """
    assert session.state.step == 0, "a run that goes on has its steps"
    train = session.config.train
    with _undone(session):
        costs = measure(session, 60 * minutes * MEASURING, clock)
    before = clock() - began
    steps = steps_within((60 * minutes - before) * (1 - KEPT_BACK), costs, train)
    if steps == 0:
        least = (before + costs.of(1, train) / (1 - KEPT_BACK)) / 60
        raise RequestError(
            f"--minutes {minutes:g} is too short",
            f"{before:.0f} s went into beginning, and one step with its evaluation takes "
            f"{costs.of(1, train):.0f} s",
            f"give at least --minutes {1.2 * least:.2g}, or a smaller model",
        )
    session.config = session.config.updated("train", steps=steps)
    session.record = session.record.updated(
        budget=TimeBudget(
            minutes=minutes,
            steps=steps,
            seconds_before=round(before, 3),
            seconds_per_step=round(costs.step, 6),
            seconds_per_evaluation=round(costs.evaluation, 3),
        )
    )


@contextmanager
def _undone(session: Session) -> Iterator[None]:
    """Leave weights, optimizers and torch's random numbers as they are found."""
    weights = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    device = next(session.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            session.model.load_state_dict(weights)
            train = session.config.train
            session.optimizers = Optimizers(session.model, train, bf16=train.precision == "bf16")
            session.judged = None


def measure(session: Session, seconds: float, clock: Clock) -> Costs:
    """Time steps for about `seconds`, and an evaluation. Trains the model of the session for a moment."""
    device = next(session.model.parameters()).device
    whole = session.config.train
    train = whole.model_copy(update={"steps": UNCOUNTED + MOST, "eval_every": 0, "patience": 0})
    reports = fit(
        session.model,
        session.optimizers,
        session.data.batches,
        train,
        State(),
        whole.precision,
        forward=session.forward,
    )
    for _ in range(UNCOUNTED):
        next(reports)
    _synchronise(device)
    began, counted = clock(), 0
    for _ in reports:
        counted += 1
        if counted >= LEAST and clock() - began >= seconds:
            break
    _synchronise(device)
    step = (clock() - began) / counted
    n_bytes = STATES * sum(p.numel() * p.element_size() for p in session.model.parameters())
    one = [{"step": 1, "loss": 1.0, "lr": 1.0}]
    loss_svg(one, "")  # the first one imports matplotlib
    picture = _timed(lambda: loss_svg(one, ""), device, clock)
    verdict = 4 * _validation(session, device, clock) if session.data.reversal else 0.0
    evaluation = _evaluation(session, device, clock)
    return Costs(step, evaluation, n_bytes / SAVED_PER_SECOND, PICTURES * picture + verdict)


def _evaluation(session: Session, device: torch.device, clock: Clock) -> float:
    """Seconds of a validation and of what else is measured with it."""
    validation = _validation(session, device, clock)
    return validation + _timed(lambda: [f(session) for f in session.at_evaluation], device, clock)


def _validation(session: Session, device: torch.device, clock: Clock) -> float:
    """Seconds of a validation, by that of a part of the text."""
    if session.data.reversal:
        session.validate()
        return _timed(session.validate, device, clock)
    ids = session.data.val_ids
    if ids is None:
        return 0.0
    n_bytes, precision = session.data.tokenizer.n_bytes, session.config.train.precision
    part = ids[: SAMPLE + 1]
    text_loss(session.model, part[: SAMPLE // 2 + 1], n_bytes, precision)  # uncounted
    took = _timed(lambda: text_loss(session.model, part, n_bytes, precision), device, clock)
    return took * (len(ids) - 1) / (len(part) - 1)


def _timed(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    began = clock()
    work()
    _synchronise(device)
    return clock() - began


def _synchronise(device: torch.device) -> None:
    """Wait for a device that computes while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
