"""The tokenizers against Python's own re and str, the engine on whole texts, and transformers."""

import json
import re
import time
import unicodedata
from contextlib import suppress
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

from tests.conftest import tiny_config
from tformer.errors import RequestError
from tformer.run.usage import own_usage
from tformer.text.engines import END_OF_TEXT, byte_symbols, cut_long_stretches, word_engine
from tformer.text.pieces import CHUNK, cut_safely
from tformer.text.tokenizer import KINDS, Tokenizer, id_dtype

# The engine's Unicode is newer than Python's, so the two may differ on code points that Python calls
# unassigned (Cn); surrogates (Cs) are no text and have no UTF-8.
ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
# Where the kinds and the cutting could go wrong: contractions, marks, underscores, all sorts of space.
AWKWARD = st.text(st.sampled_from("ab_ \n\t\r'st1²é\u0301🙂—\u00a0\u2028\0ĠĊ"), max_size=80)
NASTY = [
    "O God, I could be bounded in a nutshell,\nand count myself a king of infinite space.\n",
    "🙂👩‍👩‍👧‍👦🇳🇱 \U0010ffff",
    "a\0b\0\0",
    "line\r\nline\rline\n\n\n  end  ",
    "cafe\u0301 café Z\u0335\u0311a\u0300lgo",
    "<|endoftext|><|endoftext|> </s> [UNK] <unk>",
    "don't can't 'tis we'll I'M _x_ __init__ x² 3½ ٣",
    "ĠthisĊ is Ġnot a byte symbol",
    " ",
    "\ufeffmark",
]


def python_words(text: str) -> list[str]:
    return [token for token in re.split(r"\b", text) if token]


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_bytes[i].decode() for i in tokenizer.encode(text)]


# ---------------------------------------------------------------------------- what the tokens are


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(ASSIGNED, min_size=1, max_size=60), AWKWARD.filter(bool)))
@example("don't stop_now, café²: 3½ ٣")
def test_word_tokens_are_those_of_re_split(text):
    assert tokens(Tokenizer(word_engine(python_words(text), 10_000)), text) == python_words(text)


def test_every_assigned_character_is_a_word_character_where_python_says_so():
    characters = (chr(c) for c in range(0x110000))
    text = "".join(f"a{c} " for c in characters if unicodedata.category(c) not in ("Cn", "Cs"))
    pre_tokens = word_engine([], 257).pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pre_tokens] == python_words(text)


def test_word_tokens_of_the_complete_works_are_those_of_re_split(shakespeare):
    tokenizer = Tokenizer(word_engine(python_words(shakespeare), 10**6))
    words = [token.decode(errors="replace") for token in tokenizer.token_bytes]
    assert [words[i] for i in tokenizer.encode(shakespeare)] == python_words(shakespeare)


@pytest.mark.parametrize("vocab_size", [257, 259, 261, 10_000])
def test_a_word_vocabulary_keeps_the_most_frequent_first_seen_first(vocab_size):
    text = (
        "zeal often mid often able mid often\n" * 2 + "once\n"
    )  # the space and the line end are bytes already
    tokenizer = Tokenizer.train("word", [text], vocab_size)
    words = [token.decode() for token in tokenizer.token_bytes[256:]]
    assert words == ["often", "mid", "zeal", "able"][: vocab_size - 256]
    assert tokenizer.vocab_size == 256 + len(words)
    assert tokenizer.token_bytes[:256] == [bytes([b]) for b in range(256)]


def test_a_word_that_comes_once_is_bytes_so_that_a_model_learns_them():
    tokenizer = Tokenizer.train("word", ["to be or not to be; be kind\n"], 10_000)
    assert {token.decode() for token in tokenizer.token_bytes[256:]} == {"to", "be"}
    assert tokenizer.encode("kind") == list(b"kind")


@pytest.mark.parametrize("text", NASTY)
def test_a_char_vocabulary_is_exactly_the_characters(text):
    tokenizer = Tokenizer.train("char", [text])
    assert [token.decode() for token in tokenizer.token_bytes] == sorted(set(text))
    assert tokens(tokenizer, text) == list(text)


@settings(max_examples=50, deadline=None)
@given(st.lists(AWKWARD, max_size=5).filter(any), st.sampled_from(KINDS))
def test_a_vocabulary_does_not_depend_on_how_the_text_came(pieces, kind):
    whole = Tokenizer.train(kind, ["".join(pieces)], 300)
    assert Tokenizer.train(kind, pieces, 300).to_json() == whole.to_json()


def test_bpe_is_trained_the_same_every_time(shakespeare):
    first, second = (Tokenizer.train("bpe", [shakespeare[:300_000]], 2000) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.vocab_size == 2000
    assert set(first.token_bytes[:256]) == {bytes([b]) for b in range(256)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[], [""], ["", ""]])
def test_nothing_is_learned_from_an_empty_text(kind, pieces):
    with pytest.raises(RequestError, match="empty"):
        Tokenizer.train(kind, pieces)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_vocabulary_of_bytes_alone_is_refused(kind):
    with pytest.raises(RequestError, match="256"):
        Tokenizer.train(kind, ["text"], 256)


# ---------------------------------------------------------------------------- there and back


TRAINED = {
    "word": Tokenizer.train("word", ["the quick brown fox, the quick café " * 2], 4096),
    "tiny word": Tokenizer.train("word", ["the the"], 257),
    "bpe": Tokenizer.train("bpe", ["the quick brown fox the quick don't café café\n" * 9], 300),
    "untrained bpe": Tokenizer.train("bpe", ["x"], 257),
}


@pytest.mark.parametrize("name", TRAINED)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(ANY, AWKWARD))
@example(text="")
@example(text="".join(NASTY))
def test_any_text_comes_back_from_word_and_bpe(name, text):
    tokenizer = TRAINED[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.n_bytes[ids].sum() == len(text.encode())
    decoder = tokenizer.decoder()
    shown = "".join(decoder.decode(tokenizer.token_bytes[i]) for i in ids)
    assert shown + decoder.decode(b"", final=True) == text


@settings(max_examples=100, deadline=None)
@given(st.one_of(ANY, AWKWARD).filter(bool))
@example("".join(NASTY))
def test_any_text_comes_back_from_its_own_characters(text):
    tokenizer = Tokenizer.train("char", [text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.n_bytes[ids].sum() == len(text.encode())


def test_the_complete_works_come_back_from_bpe(shakespeare):
    text = shakespeare[:1_000_000]
    tokenizer = TRAINED["bpe"]
    ids = tokenizer.encode_array([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.n_bytes[ids].sum() == len(text.encode())


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_are_decoded_exactly(raw):
    tokenizer = TRAINED["tiny word"]
    assert tokenizer.decode_bytes(raw) == raw  # ids 0 … 255 are the bytes
    assert tokenizer.decode(raw) == raw.decode(errors="replace")


@pytest.mark.parametrize("bad", [-1, 257, 10**9])
def test_an_id_outside_the_vocabulary_is_named(bad):
    with pytest.raises(RequestError, match=f"id {bad} .*0 to 256"):
        TRAINED["tiny word"].decode([0, bad])


def test_the_text_endoftext_is_thirteen_characters():
    assert len(Tokenizer.train("char", ["<|endoftext|>"]).encode("<|endoftext|>")) == 13
    assert tokens(TRAINED["untrained bpe"], "<|endoftext|>") == list("<|endoftext|>")


# ---------------------------------------------------------------------------- unknown characters


@pytest.mark.parametrize("pieces", [["abcaéb"], ["abc", "aéb"], ["", "a", "b", "", "c", "a", "éb"]])
def test_an_unknown_character_is_named_with_its_position_in_the_whole(pieces):
    tokenizer = Tokenizer.train("char", ["abc"])
    with pytest.raises(RequestError, match=r"'é' \(U\+00E9\) at position 4 ") as caught:
        tokenizer.encode_array(pieces)
    assert caught.value.exit_code == 2


def test_unknown_words_are_counted_each_time_they_come():
    tokenizer = Tokenizer.train("word", ["the cat the cat"], 4096)
    assert tokenizer.count_unknown("the dog, the dog é") == 4  # dog twice, ", " and é
    assert tokenizer.count_unknown("the cat") == 0
    assert TRAINED["bpe"].count_unknown("never seen") == 0


# ---------------------------------------------------------------------------- cutting


def cut_in_pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(AWKWARD, ANY), cuts=st.lists(st.integers(0, 80), max_size=6), size=st.integers(1, 9))
def test_chunks_are_the_text_and_have_its_ids(text, cuts, size):
    pieces = cut_in_pieces(text, cuts)
    chunks = list(islice(cut_safely(pieces, size), 200))
    assert "".join(chunks) == text and all(chunks)
    for tokenizer in TRAINED.values():
        by_chunk = [i for chunk in chunks for i in tokenizer.engine.encode(chunk).ids]
        assert by_chunk == tokenizer.engine.encode(text).ids, "a token spans a cut"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_long_text_has_the_ids_of_one_string(shakespeare, kind):
    text = shakespeare[: 5 * CHUNK]
    tokenizer = Tokenizer.train(kind, [text[:CHUNK]], 1000)
    pieces = [text[i : i + 10_007] for i in range(0, len(text), 10_007)]
    assert len(list(tokenizer.encode_stream(pieces))) > 4, "it is not cut at all"
    assert tokenizer.encode_array(pieces).tolist() == tokenizer.engine.encode(text).ids


def test_a_stream_is_held_a_chunk_at_a_time():
    pulled = 0

    def pieces():
        nonlocal pulled
        for _ in range(1000):
            pulled += 1
            yield "a word " * 100

    chunks = cut_safely(pieces())
    sizes = [len(next(chunks))]
    assert pulled * 700 <= CHUNK + 1400, "more is read than the first chunk needs"
    sizes += map(len, chunks)
    assert max(sizes) <= CHUNK + 700 and min(sizes[:-1]) >= CHUNK - 1


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_pieces_as_large_as_a_chunk_are_not_held_longer_than_others(size):
    piece = ("x" * (size // 2) + " ").ljust(size, "x")  # one place to cut, in the middle
    chunks = list(cut_safely(piece for _ in range(12)))
    assert "".join(chunks) == piece * 12 and max(map(len, chunks)) <= 4 * size


@pytest.mark.parametrize("n_pieces", [1, 100])
def test_chunks_are_small_again_after_a_stretch_that_cannot_be_cut(n_pieces):
    text = "x" * (3 * CHUNK) + "a word " * (2 * CHUNK)
    step = -(-len(text) // n_pieces)
    chunks = list(cut_safely(text[i : i + step] for i in range(0, len(text), step)))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 8 * CHUNK, "more is held than twice the stretch and a chunk or two"
    assert max(map(len, chunks[-3:])) <= 2 * CHUNK


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("end_of_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_has_the_same_ids_and_text(kind, end_of_text, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.train(kind, NASTY, 600, end_of_text)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    says = own_usage(tiny_config(), tokenizer).tokenizer
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(says))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.pad_token_id == theirs.bos_token_id == tokenizer.end_id
    assert (tokenizer.end_id is None) == (not end_of_text)
    for text in NASTY:
        ids = tokenizer.encode(text)
        if end_of_text and END_OF_TEXT in text:  # which is the token there, as in GPT-2's, and text here
            assert theirs(text)["input_ids"].count(tokenizer.end_id) == text.count(END_OF_TEXT)
            assert tokenizer.end_id not in ids
        else:
            assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", [*TRAINED, "char"])
def test_a_saved_tokenizer_is_the_same_tokenizer(name, tmp_path):
    tokenizer = TRAINED.get(name) or Tokenizer.train("char", NASTY)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.kind == tokenizer.kind == name.split()[-1]
        assert loaded.token_bytes == tokenizer.token_bytes
        assert all(loaded.encode(text) == tokenizer.encode(text) for text in NASTY)


def changed(kind: str, **model: object) -> str:
    values = json.loads(Tokenizer.train(kind, ["hello hello hello"], 300).to_json())
    values["model"] |= model
    return json.dumps(values)


MALFORMED = {
    "empty": "",
    "truncated": changed("bpe")[:500],
    "not JSON": "hello",
    "binary": "\0\1\2",
    "{}": "{}",
    "[]": "[]",
    "null": "null",
    "nested lists": "[" * 200_000,
    "nested objects": '{"model":' * 200_000,
    "no model": '{"version": "1.0", "added_tokens": [], "model": null}',
    "vocabulary a number": changed("word", vocab=3),
    "merge of unknown tokens": changed("bpe", merges=[["q!", "z?"]]),
    "WordPiece": Engine(models.WordPiece({"a": 0, "[UNK]": 1})).to_str(),
    "Unigram": Engine(models.Unigram([("a", -1.0)], unk_id=0)).to_str(),
    "WordLevel of whole words": Engine(models.WordLevel({"hello": 0}, unk_token="")).to_str(),
    "BPE that is not byte-level": Engine(models.BPE({"a": 0}, [])).to_str(),
    "char ids with a gap": changed("char", vocab={"a": 0, "b": 5}),
    "char ids twice": changed("char", vocab={"a": 0, "b": 0}),
    "word without its bytes": changed("word", vocab={}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_file_that_is_no_tokenizer_of_ours_is_refused(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(MALFORMED[name])
    with pytest.raises(RequestError, match=r"tokenizer"):
        Tokenizer.load(path)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), at=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=3))
def test_damage_to_a_file_is_refused_or_harmless_never_a_panic(kind, at, junk, tmp_path_factory):
    whole = changed(kind).encode()
    place = int(at * len(whole))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(whole[:place] + junk + whole[place + 2 :])
    with suppress(RequestError):
        assert Tokenizer.load(path).kind in KINDS


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(RequestError, match=r"no tokenizer at .*tformer tokenize --train"):
        Tokenizer.load(tmp_path / "tokenizer.json")


# ---------------------------------------------------------------------------- small things


def test_byte_symbols_are_gpt2s():
    assert set(byte_symbols()) == set(pre_tokenizers.ByteLevel.alphabet())
    every = "".join(chr(c) for c in range(0x250)) + "\u0fff\ufeff\U0001f642\U000e0001\U0010fffd"
    ((written, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        every
    )
    assert written == "".join(byte_symbols()[b] for b in every.encode())


@pytest.mark.parametrize("size,dtype", [(1, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_where_they_can(size, dtype):
    assert np.dtype(id_dtype(size)) == dtype
    assert np.iinfo(id_dtype(size)).max >= size - 1


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_ids_have_that_type_even_when_there_are_none(kind):
    tokenizer = Tokenizer.train(kind, ["abc abc"], 300)
    for pieces in ([], [""], ["abc"]):
        assert tokenizer.encode_array(pieces).dtype == np.uint16


def test_a_special_token_of_another_tool_counts_the_bytes_that_it_was_read_from(tmp_path):
    engine = Engine.from_str(TRAINED["bpe"].to_json())
    engine.add_special_tokens(["<|endoftext|>"])
    (tmp_path / "tokenizer.json").write_text(engine.to_str(), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    (special,) = tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([special]) == "<|endoftext|>" and tokenizer.end_id == special
    assert tokenizer.n_bytes[special] == 13 and (tokenizer.n_bytes > 0).all()

    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    split = Tokenizer.load(tmp_path)
    assert len(split.encode("<|endoftext|>")) > 1 and split.n_bytes[special] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_cut_into_the_token_that_ends_a_document(kind, tmp_path):
    text = "".join(NASTY) + "<|endoftext|>" * 50 + "a<|endoftext|>b <|endoftext|>\n"
    tokenizer = Tokenizer.train(kind, [text], 500, end_of_text=True)
    plain = Tokenizer.train(kind, [text], 499)
    assert tokenizer.vocab_size == plain.vocab_size + 1 and tokenizer.end_id == plain.vocab_size
    assert tokenizer.kind == kind
    ids = tokenizer.encode(text)
    assert ids == plain.encode(text) and tokenizer.end_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.end_id]) == text + "<|endoftext|>"
    assert tokenizer.n_bytes[tokenizer.end_id] == 0 and tokenizer.n_bytes[ids].sum() == len(text.encode())
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.end_id == tokenizer.end_id and again.encode(text) == ids
    with pytest.raises(RequestError, match="expected more than its 256 bytes and the end of text"):
        Tokenizer.train("bpe", [text], 257, end_of_text=True)


def test_an_empty_prompt_starts_at_a_line_end_or_at_0():
    assert Tokenizer.train("char", ["a\nb"]).start_id == 0  # the line end sorts first
    assert Tokenizer.train("char", ["\ta\n"]).start_id == 1
    assert Tokenizer.train("char", ["ba"]).start_id == 0
    for tokenizer in TRAINED.values():
        assert tokenizer.token_bytes[tokenizer.start_id] == b"\n"


def test_tokens_are_shown_as_text_or_as_bytes():
    tokenizer = TRAINED["word"]
    (cafe,) = tokenizer.encode("café")
    assert tokenizer.show(cafe) == '"café"' and tokenizer.text_of(cafe) == "café"
    assert tokenizer.show(10) == r'"\n"' and tokenizer.text_of(10) == "\n"
    assert tokenizer.show(0xC3) == "bytes c3" and tokenizer.text_of(0xC3) == "\ufffd"


@pytest.mark.parametrize("stretch", [" " * 200_000, "\u3000" * 80_000, "\r\n" * 80_000])
def test_a_long_stretch_of_white_space_is_learned_from_in_no_time(stretch):
    start = time.process_time()
    tokenizer = Tokenizer.train("bpe", [NASTY[0], stretch, NASTY[0]], 300)
    assert time.process_time() - start < 5, "quadratic: half a minute"
    assert tokenizer.decode(tokenizer.encode(stretch)) == stretch


def test_a_text_is_cut_at_a_thousand_and_loses_nothing():
    text = "a b" + "c" * 2500 + " " * 3001 + "\n" * 1000 + "d e " + "f" * 999 + " " * 1000
    pieces = cut_long_stretches(text)
    assert "".join(pieces) == text
    runs = [len(run) for piece in pieces for run in re.findall(r"\s+|\S+", piece)]
    assert max(runs) == 1000
    short = "a  b" + "c" * 998 + " " * 500 + "\n" * 499 + "d e"
    assert cut_long_stretches(short) == [short], "a text without such a stretch is not cut at all"


def test_long_stretches_are_looked_for_in_one_pass():
    text = ("x" * 999 + " ") * 3000
    start = time.process_time()
    assert cut_long_stretches(text) == [text]
    assert time.process_time() - start < 1.5, "4.5 s where every character of a stretch begins one"
