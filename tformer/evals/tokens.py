"""The hardest and the easiest tokens of a text: what each cost, and what the model expected instead."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tformer.device import autocast
from tformer.evals.loss import LOGITS_AT_ONCE, TOKENS_AT_ONCE
from tformer.files import finite
from tformer.model import Transformer

# A level of surprise is a range of the probability that the token got: from 90 % up, …, below 0.1 %.
PROBABILITIES = (0.9, 0.5, 0.1, 0.01, 0.001)
EDGES = tuple(-math.log(p) for p in PROBABILITIES)  # in nats
_BOUNDS = ["0", *(f"{edge:.2f}" for edge in EDGES)]
LEVELS = tuple(  # each as a person reads it: its probabilities, its nats
    zip(
        ("90 % or more", "50–90 %", "10–50 %", "1–10 %", "0.1–1 %", "below 0.1 %"),
        (*(f"{low}–{high}" for low, high in itertools.pairwise(_BOUNDS)), f"over {_BOUNDS[-1]}"),
        strict=True,
    )
)
BEFORE = 40  # bytes of context that are shown


def level(loss: float) -> int:
    """0 (a probability of 90 % or more) to 5 (below 0.1 %).

    >>> level(0.05), level(-math.log(0.5)), level(7.0)
    (0, 1, 5)
    """
    return bisect.bisect_left(EDGES, loss)


def extremes(losses: np.ndarray, ids: np.ndarray, n: int, hardest: bool) -> list[int]:
    """The places in `ids` of the n hardest or easiest targets, the most extreme first, each id once.

    `losses` has shape (len(ids) - 1,). Without that, the colon after a speaker's name would be all of a
    play's easiest tokens.
    """
    order = np.argsort(-losses if hardest else losses, kind="stable")
    _, first = np.unique(ids[1:][order], return_index=True)  # of each id in that order
    return [int(place) for place in order[np.sort(first)[:n]] + 1]


@dataclass(frozen=True)
class ReadText:
    """A text as a model read it: its ids, what `loss.token_losses` gave on all of them, and their bytes.

    `contexts` says how many ids the model saw before each target (`data.eval_contexts`), shape (n - 1,);
    `token_bytes[id]` is what each id stands for.
    """

    ids: np.ndarray
    losses: np.ndarray
    contexts: np.ndarray
    token_bytes: Sequence[bytes]


@dataclass(frozen=True)
class Guess:
    """What a model held most likely at a place, and how likely."""

    id: int
    probability: float


@torch.inference_mode()
def guesses(
    model: Transformer, text: ReadText, places: Sequence[int], precision: str = "fp32"
) -> dict[int, Guess]:
    """The most likely token at each place of a text (1 or later), given what its window showed.

    The windows are those in which it was scored; only those asked about are computed.
    """
    ids = text.ids
    device, n_ctx = next(model.parameters()).device, model.config.n_ctx
    model.eval()
    wanted: dict[int, list[int]] = {}
    for place in sorted(set(places)):
        wanted.setdefault(place - int(text.contexts[place - 1]), []).append(place)
    starts = list(wanted)
    at_once = max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size) // n_ctx)
    found = {}
    full = [s for s in starts if s + n_ctx < len(ids)]
    groups = [full[i : i + at_once] for i in range(0, len(full), at_once)] + [
        [s] for s in starts if s + n_ctx >= len(ids)
    ]
    for group in groups:
        block = np.stack([ids[s : min(s + n_ctx, len(ids) - 1)] for s in group]).astype(np.int64)
        with autocast(precision, device):
            logits = model(torch.from_numpy(block).to(device))
        for start, row in zip(group, logits, strict=True):
            at = torch.tensor([place - 1 - start for place in wanted[start]], device=device)
            best = row[at].float().softmax(-1).max(-1)
            for place, p, i in zip(wanted[start], best.values.tolist(), best.indices.tolist(), strict=True):
                found[place] = Guess(i, p)
    return found


@dataclass(frozen=True)
class Token:
    """A token of a text as it was scored: its place, its bytes, its loss, the model's own guess."""

    place: int
    raw: bytes
    context: int  # tokens that the model saw before it
    before: bytes  # the last bytes of those
    loss: float
    rank: int  # 1 is the hardest of the text
    expected: bytes
    expected_probability: float

    @property
    def probability(self) -> float:
        """What the model gave the token."""
        return math.exp(-self.loss)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: bytes that are no text as U+FFFD."""
        return {
            "place": self.place,
            "token": self.raw.decode(errors="replace"),
            "loss": finite(self.loss),
            "rank": self.rank,
            "context": self.context,
            "before": self.before.decode(errors="replace"),
            "expected": self.expected.decode(errors="replace"),
            "expected_probability": finite(self.expected_probability),
        }


@dataclass(frozen=True)
class Surprise:
    """The beginning of a text, token by token, and the extremes of all of it.

    `first` is the first token, which nothing predicts; `of` is how many tokens were scored.
    """

    first: bytes
    stretch: list[Token]
    hardest: list[Token]
    easiest: list[Token]
    of: int

    @property
    def loss(self) -> float:
        """The mean over the stretch, in nats."""
        return sum(token.loss for token in self.stretch) / len(self.stretch)

    @property
    def summary(self) -> str:
        """What the stretch is, in words."""
        n = len(self.stretch)
        each = f"{self.loss:.4f} nats each, {n * self.loss:.2f} together"
        return f"The first {n:,} of {self.of:,} scored tokens: {each}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = {"text": self.stretch, "hardest": self.hardest, "easiest": self.easiest}
        return {name: [token.as_dict() for token in tokens] for name, tokens in parts.items()}


def surprise(model: Transformer, text: ReadText, n: int, most: int = 20, precision: str = "fp32") -> Surprise:
    """Look at the first `n` targets of a text, and at its `most` hardest and easiest."""
    ids, losses, token_bytes = text.ids, text.losses, text.token_bytes
    places = list(range(1, min(n, len(losses)) + 1))
    hard = extremes(losses, ids, most, hardest=True)
    easy = extremes(losses, ids, most, hardest=False)
    expected = guesses(model, text, [*places, *hard, *easy], precision)
    ranks = np.empty(len(losses), dtype=np.int64)
    ranks[np.argsort(-losses, kind="stable")] = np.arange(1, len(losses) + 1)

    def token(place: int) -> Token:
        context = int(text.contexts[place - 1])
        before = b"".join(token_bytes[i] for i in ids[place - min(context, BEFORE) : place])
        guess = expected[place]
        return Token(
            place=place,
            raw=token_bytes[ids[place]],
            context=context,
            before=before[-BEFORE:],
            loss=max(0.0, float(losses[place - 1])),  # a certain token may round to below
            rank=int(ranks[place - 1]),
            expected=token_bytes[guess.id],
            expected_probability=guess.probability,
        )

    return Surprise(
        token_bytes[ids[0]],
        [token(p) for p in places],
        [token(p) for p in hard],
        [token(p) for p in easy],
        len(losses),
    )
