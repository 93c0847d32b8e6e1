"""What a model writes, measured: pure functions of strings, each with its formula and its unit.

Knows no models. Every measure is taken of real text of the same lengths as well, since most of them
mean little alone: a number is large or small beside that of text the model has never seen.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tformer.evals.overlap import Progress, covered, match_lengths

WORD = re.compile(r"\w+(?:['’]\w+)*")  # "o'er" is one word, "fire-new" two
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
COPIED = 50  # characters: about ten words, which nobody hits upon by chance
PROMPT = 60  # characters of a default prompt, at most
ALIGN = 200  # characters in which a default prompt looks for the beginning of a line


@dataclass(frozen=True)
class Written:
    """A continuation, by a model or by an author: what it continues, its text, its cost to the model."""

    before: str
    text: str
    bits: float = 0.0  # of the text, given what is before it
    bytes: int = 0  # of the tokens that the bits are of


@dataclass(frozen=True)
class Overlaps:
    """For each text, the longest stretch from every position (`overlap.match_lengths`) that is in …"""

    texts: Sequence[str]  # `one_spaced`, as they were looked for
    training: Sequence[np.ndarray]  # … all of the training text
    equal: Sequence[np.ndarray]  # … as much of it as there is validation text
    validation: Sequence[np.ndarray] | None  # … the validation text; None where it comes from there


@dataclass(frozen=True)
class Measures:
    """Of several continuations together. None where there is nothing to divide by.

    `errors` has the standard error of each measure that is a ratio of sums.
    """

    samples: int
    characters: int
    known_words: float | None  # share of the words
    longest_overlap: int  # characters
    longest_overlap_text: str
    mean_longest_overlap: float | None  # characters: of each sample the longest
    mean_overlap: float | None  # characters: of each position the longest
    copied: float | None  # share of the characters
    equal_longest_overlap: int
    equal_mean_overlap: float | None
    validation_longest_overlap: int | None
    validation_mean_overlap: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    repetition: float | None  # share of the 4-grams
    words_per_sentence: float | None
    characters_per_line: float | None
    bits_per_byte: float | None
    unknown_words: list[tuple[str, int]]  # the most frequent, with how often they come
    errors: dict[str, float | None]


def measure(written: Sequence[Written], vocabulary: frozenset[str], overlaps: Overlaps) -> Measures:
    """Every measure of these continuations; `vocabulary` is `vocabulary_of` the training text."""
    words = [whole_words(w.text, w.before) for w in written]
    unknown = [[word for word in some if word.casefold() not in vocabulary] for some in words]
    sizes = [len(text) for text in overlaps.texts]
    ratios = {
        "known_words": ratio(np.subtract(_sizes(words), _sizes(unknown)).tolist(), _sizes(words)),
        "mean_longest_overlap": ratio([int(f.max(initial=0)) for f in overlaps.training], [1] * len(written)),
        "mean_overlap": ratio(_sums(overlaps.training), sizes),
        "copied": ratio([covered(found, COPIED) for found in overlaps.training], sizes),
        "equal_mean_overlap": ratio(_sums(overlaps.equal), sizes),
        "validation_mean_overlap": ratio(_sums(overlaps.validation or []), sizes),
        "repetition": ratio([repeated(some, 4) for some in words], [len(ngrams(some, 4)) for some in words]),
        "bits_per_byte": ratio([w.bits for w in written], [w.bytes for w in written]),
        **rates(written),
    }
    stretch = longest_stretch(overlaps.texts, overlaps.training)
    return Measures(
        samples=len(written),
        characters=sum(len(w.text) for w in written),
        longest_overlap=len(stretch),
        longest_overlap_text=stretch,
        equal_longest_overlap=_longest(overlaps.equal),
        validation_longest_overlap=None if overlaps.validation is None else _longest(overlaps.validation),
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        distinct_3=distinct(words, 3),
        unknown_words=Counter(itertools.chain.from_iterable(unknown)).most_common(10),
        errors={name: error for name, (_, error) in ratios.items()},
        **{name: value for name, (value, _) in ratios.items()},
    )


def compare(
    columns: Sequence[Sequence[Written]],
    unseen: Sequence[Written],
    training: str,
    validation: str,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Measures], int]:
    """The measures of each column, and last of `unseen`, which is from the validation text.

    White space counts as one character, however long: the indentation of a verse is no copy of it.
    Overlap grows with the text that it is looked for in. So where the two texts are compared, it is
    with equally much of each: the end of the training text, the beginning of the validation text, and
    the second value says how many characters.
    """
    vocabulary = vocabulary_of(training)
    training, validation = one_spaced(training), one_spaced(validation)
    equal = min(len(training), len(validation))
    groups = [*columns, unseen]
    texts = [one_spaced(w.text) for group in groups for w in group]
    in_all = match_lengths(texts, training, progress)
    in_equal = match_lengths(texts, training[len(training) - equal :])
    in_validation = match_lengths(texts, validation[:equal])
    found, at = [], 0
    for group in groups:
        here = slice(at, at + len(group))
        at += len(group)
        theirs = None if group is unseen else in_validation[here]
        found.append(measure(group, vocabulary, Overlaps(texts[here], in_all[here], in_equal[here], theirs)))
    return found, equal


def one_spaced(text: str) -> str:
    """The text with one space for every stretch of white space."""
    return re.sub(r"\s+", " ", text)


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float | None, float | None]:
    """r = Σ part / Σ whole over samples, and its standard error, which takes samples as independent.

    √(n / (n - 1) · Σ (part - r · whole)²) / Σ whole: Cochran 1977, "Sampling Techniques", equation 6.13,
    without the correction for a finite population. What is counted within a sample may hang together.
    The error is None for fewer than two samples.
    """
    n, total = len(parts), sum(wholes)
    if not n or not total:
        return None, None
    r = sum(parts) / total
    if n < 2:
        return r, None
    squares = sum((part - r * whole) ** 2 for part, whole in zip(parts, wholes, strict=True))
    return r, math.sqrt(n / (n - 1) * squares) / total


def _sizes(lists: Iterable[Sequence[str]]) -> list[int]:
    return [len(some) for some in lists]


def _sums(lengths: Iterable[np.ndarray]) -> list[int]:
    return [int(found.sum()) for found in lengths]


def _longest(lengths: Iterable[np.ndarray]) -> int:
    return max((int(found.max(initial=0)) for found in lengths), default=0)


# ---------------------------------------------------------------------------- words


def whole_words(text: str, before: str = "") -> list[str]:
    """The words of a text that continues `before` and is cut off at its end: no half ones.

    A word is letters, digits and underscores (`\\w`) with apostrophes inside it. The first is left out
    where it continues one of `before`, the last where it touches the end.

    >>> whole_words("ght o'er the sea, and th", "the kni")
    ["o'er", 'the', 'sea', 'and']
    """
    found = list(WORD.finditer(text))
    if found and found[0].start() == 0 and WORD.search(before[-1:]):
        found = found[1:]
    if found and text[found[-1].end() :] in ("", "'", "’"):
        found = found[:-1]
    return [match.group() for match in found]


def vocabulary_of(text: str) -> frozenset[str]:
    """The words of a text without regard to case: a word at the beginning of a line is no other word."""
    return frozenset(word.casefold() for word in set(WORD.findall(text)))


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every n words in a row, without regard to case."""
    folded = [word.casefold() for word in words]
    return list(zip(*(folded[i:] for i in range(n)), strict=False))


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """distinct-n: different n-grams of words / n-grams of words, over all texts together; a share.

    It falls as there is more text, so compare it between equal amounts. Source: Li et al. 2016, "A
    diversity-promoting objective function for neural conversation models".
    """
    found = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(found)) / len(found) if found else None


def repeated(words: Sequence[str], n: int) -> int:
    """How many n-grams of words came before in the same text.

    Divided by the n-grams it is seq-rep-n of Welleck et al. 2020, "Neural text generation with
    unlikelihood training".
    """
    found = ngrams(words, n)
    return len(found) - len(set(found))


def rates(written: Sequence[Written]) -> dict[str, tuple[float | None, float | None]]:
    """Words per sentence and characters per line: what there is / the ends there are, with its error.

    Ends are counted, not whole sentences measured: in short texts only short sentences are whole. A
    sentence ends in . ! ? or … before white space; a blank line is no line.
    """
    words = [len(whole_words(w.text, w.before)) for w in written]
    sentences = [len(SENTENCE_END.findall(w.text)) for w in written]
    ends = [len(re.findall(r"[^\n]\n", w.before[-1:] + w.text)) for w in written]
    characters = [len(w.text) - w.text.count("\n") for w in written]
    return {"words_per_sentence": ratio(words, sentences), "characters_per_line": ratio(characters, ends)}


def longest_stretch(texts: Sequence[str], lengths: Sequence[np.ndarray]) -> str:
    """The longest of all matches, the first among equals."""
    best = ""
    for text, found in zip(texts, lengths, strict=True):
        if len(found) and found.max() > len(best):
            at = int(found.argmax())
            best = text[at : at + int(found[at])]
    return best


# ---------------------------------------------------------------------------- real text


def beginnings(text: str, n: int, room: int, seed: int) -> list[tuple[int, int]]:
    """Start and end of `n` prompts in a text: of each n-th part, whole words from a line's beginning.

    Where in its part is drawn with the seed, with `room` characters after it where the part has them.
    Where no line begins soon, a word does.
    """
    draw, cuts = np.random.default_rng(seed), [len(text) * i // n for i in range(n + 1)]
    spans = []
    for low, high in itertools.pairwise(cuts):
        start = int(draw.integers(low, max(low, high - room - PROMPT - ALIGN) + 1))
        line = re.compile(r"(?:\A|\n)\s*(?=\S)").search(text, max(0, start - 1), start + ALIGN)
        word = line or re.compile(r"(?:\A|\s)(?=\S)").search(text, max(0, start - 1), start + ALIGN)
        start = word.end() if word else start
        prompt = text[start : start + PROMPT]
        if re.match(r"\S", text[start + PROMPT :]):  # the last word is cut
            prompt = re.sub(r"\s+\S*\Z", "", prompt)
        prompt = prompt.rstrip() or prompt
        spans.append((start, start + len(prompt)))
    return spans


def whole(text: str) -> Written:
    """All of a text, to measure as one."""
    return Written("", text)


def continuations(text: str, spans: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[Written]:
    """What stands after each prompt in the text, of so many characters where there are as many."""
    return [Written(text[a:b], text[b : b + size]) for (a, b), size in zip(spans, sizes, strict=True)]


# ---------------------------------------------------------------------------- to read

SHARE, LENGTH, COUNT, BITS = "share", "length", "count", "bits"
# Of a measure its name, what a person calls it, how it is written; a row without a name is a title.
ROWS = (
    ("characters", "characters", COUNT),
    ("known_words", "known words", SHARE),
    ("bits_per_byte", "bits per byte", BITS),
    ("repetition", "repeated 4-grams", SHARE),
    ("distinct_1", "distinct-1", SHARE),
    ("distinct_2", "distinct-2", SHARE),
    ("distinct_3", "distinct-3", SHARE),
    ("words_per_sentence", "words per sentence", LENGTH),
    ("characters_per_line", "characters per line", LENGTH),
    ("", "overlap, training text", ""),
    ("longest_overlap", "  longest", COUNT),
    ("mean_longest_overlap", "  longest of each", LENGTH),
    ("mean_overlap", "  from each place", LENGTH),
    ("copied", f"  in {COPIED} or more", SHARE),
    ("", "overlap, equal texts", ""),
    ("equal_longest_overlap", "  longest, training", COUNT),
    ("validation_longest_overlap", "  longest, validation", COUNT),
    ("equal_mean_overlap", "  mean, training", LENGTH),
    ("validation_mean_overlap", "  mean, validation", LENGTH),
)


def cell(value: float | None, error: float | None, kind: str) -> str:
    """A measure with its standard error.

    >>> cell(0.9512, 0.0081, SHARE), cell(7.125, None, LENGTH), cell(None, None, BITS)
    ('95.1 ±0.8 %', '7.1', '–')
    """
    if value is None:
        return "–"
    if kind == COUNT:
        return f"{value:,}"
    scale, digits, unit = {SHARE: (100, 1, " %"), LENGTH: (1, 1, ""), BITS: (1, 2, "")}[kind]
    # None, or 0 where no sample differs from another: that says nothing of how far off it is.
    around = "" if not error else f" ±{scale * error:.{digits}f}"
    return f"{scale * value:.{digits}f}{around}{unit}"


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measured columns of a result of `eval generations`, by their names."""
    sampled = {f"T {c['temperature']:g}": c for c in result["temperatures"]}
    return sampled | {"validation": result["validation"]}


def table_rows(result: dict[str, Any], errors: bool = True) -> list[tuple[str, ...]]:
    """A row for each measure: what it is called, its value in each column, and in the training text."""
    rows: list[tuple[str, ...]] = []
    for name, label, kind in ROWS:
        cells = [
            cell(c[name], c["errors"].get(name) if errors else None, kind) if name else ""
            for c in columns_of(result).values()
        ]
        rows.append(
            (label, *cells, cell(result["training"][name], None, kind) if name in result["training"] else "")
        )
    return rows
