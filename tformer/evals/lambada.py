"""LAMBADA: how well the last word of a passage is predicted from everything before it.

The passages were chosen so that people guess the word from the whole passage, and not from its last
sentence alone (Paperno et al. 2016, "The LAMBADA dataset"). The measure is that of
lm-evaluation-harness's task `lambada_openai`, on the file that OpenAI made for GPT-2: the word, with the
space before it, is right if each of its tokens is the most probable one, given the true tokens before;
perplexity is exp of the mean over passages of -log p(word), so it is per word, not per token. Much that is
published as LAMBADA judges the *last token* alone, given the beginning of its word, which is easier: it
is measured beside, under that name.

Knows nothing of terminals.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tformer.device import autocast
from tformer.errors import RequestError
from tformer.evals.loss import TOKENS_AT_ONCE
from tformer.evals.statistics import mean_stderr
from tformer.loss import check_finite, cross_entropy
from tformer.model import Transformer
from tformer.progress import Progress, silent
from tformer.sample import greedy
from tformer.text.plain import open_file, read_text
from tformer.text.tokenizer import Tokenizer

# ---------------------------------------------------------------------------- passages


def read_passages(source: str) -> list[str]:
    """The texts of a JSON-lines file, or of standard input for `-`: {"text": …} a line.

    Raises RequestError, naming the line, for anything else; blank lines are passed over.
    """
    texts = []
    with nullcontext(sys.stdin.buffer) if source == "-" else open_file(Path(source)) as stream:
        lines = "".join(read_text(stream, source)).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()  # half a surrogate pair is JSON, and no text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            text = ""
        if not text.strip():
            raise RequestError(
                f"{source} line {number} is no passage",
                f'expected {{"text": "…"}}, found {line[:40].strip()!r}',
            )
        texts.append(text)
    if not texts:
        raise RequestError(f"{source} is empty", 'expected passages, {"text": "…"} a line')
    return texts


def split_last_word(text: str) -> tuple[str, str]:
    """A passage and its last word: all after the last space, with the white space before it.

    >>> split_last_word("I don't care about signs")
    ("I don't care about", ' signs')

    White space at the end of a passage is no word.
    """
    before, _, word = text.rstrip().rpartition(" ")
    context = before.rstrip()
    return context, f"{before[len(context) :]} {word}"


@dataclass(frozen=True)
class Encoded:
    """Passages as one model sees them: their ids, and how many of the last are the last word's."""

    ids: list[list[int]]
    n_targets: list[int]
    cut: int = 0  # passages longer than the context, of which the end was kept
    skipped: dict[str, int] = field(default_factory=dict)  # why passages were passed over: how many


def encode_passages(texts: Sequence[str], tokenizer: Tokenizer, n_ctx: int) -> Encoded:
    """Passages as ids, each at most n_ctx inputs and the last target: what is longer keeps its end.

    Passage and word are encoded together, as the model has seen text. The word begins at the first
    token that begins at its white space or after: a word vocabulary may join that with punctuation
    before it, and then the joined token is given. A passage without a blank has no last word that
    something stands before, and is passed over; so is one with a character that a char vocabulary lacks, and
    one whose last word has more than n_ctx tokens. `skipped` says how many. Raises RequestError where none
    is left.
    """
    n_bytes = np.array([len(token) for token in tokenizer.token_bytes])
    alphabet = {token.decode() for token in tokenizer.token_bytes} if tokenizer.kind == "char" else None
    ids: list[list[int]] = []
    n_targets: list[int] = []
    lacking: Counter[str] = Counter()  # passages by character
    one_word = unreadable = too_long = cut = 0
    for text in texts:
        context, word = split_last_word(text)
        if not context:
            one_word += 1
            continue
        if alphabet is not None and (missing := set(context + word) - alphabet):
            lacking.update(sorted(missing))  # a set has another order in every process
            unreadable += 1
            continue
        whole = tokenizer.encode(context + word)
        begins = np.cumsum(n_bytes[whole]) - n_bytes[whole]  # the byte that each token begins at
        first = min(int(np.searchsorted(begins, len(context.encode()))), len(whole) - 1)
        if first == 0:  # all of it is one token, predicted from what an empty prompt starts with
            whole, first = [tokenizer.start_id, *whole], 1
        n = len(whole) - first
        if n > n_ctx:
            too_long += 1
            continue
        cut += len(whole) > n_ctx + 1
        ids.append(whole[-(n_ctx + 1) :])
        n_targets.append(n)
    skipped = {}
    if one_word:
        skipped["no blank, after which a last word would stand"] = one_word
    if unreadable:
        worst = " ".join(repr(char) for char, _ in lacking.most_common(5)) + " …" * (len(lacking) > 5)
        skipped[f"characters that the vocabulary lacks: {worst}"] = unreadable
    if too_long:
        skipped[f"a last word of more tokens than the context has, {n_ctx}"] = too_long
    if not ids:
        raise RequestError(
            "no passage can be scored by this model",
            "; ".join(skipped),
            "train with a word or bpe tokenizer, which take any text, and a context of a passage's length"
            if unreadable or too_long
            else "give passages whose words have blanks between them",
        )
    return Encoded(ids, n_targets, cut, skipped)


# ---------------------------------------------------------------------------- the measure


@dataclass(frozen=True)
class LambadaResult:
    """Accuracy and perplexity of the last word as a whole, and of its last token alone.

    A perplexity is exp of the mean loss over passages, in nats; `next_word_loss` is the whole word's.
    `…_stderr` are standard errors over passages: s / √n for an accuracy, s the sample standard
    deviation, which is √(p (1 - p) / (n - 1)); for a perplexity that of the mean loss times the
    perplexity (delta method). None where they cannot be had: of one passage, or past what a float holds.
    """

    n: int
    accuracy: float
    accuracy_stderr: float | None
    perplexity: float | None
    perplexity_stderr: float | None
    next_word_loss: float
    last_token_accuracy: float
    last_token_accuracy_stderr: float | None
    last_token_perplexity: float | None
    last_token_perplexity_stderr: float | None
    tokens_per_word: float
    cut: int  # passages of which only the end fits the context
    skipped: int  # passages that this model cannot be asked


@torch.inference_mode()
def lambada(
    model: Transformer,
    passages: Encoded,
    precision: str = "fp32",
    progress: Progress = silent,
) -> LambadaResult:
    """Score every token of every last word given the true tokens before it.

    One forward pass a passage computes its context once and all its targets, and only these are
    unembedded. Passages go together by length, the longest first, padded on the right, where a causal
    model does not look. Raises TformerError where the logits are not finite.
    """
    device = next(model.parameters()).device
    model.eval()
    n = len(passages.ids)
    loss, last_loss = np.empty(n), np.empty(n)
    right, last_right = np.empty(n, dtype=bool), np.empty(n, dtype=bool)
    done = 0
    for group in _groups([len(ids) - 1 for ids in passages.ids]):
        asked = [passages.ids[i] for i in group]
        lengths, counts = np.array([len(ids) - 1 for ids in asked]), np.take(passages.n_targets, group)
        inputs = torch.tensor([ids[:-1] + [0] * (lengths[0] + 1 - len(ids)) for ids in asked])
        targets = torch.tensor([i for ids, count in zip(asked, counts, strict=True) for i in ids[-count:]])
        ends = np.cumsum(counts)  # of each word among the targets
        rows = torch.from_numpy(np.repeat(np.arange(len(group)), counts))
        # The last target is read at the last input, those before it at the inputs before.
        places = torch.from_numpy(np.repeat(lengths - ends, counts) + np.arange(ends[-1]))
        with autocast(precision, device):
            hidden = model.hidden(inputs.to(device))
            logits = model.logits(hidden[rows, places])
        losses = cross_entropy(logits[None], targets.to(device)[None])[0].cpu().double().numpy()
        hits = (greedy(logits).cpu() == targets).numpy()
        loss[group] = np.add.reduceat(losses, ends - counts)
        right[group] = np.logical_and.reduceat(hits, ends - counts)
        last_loss[group], last_right[group] = losses[ends - 1], hits[ends - 1]
        done += len(group)
        progress(done, n)
    check_finite(torch.from_numpy(loss), "logits", "scored")
    perplexity, last_perplexity = _perplexity(loss), _perplexity(last_loss)
    return LambadaResult(
        n=n,
        accuracy=float(right.mean()),
        accuracy_stderr=mean_stderr(right),
        perplexity=perplexity,
        perplexity_stderr=_times(perplexity, mean_stderr(loss)),
        next_word_loss=float(loss.mean()),
        last_token_accuracy=float(last_right.mean()),
        last_token_accuracy_stderr=mean_stderr(last_right),
        last_token_perplexity=last_perplexity,
        last_token_perplexity_stderr=_times(last_perplexity, mean_stderr(last_loss)),
        tokens_per_word=sum(passages.n_targets) / n,
        cut=passages.cut,
        skipped=sum(passages.skipped.values()),
    )


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of passages for one forward pass each, longest first, TOKENS_AT_ONCE with padding."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        n = max(1, TOKENS_AT_ONCE // lengths[order[0]])
        yield order[:n]
        order = order[n:]


def _perplexity(losses: np.ndarray) -> float | None:
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else None


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b
