"""What a document is: texts cut into them, recognised, counted, and the same again from any reader."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tformer.errors import RequestError
from tformer.text.corpus import are_lists, load_corpus
from tformer.text.documents import (
    TextReading,
    cut,
    documents_in,
    lengths_in,
    looks_like_a_list,
    separator_bytes,
    sizes_of,
)
from tformer.text.split import are_apart, ids_apart, kept_apart, way_for
from tformer.text.tokenizer import KINDS, Tokenizer

NAMES = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "rst"]  # 120, sorted
STORY = "Once there was a fox.\nIt ran."


def documents_of(corpus):
    stops = corpus.ends.tolist()
    return [corpus.text[a:b] for a, b in zip([0, *stops], stops, strict=False)]


def read(documents, *names):
    return documents_of(load_corpus([str(name) for name in names], reading=TextReading(documents=documents)))


@given(texts=st.lists(st.text(st.sampled_from("ab \u00e9"), min_size=1).filter(str.strip), min_size=1))
def test_what_is_joined_by_a_separator_is_cut_into_the_same_again(texts):
    for how, between in (("line", "\n"), ("paragraph", "\n\n"), ("%%", "\n%%\n")):
        assert [text for text, _ in cut(between.join(texts), how)] == texts
        assert [text for text, _ in cut(between.join(texts) + "\n", how)] == texts


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("a\r\nb\r\n", "line", [("a", 1), ("b", 2)]),
        ("\n\na\n \t\nb\n", "line", [("a", 3), ("b", 5)]),
        ("a\nb\n\n\n  c\nd\n", "paragraph", [("a\nb", 1), ("  c\nd", 5)]),
        ("\n\na\n\nb\n\n", "paragraph", [("a", 3), ("b", 5)]),
        ("a\r\n\r\nb\r\n", "paragraph", [("a", 1), ("b", 3)]),
        ("x%%y\n%%\nb\n %% \n\n%%\n", "%%", [("x%%y", 1), ("b", 3)]),
        ("a\n<|endoftext|>\nb", "<|endoftext|>", [("a", 1), ("b", 3)]),
        ("a\n\nb\n", "file", [("a\n\nb\n", 1)]),
        ("", "file", []),
        ("\n \n", "line", []),
    ],
)
def test_each_document_is_what_stands_there_with_its_line(text, how, expected):
    assert list(cut(text, how)) == expected


def test_a_list_is_known_and_verse_prose_and_columns_are_none():
    names = "\n".join(NAMES)
    assert looks_like_a_list(names) and looks_like_a_list(names + "\n")
    assert looks_like_a_list("\n".join(f"{n} de {n}" for n in NAMES)), "first and last names"
    others = {
        "verse": "\n".join(f"Shall I compare thee to {n}" for n in NAMES),
        "short": "\n".join(NAMES[:50]),
        "blank lines": "\n\n".join(NAMES),
        "the same again": "\n".join(NAMES[:12] * 10),
        "long words, as of a sequence": "\n".join(n * 20 for n in NAMES),
        "empty": "",
    }
    assert [what for what, text in others.items() if looks_like_a_list(text)] == []


def test_what_is_cut_at_line_feeds_alone_is_a_list_by_them_alone():
    for end in ("\r", "\x85", "\u2028", "\x0c"):
        assert not looks_like_a_list(end.join(NAMES))
    assert looks_like_a_list("\r\n".join(NAMES) + "\r\n")


def test_a_list_with_lines_that_separate_is_none(tmp_path):
    for name, between in (("a", "\n"), ("b", "\n<|endoftext|>\n")):
        (tmp_path / name).write_text("\n".join(NAMES) + between + "\n".join(NAMES[:5]))
    assert are_lists([str(tmp_path / "a")], "text") and not are_lists([str(tmp_path / "b")], "text")


def test_of_a_long_list_the_beginning_is_looked_at():
    assert looks_like_a_list("\n".join(f"{i:x}" for i in range(400_000)))


def test_files_say_what_is_a_document(tmp_path):
    lists, stories, tale, rows = (tmp_path / n for n in ("names.txt", "stories.txt", "tale.txt", "a.jsonl"))
    lists.write_text("\n".join(NAMES) + "\n")
    stories.write_text(f"{STORY}\n<|endoftext|>\n{STORY} Not <|endoftext|> here.\n")
    tale.write_text(STORY + "\n\n" + STORY)
    rows.write_text('{"text": "one\\ntwo"}\n{"text": " "}\n{"text": "three"}\n')
    assert read("auto", lists) == NAMES
    assert read("auto", stories) == [STORY, f"{STORY} Not <|endoftext|> here."]
    assert read("auto", tale) == [STORY + "\n\n" + STORY]
    assert read("auto", rows) == ["one\ntwo", "three"]
    assert read("auto", lists, tale) == ["\n".join(NAMES) + "\n", STORY + "\n\n" + STORY], "one is no list"
    assert read("auto", rows, lists) == ["one\ntwo", "three", *NAMES]
    assert read("none", rows) == ["one\ntwo\n \nthree\n"]
    assert read("paragraph", tale) == [STORY, STORY]
    assert read("line", rows, tale) == ["one\ntwo", "three", *STORY.split("\n"), *STORY.split("\n")]


def test_a_separator_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("lines\nof words")
    expected = "no line of the text is 'line s', and nothing else.*none, line, paragraph, file, or the line"
    with pytest.raises(RequestError, match=expected):
        read("line s", tmp_path / "a.txt")


def test_a_character_is_placed_where_it_stands_in_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("\nab\n\nc\u20acd\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n\n{"text": "y\u00a3"}\n')
    corpus = load_corpus([str(tmp_path)], reading=TextReading(documents="line"))
    assert corpus.place("\u20ac") == f"{tmp_path}/a.txt, line 4, column 2"
    assert corpus.place("\u00a3") == f"{tmp_path}/b.jsonl, line 3, column 2"
    assert kept_apart(corpus, "documents", 0.5).place("\u20ac") == corpus.place("\u20ac")


def test_documents_are_drawn_from_all_of_a_sorted_list_and_none_is_lost(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    corpus = load_corpus([str(tmp_path / "names.txt")], reading=TextReading(documents="line"))
    assert way_for(corpus, True) == "documents" and way_for(corpus, False) == "end"
    text = kept_apart(corpus, "documents", 0.2)
    found = documents_of(text)
    assert sorted(found) == NAMES and found != NAMES and text.cut in text.ends
    val = [name for name, end in zip(found, text.ends.tolist(), strict=True) if end > text.cut]
    assert len({name[0] for name in val}) >= 6 and len(val) == 24
    train = found[: -len(val)]
    assert sum(a < b for a, b in pairwise(train)) < 0.6 * len(train), "no order is left"
    assert documents_of(kept_apart(corpus, "documents", 0.2)) == found
    all_of_it = kept_apart(corpus, "documents", 0.0)
    assert sorted(documents_of(all_of_it)) == NAMES and all_of_it.cut == len(all_of_it.text)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_encoded_as_each_alone_however_long(kind):
    draws = random.Random(0)
    texts = ["".join(draws.choices("ab \u00e9\u00df.\n", k=draws.choice([1, 5, 60]))) for _ in range(300)]
    texts.insert(100, "ab " * 60_000)
    from tformer.text.pieces import Document
    from tformer.text.tokenizer import id_dtype

    tokenizer = Tokenizer.train(kind, texts, 300, end_of_text=True, are_documents=True)
    expected = []
    for text in texts:
        expected += [*tokenizer.encode(text), tokenizer.end_id]
    found = tokenizer.encode_documents(Document([text], ends=True) for text in texts)
    assert found.tolist() == expected and found.dtype == id_dtype(tokenizer.vocab_size)
    in_pieces = tokenizer.encode_documents(Document([t[:7], t[7:]], ends=True) for t in texts if t[7:])
    kept = [i for t in texts if t[7:] for i in (*tokenizer.encode(t), tokenizer.end_id)]
    assert in_pieces.tolist() == kept


def test_no_token_of_a_vocabulary_reaches_from_one_document_into_the_next():
    for kind in ("word", "bpe"):
        apart = Tokenizer.train(kind, ["ab"] * 50, 300, are_documents=True)
        joined = Tokenizer.train(kind, ["ab"] * 50, 300)
        assert b"ab" in apart.token_bytes
        assert not any(b"ba" in token for token in apart.token_bytes)
        assert joined.token_bytes != apart.token_bytes


def test_the_end_token_counts_what_it_stands_for():
    tokenizer = Tokenizer.train("char", ["ab"], end_of_text=True)
    end = tokenizer.end_id
    for how, size in (("none", 0), ("file", 0), ("line", 1), ("paragraph", 2), ("---", 5), ("\u20ac", 5)):
        assert separator_bytes(how) == size == sizes_of(tokenizer, how)[end]
        assert sizes_of(tokenizer, how)[:end].tolist() == [1, 1]
    assert tokenizer.n_bytes[end] == 0, "it is a copy"


def test_lengths_are_between_ends():
    assert lengths_in(np.array([9, 1, 2, 9, 3, 9, 4]), 9).tolist() == [2, 1]


def test_ids_are_drawn_by_document_as_texts_are():
    draws = np.random.default_rng(0)
    texts = [draws.integers(1, 9, size=draws.integers(1, 9)).tolist() for _ in range(50)]
    ids = np.array([0, *(i for text in texts for i in (*text, 0)), 0, 7], dtype=np.uint16)
    found, cut = ids_apart(ids, 0, 0.2)
    parts = [[part.tolist() for part in documents_in(some, 0)] for some in (found[:cut], found[cut:])]
    assert sorted(parts[0] + parts[1]) == sorted([*texts, [7]]) and found.dtype == ids.dtype
    assert found[0] == found[cut] == found[-1] == found[cut - 1] == 0
    assert len(found) == sum(map(len, texts)) + 1 + 51 + 2, "a token in front of each part, and after each"
    assert 0.15 < (len(found) - cut) / len(found) < 0.25
    again, everything = ids_apart(ids, 0, 0.0), [*found[:cut], *found[cut + 1 :]]
    assert sorted(again[0].tolist()) == sorted(everything) and again[1] == len(again[0])
    assert are_apart(ids, 0) and not are_apart(ids, None) and not are_apart(ids[:40], 0)
