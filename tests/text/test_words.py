"""Words by `re` and a table: the same ids as the engine's, whatever the text, and the engine where not."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tformer.text.tokenizer import Tokenizer
from tformer.text.words import word_ids

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
    fast = word_ids(WORDS.engine, WORDS.token_bytes)
    disagree = fast.encode(NEW_LETTERS) is None
    assert disagree == (
        re.fullmatch(r"\w\w", NEW_LETTERS[:2]) is None or not re.search(r"b\w\wc", NEW_LETTERS)
    )
    assert fast.encode("é – é").tolist() == by_engine(WORDS, "é – é")
    fast.engine = None  # it would fail where it was asked again
    assert fast.encode("– é").tolist() == by_engine(WORDS, "– é")


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
