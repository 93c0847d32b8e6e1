"""`train --eval-data`: the last words of passages, scored at every evaluation of a run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tformer.config import Config
from tformer.errors import RequestError
from tformer.evals.lambada import Encoded, encode_passages, lambada, read_passages
from tformer.run.data import Data
from tformer.run.record import ANOTHER_RUN, Passages, Record, check_hash
from tformer.text.plain import open_file
from tformer.training.session import Session


@dataclass(frozen=True)
class NextWords:
    """Passages read whole before anything is written, and what `tformer.yaml` keeps of them."""

    passages: Encoded
    record: Passages  # under record.eval_data

    def score(self, session: Session) -> dict[str, Any]:
        """`next_word_loss`: nats per whole last word, the mean over the passages.

        It is the logarithm of the perplexity that `eval lambada` reports.
        """
        precision, ranks = session.config.train.precision, session.ranks
        result = lambada(session.model, self.passages, precision, lambda *_: ranks.await_first(is_busy=True))
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
