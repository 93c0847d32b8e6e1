"""Written text, measured: pure functions of strings, each with its formula and its unit.

Knows no models. Every measure is taken of real text of the same lengths as well, since most of them
mean little alone: a number is large or small beside that of text the model has never seen.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tformer.evals.overlap import covered, match_lengths
from tformer.evals.statistics import ratio_stderr
from tformer.progress import Progress, silent

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
    ended: bool | None = None  # of a document: whether it came to its end

    @property
    def closed(self) -> str:
        """The text, and where it came to its end a line end: its last word is whole."""
        return self.text + "\n" * bool(self.ended)


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
    ended: float | None = None  # of documents, as all below: share that came to an end
    mean_length: float | None = None  # characters
    valid: float | None = None  # share
    unique: float | None = None
    novel: float | None = None


class Ratio(NamedTuple):
    """A sum over another, and its standard error. None where there is nothing to divide by."""

    value: float | None
    stderr: float | None


def measures_of(
    written: Sequence[Written],
    vocabulary: frozenset[str],
    overlaps: Overlaps,
    known: Collection[str] = (),
) -> Measures:
    """Every measure of these continuations; `vocabulary` is `vocabulary_of` the training text.

    `known` are the documents of that, if it has some.
    """
    words = [whole_words(w.closed, w.before) for w in written]
    unknown = [[word for word in some if word.casefold() not in vocabulary] for some in words]
    sizes = [len(text) for text in overlaps.texts]
    ratios = {
        "known_words": ratio_of(np.subtract(_sizes(words), _sizes(unknown)).tolist(), _sizes(words)),
        "mean_longest_overlap": ratio_of(
            [int(f.max(initial=0)) for f in overlaps.training], [1] * len(written)
        ),
        "mean_overlap": ratio_of(_sums(overlaps.training), sizes),
        "copied": ratio_of([covered(found, COPIED) for found in overlaps.training], sizes),
        "equal_mean_overlap": ratio_of(_sums(overlaps.equal), sizes),
        "validation_mean_overlap": ratio_of(_sums(overlaps.validation or []), sizes),
        "repetition": ratio_of(
            [repeated(some, 4) for some in words], [len(ngrams(some, 4)) for some in words]
        ),
        "bits_per_byte": ratio_of([w.bits for w in written], [w.bytes for w in written]),
        **rates(written),
        **of_documents(written, known),
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
        errors={name: ratio.stderr for name, ratio in ratios.items()},
        **{name: ratio.value for name, ratio in ratios.items()},
    )


class Compared(NamedTuple):
    """The measures of each column, and of text that no training saw.

    `equal_characters` is how much of each of the two texts overlaps are compared in.
    """

    columns: list[Measures]
    unseen: Measures
    equal_characters: int


def compare(
    columns: Sequence[Sequence[Written]],
    unseen: Sequence[Written],
    training: str,
    validation: str,
    progress: Progress = silent,
    known: Collection[str] = (),
) -> Compared:
    """The measures of each column, and of `unseen`, which is from the validation text.

    `known` are the documents of the training text, if it has some.

    White space counts as one character, however long: the indentation of a verse is no copy of it.
    Overlap grows with the text that it is looked for in. So where the two texts are compared, it is
    with equally much of each: the end of the training text, the beginning of the validation text.
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
        found.append(
            measures_of(group, vocabulary, Overlaps(texts[here], in_all[here], in_equal[here], theirs), known)
        )
    return Compared(found[:-1], found[-1], equal)


def one_spaced(text: str) -> str:
    """The text with one space for every stretch of white space."""
    return re.sub(r"\s+", " ", text)


def ratio_of(parts: Sequence[float], wholes: Sequence[float]) -> Ratio:
    """Σ part / Σ whole over samples, and its standard error (`ratio_stderr`, a sample is a unit).

    What is counted within a sample may hang together.
    """
    total = sum(wholes)
    if not parts or not total:
        return Ratio(None, None)
    stderr = ratio_stderr(np.array(parts, dtype=np.float64), np.array(wholes, dtype=np.float64))
    return Ratio(sum(parts) / total, stderr)


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


def rates(written: Sequence[Written]) -> dict[str, Ratio]:
    """Words per sentence and characters per line: what there is / the ends there are, with its error.

    Ends are counted, not whole sentences measured: in short texts only short sentences are whole. A
    sentence ends in . ! ? or … before white space; a blank line is no line.
    """
    words = [len(whole_words(w.closed, w.before)) for w in written]
    sentences = [len(SENTENCE_END.findall(w.text)) for w in written]
    ends = [len(re.findall(r"[^\n]\n", w.before[-1:] + w.closed)) for w in written]
    characters = [len(w.text) - w.text.count("\n") for w in written]
    return {
        "words_per_sentence": ratio_of(words, sentences),
        "characters_per_line": ratio_of(characters, ends),
    }


def of_documents(written: Sequence[Written], known: Collection[str]) -> dict[str, Ratio]:
    """What is asked of documents that a model writes; nothing of texts that are none.

    `ended`: the share that came to an end; `mean_length` in characters; `valid`: the share that ended and is
    not blank; `unique`: of those, the share that is left when each counts once; `novel`: of those that are
    left, the share that is not among `known`. The last three are what generators of molecules are judged by
    (Polykovskiy et al. 2020, "Molecular sets (MOSES)").
    """
    if not written or any(w.ended is None for w in written):
        return {}
    ones = [1] * len(written)
    ended = [bool(w.ended) for w in written]
    texts = [w.before + w.text for w in written]
    valid = [text for text, has_end in zip(texts, ended, strict=True) if has_end and text.strip()]
    different = list(dict.fromkeys(valid))
    novel = [text not in known for text in different]
    return {
        "ended": ratio_of(ended, ones),
        "mean_length": ratio_of([len(text) for text in texts], ones),
        "valid": Ratio(len(valid) / len(written), None),
        "unique": Ratio(len(different) / len(valid) if valid else None, None),
        "novel": ratio_of(novel, [1] * len(different)),
    }


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
