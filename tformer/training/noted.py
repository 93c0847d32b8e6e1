"""What a run keeps of how it went, for a person to look at: a line that it writes now and then, the loss by
position, `loss.svg` and `report.html`.

Nothing here moves a weight or a draw of training. Knows nothing of terminals.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from tformer.evals.loss import octaves
from tformer.evals.reversal import ReversalResult
from tformer.run.huggingface import load_model
from tformer.run.record import keep_evaluation
from tformer.sample import Sampler, Sampling, TextStream, generate
from tformer.show.run_page import run_text
from tformer.show.svg import loss_svg
from tformer.text.data import STREAM_SAMPLE, Reversal, rng
from tformer.text.tokenizer import Tokenizer
from tformer.training.session import Session

CHARACTERS = 80  # of a sampled line: about what a terminal has room for
TEMPERATURE = 0.8  # as `tformer sample` has it
SHARE = 0.02  # of the time that has passed, for pictures
FIRST_PICTURE = 1.0  # seconds: what the first one is taken to cost, before one was drawn

Clock = Callable[[], float]


# ---------------------------------------------------------------------------- at an evaluation


def sampled_line(session: Session) -> dict[str, Any]:
    """`sample`: what the model writes after a line break at this step; on reversal, how it goes on.

    A function of (seed, step) and the weights, like everything random in a run.
    """
    step, seed = session.state.step, session.config.train.seed
    tokenizer = session.data.tokenizer
    if session.data.reversal:
        return {"sample": _reversed_line(session, session.data.reversal)}
    device = next(session.model.parameters()).device
    sampler = Sampler(Sampling(TEMPERATURE), int(rng(seed, STREAM_SAMPLE, step).integers(2**63)), 1)
    size = tokenizer.vocab_size
    stream = TextStream(tokenizer)
    start = torch.tensor([[tokenizer.start_id]], device=device)
    for column in generate(session.model, start, CHARACTERS, lambda logits: sampler(logits[:, :size])):
        stream.feed(int(column[0]))
        if len(stream.text) >= CHARACTERS:
            break
    return {"sample": stream.text}


def _reversed_line(session: Session, task: Reversal) -> str:
    """A fresh random half, and what the model takes for its reverse."""
    tokenizer: Tokenizer = session.data.tokenizer
    half = task.sequences(1, STREAM_SAMPLE, session.state.step)[:, : task.length]
    device = next(session.model.parameters()).device
    rest = generate(session.model, torch.from_numpy(half.copy()).to(device), task.length)
    said = [int(i) for i in half[0]], [int(column[0]) for column in rest]
    return " → ".join("".join(map(tokenizer.text_of, ids)) for ids in said)


def loss_by_position(session: Session) -> dict[str, Any]:
    """`by_position`: [last position, mean loss] of positions 1, 2, 3–4, 5–8, …, of this evaluation."""
    judged = session.judged
    if judged is None:
        return {}
    return {"by_position": [[last, round(mean, 4)] for _, last, mean in octaves(judged.by_position)]}


# ---------------------------------------------------------------------------- pictures


class Pictures:
    """`loss.svg` and `report.html`, drawn again as a run goes on, for a small share of its time."""

    def __init__(self, session: Session, share: float = SHARE, clock: Clock = time.perf_counter):
        self.session, self.share, self.clock = session, share, clock
        self.began, self.spent, self.cost = clock(), 0.0, FIRST_PICTURE

    def refresh(self) -> bool:
        """Draw if that is cheap by now; whether it was."""
        began = self.clock()
        if self.spent + self.cost > self.share * (began - self.began):
            return False
        draw(self.session)
        self.cost = self.clock() - began
        self.spent += self.cost
        return True


def draw(session: Session) -> None:
    """Write `loss.svg` and `report.html` as things stand, with the weights of this step."""
    run = session.run
    run.write_text("loss.svg", loss_svg(run.read_metrics(), run.folder.name))
    run.write_text("report.html", run_text(run.folder, session.model, session.state.step))


def draw_last(session: Session) -> None:
    """Write `report.html` with the weights that the run keeps, which may be those of an earlier step."""
    run = session.run
    result = session.record.result
    kept = result.kept_step if result else None
    device = next(session.model.parameters()).device
    model = session.model if kept == session.state.step else load_model(run.folder, device)
    run.write_text("report.html", run_text(run.folder, model))


def keep_verdict(session: Session, verdict: ReversalResult) -> None:
    """The table that training on reversal ends with, for the page."""
    on = f"{verdict.positions[0].n:,} fresh sequences"
    keep_evaluation(session.run.folder, "reversal", asdict(verdict), on)
