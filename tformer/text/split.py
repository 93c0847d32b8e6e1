"""Which part of a text is kept for validation: its end, or lines, documents or files that a draw chooses.

The draw is the same whatever the seed of a training is, so that all runs on a text are judged by one part.
"""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tformer.errors import RequestError
from tformer.text.corpus import Corpus
from tformer.text.data import STREAM_SPLIT, rng, split_at

FOR_A_SPLIT = 20  # documents: with fewer, one more or less in the validation part would be much of it
FOR_IDS = "data.val_split=end, or --val-data FILE"  # which have no lines and no files
IN_MEMORY = 1 << 28  # ids


def way_for(corpus: Corpus, has_ends: bool) -> str:
    """`data.val_split` where nobody says: documents of a text that has many with ends; else the end."""
    return "documents" if has_ends and corpus.n_documents >= FOR_A_SPLIT else "end"


def cut_of(corpus: Corpus, fraction: float) -> int:
    """The character at which the validation part of a text begins."""
    return split_at(len(corpus.text), fraction) if corpus.cut is None else corpus.cut


def kept_apart(corpus: Corpus, how: str, fraction: float) -> Corpus:
    """The text with lines, documents or files at its end which come to at most `fraction` of its characters.

    `how` is `data.val_split`. `cut` is where the second part begins. Both are in the order of the text; if
    documents are drawn, which have nothing to do with each other, in the order of the draw, also where
    nothing is kept: of a sorted list a model would learn from the name before how the next one begins.
    At least one is in each part. Raises RequestError for a text that has no two.
    """
    if how == "end" or not (0 < fraction < 1 or how == "documents"):
        return corpus
    if how == "lines":
        stops = sorted({*(end.end() for end in re.finditer("\n", corpus.text)), *corpus.ends.tolist()})
    elif how == "files":
        stops = list(corpus.file_ends)
    else:
        stops = corpus.ends.tolist()
    if len(stops) < 2:
        found = f"{corpus.source} is one {how.removesuffix('s')}"
        advice = "data.val_split=end" if how == "lines" else "data.val_split=lines, or end"
        raise RequestError(f"data.val_split is {how}", found, advice)
    places = np.array([0, *stops])
    sizes = np.diff(places)
    order = rng(0, STREAM_SPLIT, 0).permutation(len(sizes))
    chosen = chosen_among(sizes, fraction, order) if fraction else np.zeros(len(sizes), dtype=bool)
    spans = list(pairwise(places.tolist()))
    shown = order if how == "documents" else np.arange(len(sizes))
    parts = [shown[~chosen[shown]], shown[chosen[shown]]]
    texts = ["".join(corpus.text[slice(*spans[i])] for i in part) for part in parts]
    notes = corpus.notes
    if fraction:
        notes += (
            f"validation: {chosen.sum():,} of {len(sizes):,} {how}, {len(texts[1]):,} of "
            f"{len(corpus.text):,} characters, drawn from all of the text",
        )
    return replace(
        corpus,
        text="".join(texts),
        ends=np.cumsum(sizes[np.concatenate(parts)])
        if how == "documents"
        else _ends(corpus, places[:-1], sizes, chosen),
        how=how,
        cut=len(texts[0]),
        whole=corpus,
        notes=notes,
    )


def ids_apart(ids: np.ndarray, end_id: int, fraction: float) -> tuple[np.ndarray, int]:
    """`kept_apart` by documents, of ids in which a token ends each; and where the second part begins.

    In front of each part that has any stands the token. Of documents without any id nothing is left, and what
    is after the last token is a document as well.
    """
    stops = np.append(np.flatnonzero(ids == end_id), len(ids))
    starts = np.append(0, stops[:-1] + 1)
    spans = [(int(a), int(b)) for a, b in zip(starts, stops, strict=True) if b > a]
    sizes = np.array([stop - start + 1 for start, stop in spans])
    order = rng(0, STREAM_SPLIT, 0).permutation(len(sizes))
    chosen = chosen_among(sizes, fraction, order) if fraction else np.zeros(len(sizes), dtype=bool)
    end = np.array([end_id], dtype=ids.dtype)
    train, val = (
        np.concatenate([end, *(part for i in some for part in (ids[slice(*spans[i])], end))])
        if len(some)
        else ids[:0]
        for some in (order[~chosen[order]], order[chosen[order]])
    )
    return np.concatenate((train, val)), len(train)


def are_apart(ids: np.ndarray, end_id: int | None) -> bool:
    """Whether a token file has many documents, and is not so large that it is better left on the disk."""
    return end_id is not None and len(ids) <= IN_MEMORY and int((ids == end_id).sum()) > FOR_A_SPLIT


def chosen_among(sizes: np.ndarray, fraction: float, order: np.ndarray) -> np.ndarray:
    """Which of some things of these sizes are drawn, shape (n,) of bool: as many as come to the fraction.

    In a random order each is taken that still fits; the smallest where none does.
    """
    left, chosen = fraction * int(sizes.sum()), np.zeros(len(sizes), dtype=bool)
    for i in order:
        if sizes[i] <= left:
            chosen[i] = True
            left -= int(sizes[i])
    if not chosen.any():
        chosen[np.argmin(sizes)] = True
    return chosen


def _ends(corpus: Corpus, starts: np.ndarray, sizes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where what is left of each document ends, in the first part and then in the second."""
    if len(corpus.ends) == 1:
        return corpus.ends
    of = np.searchsorted(corpus.ends, starts, side="right")  # the document of each piece
    lengths = [np.bincount(of[part], sizes[part], len(corpus.ends)) for part in (~chosen, chosen)]
    left = np.concatenate(lengths).astype(np.int64)
    return np.cumsum(left[left > 0])
