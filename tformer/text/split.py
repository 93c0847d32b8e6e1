"""Which part of a text is kept for validation: its end, or lines or files of it that a draw chooses.

The draw is the same whatever the seed of a training is, so that all runs on a text are judged by one part.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tformer.errors import RequestError
from tformer.text.corpus import Corpus
from tformer.text.data import STREAM_SPLIT, rng, split_at


def cut_of(corpus: Corpus, fraction: float) -> int:
    """The character at which the validation part of a text begins."""
    return split_at(len(corpus.text), fraction) if corpus.cut is None else corpus.cut


def kept_apart(corpus: Corpus, how: str, fraction: float) -> Corpus:
    """The text with lines or files of it put to its end, which come to at most `fraction` of its characters.

    `how` is `data.val_split`. Both parts are in the order of the text, and `cut` is where the second begins.
    At least one line or file is in each. Raises RequestError for a text that has no two.
    """
    if how == "end" or not 0 < fraction < 1:
        return corpus
    if how == "lines":
        stops = sorted({*(end.end() for end in re.finditer("\n", corpus.text)), *corpus.ends})
    elif how == "files":
        stops = list(corpus.ends)
    else:
        raise RequestError(f"data.val_split {how!r}", "expected end, lines or files")
    if len(stops) < 2:
        found = f"{corpus.source} is one {how.removesuffix('s')}"
        advice = "data.val_split=lines, or end" if how == "files" else "data.val_split=end"
        raise RequestError(f"data.val_split is {how}", found, advice)
    places = np.array([0, *stops])
    sizes = np.diff(places)
    chosen = chosen_among(sizes, fraction)
    spans = list(pairwise(places.tolist()))
    parts = [
        "".join(corpus.text[a:b] for (a, b), is_in in zip(spans, chosen, strict=True) if is_in == wanted)
        for wanted in (False, True)
    ]
    note = (
        f"validation: {chosen.sum():,} of {len(sizes):,} {how}, {len(parts[1]):,} of {len(corpus.text):,} "
        "characters, drawn from all of the text"
    )
    return replace(
        corpus,
        text="".join(parts),
        ends=_ends(corpus, places[:-1], sizes, chosen),
        how=how,
        cut=len(parts[0]),
        whole=corpus,
        notes=(*corpus.notes, note),
    )


def chosen_among(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Which of some things of these sizes are drawn, shape (n,) of bool: as many as come to the fraction.

    In a random order each is taken that still fits; the smallest where none does.
    """
    left, chosen = fraction * int(sizes.sum()), np.zeros(len(sizes), dtype=bool)
    for i in rng(0, STREAM_SPLIT, 0).permutation(len(sizes)):
        if sizes[i] <= left:
            chosen[i] = True
            left -= int(sizes[i])
    if not chosen.any():
        chosen[np.argmin(sizes)] = True
    return chosen


def _ends(corpus: Corpus, starts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> tuple[int, ...]:
    """Where what is left of each document ends, in the first part and then in the second."""
    if len(corpus.ends) == 1:
        return corpus.ends
    of = np.searchsorted(corpus.ends, starts, side="right")  # the document of each piece
    lengths: Iterable[np.ndarray] = (
        np.bincount(of[part], sizes[part], len(corpus.ends)) for part in (~chosen, chosen)
    )
    left = np.concatenate([*lengths]).astype(np.int64)
    return tuple(np.cumsum(left[left > 0]).tolist())
