"""What is measured of written text: each measure against its definition."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.test_overlap import naive
from tformer.evals import writing as g

PLAY = "".join(
    f"KING {i}:\nThe {a} of {b} o'er the {c}, is it? I know\nnot what the {b} did.\n\n"
    for i, (a, b, c) in enumerate(
        zip(
            ["sun", "moon", "sea", "road", "hill", "king", "queen"] * 12,
            ["day", "night", "war"] * 28,
            ["land", "sand", "hand", "band", "stand"] * 17,
            strict=False,
        )
    )
)


# ---------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "before", "words"),
    [
        ("one two three", "", ["one", "two"]),
        ("one two three.", "", ["one", "two", "three"]),
        ("ne two. ", "o", ["two"]),
        (" ne two. ", "o", ["ne", "two"]),
        ("'tis o'er th'", "", ["tis", "o'er"]),
        ("don’t — 1st, x_y!", "", ["don’t", "1st", "x_y"]),
        ("half", "", []),
        ("", "half", []),
    ],
)
def test_half_words_at_the_ends_are_no_words(text, before, words):
    assert g.whole_words(text, before) == words


def test_a_word_is_known_in_whatever_case_the_training_text_has_it():
    vocabulary = g.vocabulary_of("The KING’s men")
    assert vocabulary == {"the", "king’s", "men"}
    done = measured([g.Written("", "the King’s mens Men foo ")], "The KING’s men", vocabulary=vocabulary)
    assert done.known_words == 3 / 5
    assert done.unknown_words == [("mens", 1), ("foo", 1)]


def test_distinct_n_is_over_all_texts_and_repetition_within_each():
    texts = [["a", "b", "a", "b", "a"], ["A", "b"]]
    assert g.distinct(texts, 1) == 2 / 7
    assert g.distinct(texts, 2) == 2 / 5, "no pair spans two texts"
    assert g.distinct(texts, 6) is None
    assert [g.repeated(words, 2) for words in texts] == [2, 0]


def test_ends_are_counted_not_sentences_and_lines_that_are_whole():
    sizes = g.rates([g.Written("", PLAY)])
    lines = [line for line in PLAY.split("\n") if line]
    assert sizes["characters_per_line"][0] == pytest.approx(sum(map(len, lines)) / len(lines))
    n_words = len(re.findall(r"[\w']+", PLAY))
    assert sizes["words_per_sentence"][0] == pytest.approx(n_words / (PLAY.count("?") + PLAY.count(".")))
    # Cut into pieces, the same text has the same sizes but for the words that are cut.
    cut = [g.Written(PLAY[:at], PLAY[at : at + 90]) for at in range(0, len(PLAY), 90)]
    pieces = g.rates(cut)
    assert pieces["characters_per_line"][0] == pytest.approx(sizes["characters_per_line"][0])
    assert pieces["words_per_sentence"][0] == pytest.approx(sizes["words_per_sentence"][0], rel=0.1)


@pytest.mark.parametrize(
    ("text", "ends"), [('He said "Go!" Now.', 2), ("3.14 is… so?! Yes", 2), ("no end", 0), ("end.", 1)]
)
def test_a_sentence_ends_before_white_space_or_the_end(text, ends):
    assert len(g.SENTENCE_END.findall(text)) == ends


def test_the_error_of_a_ratio_is_that_of_a_mean_where_all_wholes_are_equal():
    parts = [3.0, 5.0, 4.0, 9.0, 1.0]
    value, error = g.ratio_of(parts, [2.0] * 5)
    assert value == pytest.approx(np.mean(parts) / 2)
    assert error == pytest.approx(np.std(parts, ddof=1) / math.sqrt(5) / 2)
    assert g.ratio_of([1, 2, 3], [2, 4, 6])[1] == 0.0, "a ratio that never varies has no error"
    assert g.ratio_of([1], [2]) == (0.5, None)
    assert g.ratio_of([0, 0], [0, 0]) == g.ratio_of([], []) == (None, None)


def test_the_error_of_a_ratio_covers_what_repeated_sampling_shows():
    draw = np.random.default_rng(0)
    wholes = draw.integers(20, 80, size=(2000, 12))
    parts = draw.binomial(wholes, draw.beta(8, 2, size=wholes.shape))  # samples differ in their rate
    found = np.array([g.ratio_of(p.tolist(), w.tolist()) for p, w in zip(parts, wholes, strict=True)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.1)


# ---------------------------------------------------------------------------- overlap


def measured(written, training, validation="#", vocabulary=None):
    """The measures of one column."""
    columns, *_ = g.compare([written], [g.Written("", "")], training, validation)
    return columns[0]


@given(
    st.lists(st.text("ab ", max_size=80), min_size=1, max_size=3), st.text("ab ", min_size=1, max_size=300)
)
def test_overlap_is_that_of_the_definition(texts, training):
    done = measured([g.Written("", text) for text in texts], training)
    texts, training = [re.sub(" +", " ", text) for text in texts], re.sub(" +", " ", training)
    lengths = [naive(text, training) for text in texts]
    n = sum(map(len, texts))
    assert done.longest_overlap == max(max(some, default=0) for some in lengths)
    assert len(done.longest_overlap_text) == done.longest_overlap
    assert done.longest_overlap_text in training
    assert done.mean_overlap == (pytest.approx(sum(map(sum, lengths)) / n) if n else None)
    expected = sum(max(some, default=0) for some in lengths) / len(texts)
    assert done.mean_longest_overlap == pytest.approx(expected)


def test_a_copy_is_told_from_text_of_ones_own():
    copied, own = g.Written("", PLAY[100:400]), g.Written("", "Quite other words stand in these lines.")
    columns, *_ = g.compare([[copied], [own], [copied, own]], [g.Written("", "x")], PLAY, "none")
    copy, other, half = columns
    copy_of = " ".join(PLAY[100:400].split())
    assert copy.longest_overlap_text.strip() == copy_of and copy.copied == 1.0
    assert other.copied == 0.0 and other.longest_overlap < 10
    assert half.copied == pytest.approx(copy.longest_overlap / (copy.longest_overlap + len(own.text)))


def test_indentation_is_no_copy():
    indented = g.Written("", "Mine own\n" + " " * 80 + "invention")
    done = measured([indented], "A verse\n" + " " * 80 + "begins here")
    assert done.longest_overlap < 5 and done.copied == 0.0
    assert done.characters == len(indented.text), "what was written is counted as it stands"


def test_training_and_validation_text_are_compared_over_equal_lengths():
    validation = "zyxw" * 5
    training = "abcd" * 100 + "efgh" * 5
    texts = [g.Written("", "abcdabcd"), g.Written("", "efghefgh"), g.Written("", "zyxwzyxw")]
    columns, unseen, equal = g.compare([[t] for t in texts], [g.Written("", "zyxw")], training, validation)
    assert equal == len(validation)
    assert [c.longest_overlap for c in columns] == [8, 8, 0]
    assert [c.equal_longest_overlap for c in columns] == [0, 8, 0], "the beginning is not in the piece"
    assert [c.validation_longest_overlap for c in columns] == [0, 0, 8]
    assert unseen.validation_longest_overlap is unseen.validation_mean_overlap is None, "it comes from there"


# ---------------------------------------------------------------------------- real text


@given(
    text=st.one_of(st.text("ab \n", min_size=1, max_size=400), st.text(min_size=1, max_size=100)),
    n=st.integers(1, 8),
    room=st.integers(0, 50),
    seed=st.integers(0, 5),
)
def test_every_text_has_beginnings_that_are_not_empty(text, n, room, seed):
    spans = g.beginnings(text, n, room, seed)
    assert len(spans) == n
    assert all(0 <= a < b <= min(len(text), a + g.PROMPT) for a, b in spans)


def test_beginnings_are_whole_words_from_a_lines_beginning_in_each_part_with_room_after_them():
    spans = g.beginnings(PLAY, 4, 300, seed=1)
    assert spans == g.beginnings(PLAY, 4, 300, seed=1) != g.beginnings(PLAY, 4, 300, seed=2)
    for i, (a, b) in enumerate(spans):
        part = (len(PLAY) * i // 4, len(PLAY) * (i + 1) // 4)
        assert part[0] <= a and b + 300 <= part[1]
        assert PLAY[a - 1] == "\n" if a else True
        assert not PLAY[a].isspace() and not PLAY[b - 1].isspace() and PLAY[b].isspace()
    real = g.continuations(PLAY, spans, [5, 6, 7, 10_000])
    assert [len(w.text) for w in real[:3]] == [5, 6, 7]
    assert real[3].text == PLAY[spans[3][1] :], "the text ends where it ends"
