"""What is kept for validation: drawn from all of a text, nothing lost, the same for every run."""

from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tformer.errors import RequestError
from tformer.text.corpus import Corpus
from tformer.text.data import documents, split_at
from tformer.text.split import chosen_among, cut_of, kept_apart

PIECES = st.lists(st.sampled_from(["a\n", "bb\n", "\n", "ccc ccc\n", "é\r\n"]), min_size=1, max_size=12)
FRACTIONS = st.floats(0.01, 0.99)


def corpus(*files: str) -> Corpus:
    """A text of these files."""
    labels = tuple(f"{i}.txt" for i in range(len(files)))
    ends = tuple(accumulate(map(len, files)))
    return Corpus("x", "".join(files), "", "DATA", np.array(ends), labels, file_ends=ends)


def files_of(text: Corpus) -> list[str]:
    return [text.text[a:b] for a, b in pairwise([0, *text.ends])]


@given(files=st.lists(PIECES.map("".join), min_size=1, max_size=4), fraction=FRACTIONS)
def test_lines_go_to_one_part_or_the_other_in_their_order(files, fraction):
    whole = corpus(*files)
    lines = whole.text.splitlines(keepends=True)  # every file ends with a line end
    if len(lines) < 2:
        return
    text = kept_apart(whole, "lines", fraction)
    train, val = text.text[: text.cut], text.text[text.cut :]
    assert train and val
    kept = [part.splitlines(keepends=True) for part in (train, val)]
    assert sorted(kept[0] + kept[1]) == sorted(lines)
    for part in kept:
        rest = iter(lines)
        assert all(line in rest for line in part), "in the order of the text"
    assert len(val) <= fraction * len(whole.text) or len(kept[1]) == 1
    again = kept_apart(whole, "lines", fraction)
    assert (text.text, text.cut, text.ends.tolist()) == (again.text, again.cut, again.ends.tolist())
    if len(files) == 1:
        assert text.ends is whole.ends, "a text that is one document has no end in it"
    else:
        assert text.cut in text.ends and text.ends[-1] == len(text.text)
        assert len(text.ends) <= 2 * len(files) and text.n_documents == len(files)


@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=9), fraction=FRACTIONS)
def test_files_stay_whole(sizes, fraction):
    files = [chr(97 + i) * size for i, size in enumerate(sizes)]
    text = kept_apart(corpus(*files), "files", fraction)
    assert sorted(files_of(text)) == files and text.cut in text.ends
    parts = [
        [
            b"".join(piece.encode() for piece in document.pieces)
            for document in documents(text.text, text.ends, start, stop)
        ]
        for start, stop in ((0, text.cut), (text.cut, len(text.text)))
    ]
    assert all(parts) and sorted(map(bytes.decode, parts[0] + parts[1])) == files


def test_a_sorted_list_leaves_its_last_letter_to_both_parts():
    names = [f"{letter}{i}\n" for letter in "abcdefghij" for i in range(100)]
    text = kept_apart(corpus("".join(names)), "lines", 0.1)
    val = text.text[text.cut :].split()
    assert 90 <= len(val) <= 110 and {name[0] for name in val} == set("abcdefghij")


def test_as_much_is_drawn_as_fits():
    sizes = np.random.default_rng(0).integers(1, 100, size=1000)
    chosen = chosen_among(sizes, 0.1, np.random.default_rng(1).permutation(1000))
    assert 0.099 < sizes[chosen].sum() / sizes.sum() <= 0.1
    found = chosen_among(np.array([50, 7, 60]), 0.01, np.arange(3))
    assert found.tolist() == [False, True, False], "the smallest where none fits"


def test_the_end_of_a_text_is_cut_as_ever():
    whole = corpus("abcdefghij", "klm")
    for text, fraction in ((kept_apart(whole, "end", 0.3), 0.3), (kept_apart(whole, "lines", 0.0), 0.0)):
        assert text is whole and cut_of(text, fraction) == split_at(13, fraction)


def test_a_character_is_placed_where_it_stands_in_the_file():
    whole = corpus("a\nb\n", "c\nd€\n")
    text = kept_apart(whole, "lines", 0.5)
    assert text.place("€") == whole.place("€") == "1.txt, line 2, column 2"
    assert "validation: 2 of 4 lines, 4 of 9 characters" in text.notes[-1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("files", "DATA is one file.; data.val_split=lines, or end"),
        ("lines", "DATA is one line.; data.val_split=end"),
        ("documents", "DATA is one document.; data.val_split=lines, or end"),
    ],
)
def test_what_cannot_be_divided_is_refused(how, said):
    with pytest.raises(RequestError, match=said):
        kept_apart(replace(corpus("one line"), source="DATA"), how, 0.1)
