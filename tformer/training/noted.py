"""What is measured where a run is evaluated, beside its loss: a line that it writes, the loss by position,
and the last words of passages (`train --eval-data`).

Each gives entries of a line of `metrics.jsonl`. Nothing here moves a weight or a draw of training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tformer.config import Config
from tformer.errors import RequestError
from tformer.evals.lambada import Encoded, encode_passages, lambada, read_passages
from tformer.evals.loss import octaves
from tformer.run.data import ANOTHER_RUN, Data
from tformer.run.record import Passages, Record, check_hash
from tformer.sample import Sampler, Sampling, TextStream, generate
from tformer.text.corpus import open_file
from tformer.text.data import STREAM_SAMPLE, Reversal, rng
from tformer.text.tokenizer import Tokenizer
from tformer.training.session import Session

CHARACTERS = 80  # of a sampled line: about what a terminal has room for
TEMPERATURE = 0.8  # as `tformer sample` has it


# ---------------------------------------------------------------------------- a line


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


# ---------------------------------------------------------------------------- by position


def loss_by_position(session: Session) -> dict[str, Any]:
    """`by_position`: [last position, mean loss] of positions 1, 2, 3–4, 5–8, …, of this evaluation."""
    judged = session.judged
    if judged is None:
        return {}
    return {"by_position": [[last, round(mean, 4)] for _, last, mean in octaves(judged.by_position)]}


# ---------------------------------------------------------------------------- last words


@dataclass(frozen=True)
class NextWords:
    """Passages read whole before anything is written, and what `tformer.yaml` keeps of them."""

    passages: Encoded
    record: Passages  # under record.eval_data

    def score(self, session: Session) -> dict[str, Any]:
        """`next_word_loss`: nats per whole last word, the mean over the passages.

        It is the logarithm of the perplexity that `eval lambada` reports.
        """
        result = lambada(session.model, self.passages, session.config.train.precision)
        return {"next_word_loss": result.next_word_loss}


def read_next_words(source: str | None, recorded: Record, config: Config, data: Data) -> NextWords | None:
    """The passages of `--eval-data`, or those of the run that goes on; None where neither has any.

    A run keeps its passages: RequestError where they are not those recorded, and for a run on reversal.
    """
    before = recorded.eval_data
    if source is None and before is None:
        return None
    if source is None and before and not Path(before.source).exists():
        raise RequestError(
            f"no passages at {before.source}",
            "this run is judged by them as it trains",
            "say where they are: --eval-data FILE",
        )
    source = source or (before.source if before else "")
    if data.reversal:
        raise RequestError("--eval-data is for a run on text", "this one is on reversal", "leave it out")
    with open_file(Path(source)) as file:  # standard input could not be read again on --resume
        sha256 = hashlib.sha256(file.read()).hexdigest()
    check_hash(sha256, before.sha256 if before else None, ANOTHER_RUN)
    passages = encode_passages(read_passages(source), data.tokenizer, config.model.n_ctx)
    record = Passages(source=str(Path(source).resolve()), sha256=sha256, passages=len(passages.ids))
    return NextWords(passages, record)
