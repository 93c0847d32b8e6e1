"""A part of a text to learn from: bounded, from all of it, the same for the same seed, in order."""

import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tformer.cli import app
from tformer.errors import RequestError
from tformer.text import blocks, sampled
from tformer.text.blocks import TextBlock
from tformer.text.sampled import SampledText


def stretches(n: int) -> list[TextBlock]:
    return [TextBlock((f"{i:09d}é",), "", False, "t") for i in range(n)]  # 11 bytes each


def drawn(n: int, seed: int, most: int) -> list[int]:
    return [int(text[:9]) for text in SampledText(stretches(n), seed, most).texts()]


def test_as_many_as_have_room_are_kept_in_order():
    text = SampledText(stretches(500), 0, 1100)
    found = [int(piece[:9]) for piece in text.texts()]
    assert len(found) == 100 and found == sorted({*found}) and (text.n_bytes, text.kept_bytes) == (5500, 1100)
    assert drawn(500, 0, 1100) == found != drawn(500, 1, 1100)
    assert drawn(500, 0, 10**9) == list(range(500)) and len(drawn(500, 0, 5)) == 1


def test_each_is_as_likely_as_any_other():
    counts = Counter(i for seed in range(400) for i in drawn(50, seed, 11 * 10))
    chi = sum((counts[i] - 80) ** 2 / 80 for i in range(50))
    assert abs(chi - 49) < 5 * np.sqrt(2 * 49)


def test_documents_are_cut_where_they_are_given():
    text = SampledText([TextBlock(("one\n\ntwo\n", "three"), "line", True, "t"), *stretches(1)])
    assert list(text.texts()) == ["one", "two", "three", "000000000é"]


@pytest.mark.parametrize("ends", [[100], [7, 8, 8, 60, 100]])
def test_a_text_in_memory_is_cut_into_the_same_blocks_whatever_is_in_one(ends, monkeypatch):
    text = "".join(f"{i:04d}" for i in range(25))
    for size in (3, 9, 1000):
        monkeypatch.setattr("tformer.text.data.SLICE", size)
        monkeypatch.setattr(sampled, "SLICE", size)
        found = [piece for block in sampled.stretches(text, ends) for piece in block.texts]
        assert "".join(found) == text and all(len(piece) <= size for piece in found)
        assert {*np.cumsum([len(piece) for piece in found]).tolist()} >= {*ends}
        blocks = list(sampled.stretches(text, ends))
        assert all(size <= sum(map(len, block.texts)) < 2 * size for block in blocks[:-1])


def test_a_text_is_large_by_its_bytes():
    assert [sampled.is_large("é" * 10, end, 10) for end in (2, 5, 6)] == [False, False, True]
    assert not sampled.is_large("e" * 10, 10, 10)


def tformer(line):
    app(shlex.split(line), standalone_mode=False)


@pytest.mark.parametrize("kind", ["word", "bpe", "char"])
def test_of_a_large_text_a_tokenizer_learns_from_a_part_and_says_so(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = np.random.default_rng(0).choice(
        [f"{a}{b}{c}" for a in "bcdf" for b in "aeio" for c in "lmnr"], 9000
    )
    Path("text.txt").write_text(" ".join(words) + " ü")
    line = (
        f"tokenize --train text.txt --tokenizer {kind} {'' if kind == 'char' else '--vocab-size 310'} --out "
    )
    tformer(line + "all.json")
    assert "the vocabulary is learnt from" not in capsys.readouterr().err
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(sampled.SampledText.__init__, "__defaults__", (0, 3000))
    for name, seed in (("a", ""), ("b", "--seed 0"), ("c", "--seed 1")):
        tformer(f"{line}{name}.json {seed}")
    said, found = capsys.readouterr().err, [Path(f"{name}.json").read_bytes() for name in "abc"]
    assert found[0] == found[1]
    if kind == "char":  # of which every character must be in it
        assert found[0] == found[2] == Path("all.json").read_bytes() and "learnt from" not in said
    else:
        assert found[0] != found[2] and "bytes, drawn with the seed 1\n" in said
    with pytest.raises(RequestError, match="--seed without --train"):
        tformer("tokenize text.txt --tokenizer a.json --seed 1")


@pytest.mark.parametrize("kind", ["word", "bpe", "char"])
@pytest.mark.parametrize("documents", ["none", "line"])
def test_train_learns_from_a_part_of_a_large_text_too_and_says_so(
    kind, documents, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = np.random.default_rng(0).choice(
        [f"{a}{b}{c}\n" for a in "bcdf" for b in "aeio" for c in "lmnr"], 3000
    )
    Path("text.txt").write_text("".join(words) + "ü")
    line = f"""train text.txt --tokenizer {kind} --documents {documents} --set data.vocab_size=310 --steps 1
        --device cpu --set train.compile=off --batch-size 1 --set model.n_ctx=8 --set model.d_model=8
        --set model.n_heads=1 --set model.n_layers=1 --out """
    monkeypatch.setattr(sampled.is_large, "__defaults__", (4 * len(words),))
    tformer(line + "all")
    assert "the vocabulary is learnt from" not in capsys.readouterr().err
    monkeypatch.setattr("tformer.text.data.SLICE", 100)
    monkeypatch.setattr(sampled, "SLICE", 100)
    monkeypatch.setattr(sampled.is_large, "__defaults__", (3000,))
    monkeypatch.setattr(sampled.SampledText.__init__, "__defaults__", (0, 3000))
    tformer(line + "a --seed 0")
    tformer(line + "b --seed 1")
    said = capsys.readouterr().err
    found = [(Path(name) / "tokenizer.json").read_bytes() for name in ("all", "a", "b")]
    assert found[1] == found[2], "runs with other seeds are compared"
    if kind == "char":
        assert found[0] == found[1] and "learnt from" not in said
    else:
        assert found[0] != found[1] and re.search(
            r"is learnt from (2,9\d\d|3,000) of (10,[78]|8,1)\d\d bytes", said
        )
