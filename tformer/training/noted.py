"""What is noted at an evaluation of a run, beside its loss: a line that it writes, and the loss by position.

Each gives entries of a line of `metrics.jsonl`. Nothing here moves a weight or a draw of training.
"""

from typing import Any

import torch

from tformer.evals.loss import octaves
from tformer.run.usage import end_ids
from tformer.sample import Sampler, Sampling, TextStream, generate
from tformer.text.data import STREAM_SAMPLE, Reversal, rng
from tformer.text.tokenizer import Tokenizer
from tformer.training.session import Session

CHARACTERS = 80  # of a sampled line: about what a terminal has room for
TEMPERATURE = 0.8  # as `tformer sample` has it


# ---------------------------------------------------------------------------- a line


def sampled_line(session: Session) -> dict[str, Any]:
    """`sample`: what the model writes after a line break at this step; on reversal, how it goes on.

    It ends where `tformer sample` would end it. A function of (seed, step) and the weights, like everything
    random in a run.
    """
    step, seed = session.state.step, session.config.train.seed
    tokenizer = session.data.tokenizer
    if session.data.reversal:
        return {"sample": _reversed_line(session, session.data.reversal)}
    device = next(session.model.parameters()).device
    sampler = Sampler(Sampling(TEMPERATURE), int(rng(seed, STREAM_SAMPLE, step).integers(2**63)), 1)
    size = tokenizer.vocab_size
    of_documents = session.data.documents != "none" and (session.data.facts.documents or 0) > 1
    end = tokenizer.end_id if of_documents else None
    stream = TextStream(tokenizer, end_ids=end_ids(session.run.here))
    start = torch.tensor([[tokenizer.start_id if end is None else end]], device=device)
    for column in generate(session.model, start, CHARACTERS, lambda logits: sampler(logits[:, :size])):
        stream.feed(int(column[0]))
        if len(stream.text) >= CHARACTERS or stream.finish_reason:
            break
    return {"sample": stream.text[:CHARACTERS]}  # a token may be many characters


def _reversed_line(session: Session, task: Reversal) -> str:
    """A fresh random half, and what the model takes for its reverse."""
    tokenizer: Tokenizer = session.data.tokenizer
    half = task.sequences(1, STREAM_SAMPLE, session.state.step)[:, : task.length]
    device = next(session.model.parameters()).device
    rest = generate(session.model, torch.from_numpy(half.copy()).to(device), task.length)
    halves = [int(i) for i in half[0]], [int(column[0]) for column in rest]
    return " → ".join("".join(map(tokenizer.text_of, ids)) for ids in halves)


# ---------------------------------------------------------------------------- by position


def loss_by_position(session: Session) -> dict[str, Any]:
    """`by_position`: [last position, mean loss] of positions 1, 2, 3–4, 5–8, …, of this evaluation."""
    judged = session.last_validation
    if judged is None:
        return {}
    return {"by_position": [[last, round(mean, 4)] for _, last, mean in octaves(judged.by_position)]}
