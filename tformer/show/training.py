"""What a person sees of a training beside its live line: how it begins, its pictures, how it ended.

`loss.svg` and `report.html` are drawn from what lies in the run, and move no weight.
"""

import time
from collections.abc import Callable
from typing import Any

from tformer.counted import counted
from tformer.files import write_file
from tformer.model import Transformer
from tformer.show import terminal
from tformer.show.run_page import write_page
from tformer.show.svg import loss_svg
from tformer.show.words import duration
from tformer.training.budget import Clock
from tformer.training.plan import Plan
from tformer.training.session import Session
from tformer.training.sharded import is_sharded

SHARE = 0.02  # of the time that has passed, for pictures
FIRST_PICTURE = 1.0  # seconds: what the first one is taken to cost, before one was drawn
PICTURES = 6  # a page and its curves take about as long as so many loss curves


# ---------------------------------------------------------------------------- how it begins


def introduce(session: Session, plan: Plan) -> None:
    """How many steps a time was turned into, what is amiss, and what is trained, on what, from where."""
    config, facts, minutes = session.config, session.data.facts, plan.request.minutes
    if minutes is not None and not plan.resuming and (made := session.record.budget):
        terminal.say(
            f"{counted(minutes, 'minute', spec='g')}: {counted(made.steps, 'step')} of "
            f"{1000 * made.seconds_per_step:.0f} ms, "
            f"and {made.seconds_per_evaluation:.1f} s for each evaluation"
        )
    for note in session.data.notes:
        terminal.say(note)
    for warning in session.warnings:
        terminal.warn(warning)
    size = f"{session.model.n_parameters:,} parameters"
    text = "" if facts.train_tokens is None else f", {facts.train_tokens:,} training tokens{_passes(session)}"
    terminal.say(
        f"{session.run.folder}: {config.model.family}, {size}, {session.data.tokenizer.kind} vocabulary of "
        f"{session.data.tokenizer.vocab_size:,}{text}; {plan.device}, {config.train.precision}"
    )
    if (origin := session.record.init_from) and not session.state.step:
        terminal.say(f"beginning from {origin.source}")
    if plan.recorded.is_finished and session.state.step >= config.train.steps:
        terminal.say(f"it is finished: {counted(session.state.step, 'step')}")
    elif session.state.step:
        terminal.say(f"continuing after step {session.state.step}")
    for change in session.changes:
        terminal.say(change)


def _passes(session: Session) -> str:
    """How often the run reads its training text, and how, where that is not as the model would have it."""
    config, n = session.config, session.data.facts.train_tokens
    window, train = config.data.window or config.model.n_ctx, config.train
    passes = train.steps * train.batch_size * window / n if n else 0.0
    told = f" ({counted(passes, 'pass', 'passes', spec='.2g')} over them)"
    if window < config.model.n_ctx:
        told += f" in windows of {window}"
    if train.micro_batch_size:
        told += f", {train.micro_batch_size} of {train.batch_size} at a time"
    return told


# ---------------------------------------------------------------------------- pictures


class Pictures:
    """`loss.svg` and `report.html`, drawn again as a run goes on, for a small share of its time."""

    def __init__(self, session: Session, share: float = SHARE, clock: Clock = time.perf_counter):
        self.session, self.share, self.clock = session, share, clock
        self.has_failed = False
        self.began, self.spent, self.cost = clock(), 0.0, FIRST_PICTURE

    def refresh(self) -> bool:
        """Draw if that is cheap by now; whether it was."""
        began = self.clock()
        if self.spent + self.cost > self.share * (began - self.began):
            return False
        self.attempt(draw)
        self.cost = self.clock() - began
        self.spent += self.cost
        return True

    def attempt(self, work: Callable[[Session], None]) -> None:
        """Draw. Where that fails it is said, once, and training goes on: a picture is worth no step."""
        try:
            work(self.session)
        except Exception as error:
            if not self.has_failed:
                why = " ".join(str(error).split()) or type(error).__name__
                terminal.warn(f"loss.svg and report.html could not be drawn, and training goes on: {why}")
            self.has_failed = True


def drawing_seconds(clock: Clock = time.perf_counter) -> float:
    """How long the pictures of a run's end take here, about."""
    one = [{"step": 1, "loss": 1.0, "lr": 1.0}]
    loss_svg(one, "")  # the first one imports matplotlib
    began = clock()
    loss_svg(one, "")
    return PICTURES * (clock() - began)


def draw(session: Session) -> None:
    """Write `loss.svg` and `report.html` as things stand, with the weights of this step.

    While another run stands in the directory, until this one has weights, the pictures are that one's. Of a
    sharded model, which no process has whole, it is the weights that the run keeps.
    """
    if session.run.is_in_place and is_sharded(session.model) and session.kept:
        _draw(session, session.kept_model(), session.kept.step)
    elif session.run.is_in_place:
        _draw(session, session.model, session.state.step)


def draw_last(session: Session) -> None:
    """Write both with the weights that the run keeps, which may be those of an earlier step."""
    _draw(session, session.kept_model())


def _draw(session: Session, model: Transformer, step: int | None = None) -> None:
    folder = session.run.folder
    curve = loss_svg(session.run.read_metrics(), folder.name)
    write_file(folder / "loss.svg", curve.encode(errors="backslashreplace"))
    write_page(folder, model, step)


# ---------------------------------------------------------------------------- how it ended


def summarise(result: dict[str, Any], stopped_early: bool) -> None:
    """The result of a run as a table of facts, with what to do next."""
    facts = {"run": result["run"]}
    facts["trained"] = (
        f"{counted(result['steps'], 'step')}, {result['tokens']:,} tokens in {duration(result['seconds'])}"
        + (" (stopped early: validation no longer improves)" if stopped_early else "")
    )
    facts["loss"] = f"{result['loss']:.4f} (the last step's)" if result["loss"] is not None else "-"
    if (before := result.get("val_loss_before")) is not None:
        facts["before"] = f"{before:.4f} nats per token, {result['bits_per_byte_before']:.4f} bits per byte"
    if result["val_loss"] is not None:
        facts["validation"] = (
            f"{result['val_loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte "
            f"(weights of step {result['kept_step']:,})"
        )
    if before is not None and result["kept_step"] == 0:
        facts["kept"] = "the weights that it began from: no later ones are better; try a lower --lr"
    facts["normal?"] = result["expectation"]
    facts["pictures"] = f"{result['run']}/report.html"
    if "passed" not in result:
        facts["next"] = f"tformer sample --run {result['run']}"
    terminal.fact_table(terminal.err(), facts)
