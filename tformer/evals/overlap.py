"""How much of one text stands word for word in another. Pure functions of strings; knows no models.

The text is sorted once (a suffix array) and every position of a sample is looked up in it by binary
search, all positions at a time: time grows as n log n with the text and as m log n with the samples.
Rolling hashes would need a pass over the text for every length asked about, and every hit verified;
here nothing is guessed, so there is nothing to verify. Source: Manber & Myers 1993, "Suffix arrays: a
new method for on-line string searches".
"""

from collections.abc import Sequence

import numpy as np

from tformer.progress import Progress, silent

PIECE = 1 << 23  # characters of the text sorted at a time: memory is about 50 bytes for each


def code_points(text: str) -> np.ndarray:
    """The characters as numbers, shape (n,), int32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int32)


def suffix_order(codes: np.ndarray, most: int) -> np.ndarray:
    """Positions sorted by what stands from there on, as far as `most` characters tell; shape (n,).

    As many characters as fit a key are sorted at once; then each round doubles the length that is
    sorted, of those alone that are still equal to a neighbour (Larsson & Sadakane 2007, "Faster suffix
    sorting").
    """
    n = len(codes)
    table = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int64)
    table[codes] = 1
    table = table.cumsum() * table  # 1, 2, … in the order of the characters; 0 stays for the end
    bits = max(1, int(table.max()).bit_length())
    known = max(1, 62 // bits)  # characters sorted by so far
    padded = np.concatenate((table[codes], np.zeros(known, dtype=np.int64)))
    key = np.zeros(n, dtype=np.int64)
    for i in range(known):
        key = (key << bits) | padded[i : i + n]
    order = np.argsort(key)
    slots, key = np.arange(n), key[order]  # where in the order it is not settled yet, and by what
    rank = np.empty(n, dtype=np.int64)
    while True:
        begins = np.flatnonzero(np.diff(key, prepend=-1))  # runs of equal keys: -1 is none
        sizes = np.diff(begins, append=len(key))
        rank[order[slots]] = np.repeat(slots[begins], sizes)
        slots = slots[np.repeat(sizes, sizes) > 1]
        if known >= most or not len(slots):
            return order
        equal = order[slots]
        after = np.where(equal + known < n, rank[np.minimum(equal + known, n - 1)] + 1, 0)
        key = rank[equal] * (n + 1) + after
        sorting = np.argsort(key)
        key, order[slots] = key[sorting], equal[sorting]
        known *= 2


def match_lengths(
    samples: Sequence[str], text: str, progress: Progress = silent, piece: int = PIECE
) -> list[np.ndarray]:
    """For every position of each sample, how long the longest stretch from there is that is in `text`.

    One array for each sample, shape (characters,), of characters ("matching statistics": Chang & Lawler
    1994, "Sublinear approximate string matching"). A stretch ends with its sample.
    """
    most = max((len(sample) for sample in samples), default=0)
    # A code that is in no text ends every sample, and another ends the text: no stretch crosses one.
    query = np.concatenate([code_points(s + "\0") for s in samples] or [np.zeros(0, dtype=np.int32)])
    ends = np.cumsum([len(s) + 1 for s in samples], dtype=np.int64)
    query[ends - 1] = -2
    longest = np.zeros(len(query), dtype=np.int64)
    if most:
        for start in range(0, len(text), piece):
            part = code_points(text[start : start + piece + most - 1])
            longest = np.maximum(longest, _search(query, part, suffix_order(part, most)))
            progress(min(start + piece, len(text)), len(text))
    return [found[:-1] for found in np.split(longest, ends[:-1])] if samples else []


def _search(query: np.ndarray, codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The longest match of each position of `query`: it is with one of its two neighbours in `order`."""
    text = np.append(codes, np.int32(-1))
    places = np.arange(len(query))
    low, high = np.full(len(query), -1), np.full(len(query), len(order))
    # Of the neighbours below and above: everything between them begins with the shorter of the two.
    below, above = np.zeros((2, len(query)), dtype=np.int64)
    for _ in range(len(order).bit_length()):
        open_ = np.flatnonzero(high - low > 1)
        middle = (low[open_] + high[open_]) // 2
        at, here = order[middle], places[open_]
        same = np.minimum(below[open_], above[open_])
        going = np.arange(len(open_))
        while going.size:
            going = going[text[at[going] + same[going]] == query[here[going] + same[going]]]
            same[going] += 1
        less = text[at + same] < query[here + same]
        low[open_[less]], below[open_[less]] = middle[less], same[less]
        high[open_[~less]], above[open_[~less]] = middle[~less], same[~less]
    return np.maximum(below, above)


def covered(lengths: np.ndarray, least: int) -> int:
    """How many characters of a sample lie in stretches of at least `least` characters."""
    starts = np.flatnonzero(lengths >= least)
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths[starts], -1)
    return int((np.cumsum(edges[:-1]) > 0).sum())
