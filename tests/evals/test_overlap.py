"""Verbatim overlap against the definition, tried at every position and every length."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tformer.evals.overlap import code_points, covered, match_lengths, suffix_order

FEW = st.text("ab\n", max_size=60)  # few characters: long matches, and many of them
ANY = st.text(max_size=30)


def naive(sample: str, text: str) -> list[int]:
    """The longest beginning of each sample[i:] that is in the text, found one character at a time."""
    found = []
    for i in range(len(sample)):
        n = 0
        while i + n < len(sample) and sample[i : i + n + 1] in text:
            n += 1
        found.append(n)
    return found


@given(samples=st.lists(st.one_of(FEW, ANY), max_size=4), text=st.one_of(FEW, ANY), piece=st.integers(1, 80))
def test_every_position_has_its_longest_match_however_the_text_is_cut(samples, text, piece):
    found = match_lengths(samples, text, piece=piece)
    assert [lengths.tolist() for lengths in found] == [naive(sample, text) for sample in samples]


# What many characters tell apart is sorted in many rounds: little varies in these.
REPETITIVE = st.lists(st.sampled_from(["ab" * 40, "a" * 100, "ab", "b"]), max_size=12).map("".join)


@given(text=st.one_of(st.text("ab\x00\U0010ffff", max_size=120), REPETITIVE), most=st.integers(1, 600))
def test_the_order_is_that_of_the_text_from_each_position_on(text, most):
    order = suffix_order(code_points(text), most).tolist()
    assert sorted(order) == list(range(len(text)))
    from_there = [text[i : i + most] for i in order]
    assert from_there == sorted(from_there)


@pytest.mark.parametrize(("sample", "text"), [("", "abc"), ("abc", ""), ("abc", "xyz"), ("\x00", "a\x00")])
def test_nothing_in_common_is_a_length_of_zero(sample, text):
    assert match_lengths([sample], text)[0].tolist() == naive(sample, text)


def test_a_stretch_crosses_neither_the_ends_of_samples_nor_pieces_of_the_text():
    assert [found.tolist() for found in match_lengths(["ab", "cd"], "abcd")] == [[2, 1], [2, 1]]
    assert match_lengths(["abcdef"], "abc" + "def", piece=3)[0].tolist() == [6, 5, 4, 3, 2, 1]


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 6))
def test_characters_in_long_stretches_are_counted_once(lengths, least):
    lengths = [min(n, len(lengths) - i) for i, n in enumerate(lengths)]
    inside = {i + k for i, n in enumerate(lengths) if n >= least for k in range(n)}
    assert covered(np.array(lengths, dtype=np.int64), least) == len(inside)


def test_the_complete_works_are_searched_exactly(shakespeare):
    cut = int(0.9 * len(shakespeare))
    training, rest = shakespeare[:cut], shakespeare[cut:]
    samples = [rest[at : at + 500] for at in range(0, len(rest) - 500, len(rest) // 10)]
    samples.append("Thus far " + training[2_000_000:2_000_400] + " and no further")
    draw = random.Random(0)
    for sample, found in zip(samples, match_lengths(samples, training), strict=True):
        for i in draw.sample(range(len(sample)), 10):
            n = int(found[i])
            assert sample[i : i + n] in training
            assert i + n == len(sample) or sample[i : i + n + 1] not in training
    assert 400 <= found.max() < 424, "a long copy is found whole"
