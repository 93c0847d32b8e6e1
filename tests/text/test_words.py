"""Words by `re` and a table: the same ids as the engine's, whatever the text, and the engine where not."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.command import run
from tformer.text.engines import word_engine
from tformer.text.tokenizer import Tokenizer
from tformer.text.words import Boundaries, boundaries, word_ids

TEXT = "O God, that one might read the book of fate! — café, don't stop; 12 o'clock_is here\n\n" * 2
WORDS = Tokenizer.train("word", [TEXT], 300)
FEW = Tokenizer.train("word", [TEXT], 258, end_of_text=True)  # nearly every word falls to bytes
NEW_LETTERS = "a\U0001e4d0 b\ua7cb\U000105c0c"  # of Unicode 15 and 16: older Pythons do not know them

PIECES = st.sampled_from(
    ["God", "O", " ", "  ", "\n", ", ", "é", "_", "<|endoftext|>", "\x00", "٣", "ǅ", "\u0301"]
)
ANY = st.lists(PIECES | st.text(max_size=6), max_size=30).map("".join)


def by_engine(tokenizer, text):
    return tokenizer.engine.encode(text, add_special_tokens=False).ids


@settings(max_examples=400, deadline=None)
@given(ANY, st.sampled_from([WORDS, FEW]))
def test_ids_are_those_of_the_engine(text, tokenizer):
    assert tokenizer.encode(text) == by_engine(tokenizer, text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [NEW_LETTERS, NEW_LETTERS + TEXT, "", " ", "x", TEXT])
def test_a_text_in_which_unicode_differs_goes_to_the_engine(text):
    assert WORDS.encode(text) == by_engine(WORDS, text)


def test_every_character_is_asked_once_and_none_is_taken_for_alike_that_is_not():
    asked = Boundaries(word_engine([], 256))
    assert asked.alike(NEW_LETTERS) == all(re.fullmatch(r"\w", c) for c in NEW_LETTERS if not c.isascii())
    assert asked.alike("é – é")
    asked.engine = None  # it would fail where it was asked again
    assert asked.alike("– é") and asked.words("é – é!") == ["é", " – ", "é", "!"]


# ---------------------------------------------------------------------------- letters newer than Python


def new_letters():
    """What the engine has for letters and Python not: some thousands on Python 3.11, none on a newer one."""
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    text = ".".join(re.findall(r"\W", every))
    spans = boundaries().engine.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:stop] for _, (start, stop) in spans if "." not in text[start:stop]]


def test_a_vocabulary_is_learned_of_the_words_that_its_encoder_will_see():
    words = [f"a{letter}b" for letter in [*new_letters(), *NEW_LETTERS[1::4], "é"]]
    text = " ".join(words * 2)
    tokenizer = Tokenizer.train("word", [text], len(words) + 300)
    ids = tokenizer.encode(text)
    assert [tokenizer.text_of(i) for i in ids[::2]] == words * 2, "a word fell to bytes that was learned"
    assert tokenizer.count_unknown(text) == 0


def test_the_command_counts_as_unknown_what_falls_to_bytes(tmp_path):
    (tmp_path / "learned.txt").write_text("a\ua7cbb " * 9, encoding="utf-8")
    (tmp_path / "other.txt").write_text("a\ua7cbb a\ua7cb.", encoding="utf-8")
    train = ("tokenize", "--train", "learned.txt", "--tokenizer", "word", "--vocab-size", "300")
    run(*train, "--out", "word.json", cwd=tmp_path, check=0)
    stats = run(
        *("tokenize", "other.txt", "--tokenizer", "word.json", "--stats", "--json"), cwd=tmp_path, check=0
    )
    found = json.loads(stats.stdout)
    assert (found["unknown"], found["tokens"]) == (1, 1 + 1 + 4 + 1), "a word, a blank, four bytes, a dot"


def test_it_stands_in_for_no_other_engine():
    assert word_ids(WORDS.engine, WORDS.token_bytes) is not None
    for kind in ("bpe", "char"):
        other = Tokenizer.train(kind, [TEXT], 300)
        assert word_ids(other.engine, other.token_bytes) is None
    special = Tokenizer.train("word", [TEXT], 300)
    special.engine.add_special_tokens([AddedToken("God", special=True)])
    assert word_ids(special.engine, special.token_bytes) is None
    assert special.encode("O God") == by_engine(special, "O God")


def test_the_complete_works_have_the_ids_of_the_engine(shakespeare):
    tokenizer = Tokenizer.train("word", [shakespeare], 2000)
    text = shakespeare[:400_000]
    assert tokenizer.encode_array([text]).tolist() == by_engine(tokenizer, text)
