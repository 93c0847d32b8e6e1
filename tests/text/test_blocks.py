"""Texts in blocks: the documents are those of the text in one piece, wherever it is cut."""

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tformer.errors import RequestError
from tformer.text import blocks
from tformer.text.blocks import BigText, TextBlock, big_files
from tformer.text.documents import cut
from tformer.text.pieces import cut_safely

HOW = ("line", "paragraph", "%%")
TEXT = st.lists(
    st.sampled_from(["ab", "c", " ", "\t", "\n", "\n\n", "\r\n", "%%", "\n%%\n", "é", ".", "%"])
).map("".join)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 8)
    monkeypatch.setattr(blocks, "LONG_DOCUMENT", 16)
    monkeypatch.setattr(blocks, "LOOKED_BACK", 4)


def joined(found: list[TextBlock], how: str) -> list[str]:
    """The documents of blocks: those of stretches are put together."""
    texts, stretch = [], ""
    for block in found:
        if block.how:
            assert not stretch, "the document before this block has ended"
            texts += block.documents()
            continue
        stretch += block.texts[0]
        if block.closes:
            texts.append(stretch)
            stretch = ""
    return [*texts, stretch] if stretch else texts


def of_pieces(text: str, how: str, places: list[int]) -> list[TextBlock]:
    edges = sorted({0, len(text), *(p for p in places if p < len(text))})
    pieces = (text[a:b] for a, b in pairwise(edges))
    return list(BigText([], how=how)._documents(pieces, "t"))


@given(text=TEXT, how=st.sampled_from(HOW), places=st.lists(st.integers(0, 60)))
@example(text="ab\n\n  \nab ab\n" * 3, how="paragraph", places=[4, 5])
@example(text="ab ab ab ab ab\nab ab ab ab ab ab\n%%\nab", how="%%", places=[20, 34, 35])
@example(text="\n\n%%\n" + "ab\n" * 9 + "\n\r\n", how="%%", places=[9, 12])
def test_the_documents_are_those_of_the_text_in_one_piece(text, how, places):
    found = of_pieces(text, how, places)
    assert joined(found, how) == [document for document, _ in cut(text, how)]


def test_a_document_of_any_length_is_cut_into_stretches():
    text = "ab cd\n" * 400
    found = of_pieces(text + "%%\nend", "%%", list(range(0, 3000, 7)))
    assert max(len(t) for block in found for t in block.texts) < 100 and len(found) > 50
    assert joined(found, "%%") == [text.rstrip("\n"), "end"]


@given(text=TEXT, places=st.lists(st.integers(0, 60)))
def test_blocks_know_where_they_stand(text, places):
    for how in (*HOW, "file"):
        edges = sorted({0, len(text), *(p for p in places if p < len(text))})
        pieces = (text[a:b] for a, b in pairwise(edges))
        big = BigText([], how=how)
        found = big._stretches(pieces, "t") if how == "file" else big._documents(pieces, "t")
        at = 0
        for block in found:
            at = text.index(block.texts[0], at)
            line = text.count("\n", 0, at) + 1
            assert block.lines == (line,) and block.column == at - text.rfind("\n", 0, at)
            at += len(block.texts[0])


@given(text=TEXT)
def test_stretches_are_cut_where_the_encoder_cuts_as_well(text):
    found = list(BigText([], how="file")._stretches(iter([text[:20], text[20:]]), "t"))
    assert "".join(block.texts[0] for block in found) == text
    assert [block.closes for block in found] == [False] * (len(found) - 1) + [True] * bool(found)
    for before, after in pairwise(found):  # a chunk of the smallest size ends there as well
        text = before.texts[0]
        assert next(cut_safely([text + after.texts[0]], len(text))) == text


def test_what_a_document_is_goes_by_how_the_files_begin(tmp_path, monkeypatch):
    names = [f"{a}{b}" for a in "bcdfghjklmnp" for b in "aeiouaeiou"[:5] * 2]
    (tmp_path / "list.txt").write_text("\n".join(f"{n}{i}" for i, n in enumerate(names)))
    (tmp_path / "apart.txt").write_text("one\n<|endoftext|>\ntwo\n")
    (tmp_path / "prose.txt").write_text("It was a long and stormy night, and nobody was there.\n" * 3)
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\n')

    def suited(*names: str) -> BigText:
        return BigText(big_files(str(tmp_path / name) for name in names)[0])

    assert [suited(name).how for name in ("list.txt", "apart.txt", "prose.txt")] == [
        "line",
        "<|endoftext|>",
        "file",
    ]
    assert suited("list.txt", "prose.txt").how == "file"
    assert joined(list(suited("apart.txt", "rows.jsonl").blocks()), "") == ["one", "two", "one", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n<|endoftext|>\ntwo\n")))
    stdin = BigText(big_files(["-"])[0])
    assert stdin.how == "<|endoftext|>" and joined(list(stdin.blocks()), "") == ["one", "two"]


def test_a_separator_that_comes_late_or_never_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tformer.text.plain.BLOCK", 20_000)
    monkeypatch.setattr("tformer.text.blocks.BLOCK_CHARACTERS", 20_000)
    monkeypatch.setattr("tformer.text.blocks.LONG_DOCUMENT", 80_000)
    late = tmp_path / "late.txt"
    late.write_text("some words that go on\n" * 6_000 + "<|endoftext|>\nmore\n")
    with pytest.raises(RequestError, match=r"none near its beginning.*--documents file"):
        list(BigText(big_files([str(late)])[0]).blocks())
    with pytest.raises(RequestError, match="no line of the text is '%%'"):
        list(BigText(big_files([str(late)])[0], how="%%").blocks())
    assert list(BigText(big_files([str(late)])[0], how="file").blocks())


def test_every_byte_that_is_read_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("é\n" * 50)
    (tmp_path / "b.jsonl").write_text('{"text": "é"}\n' * 50)
    told: list[int] = []
    files = big_files([str(tmp_path)])[0]
    list(BigText(files, how="line", tell=told.append).blocks())
    assert (
        sum(told)
        == sum(file.size for file in files)
        == sum(p.stat().st_size for p in Path(tmp_path).iterdir())
    )
