"""Ids that are kept beside a run: as new ones to the bit, and as good as not there where they do not fit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.faults.every_change import SOME, fresh_run
from tests.faults.tiny import EVAL, TEXT, TRAIN, place, state
from tformer.cli import app
from tformer.errors import RequestError
from tformer.run import kept_ids
from tformer.text.corpus import load_corpus
from tformer.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A place where short texts are kept as well, and nobody looks at pictures."""
    monkeypatch.chdir(place(tmp_path / "here"))
    monkeypatch.setattr(kept_ids, "LONG", 1)
    for name in ("show.training.loss_svg", "show.run_page.run_html"):
        monkeypatch.setattr(f"tformer.{name}", lambda *args, **options: "<svg/>")
    return tmp_path / "here"


def train(*arguments: str) -> None:
    app([*TRAIN, "--set", "train.checkpoint_every=0", *arguments], standalone_mode=False)


def kept() -> list[Path]:
    return sorted(Path("run/checkpoints").glob("ids-*"))


def judged(capsys) -> dict[str, object]:
    """What `eval` printed, but for its speed."""
    return json.loads(capsys.readouterr().out) | {"tokens_per_second": None}


def without_encoding(monkeypatch) -> None:
    """What encodes a text fails from now on."""
    for name in ("encode_array", "encode_documents"):
        monkeypatch.setattr(Tokenizer, name, lambda *args: pytest.fail("the text is encoded again"))


def test_a_run_that_goes_on_and_its_evaluation_encode_nothing_again(monkeypatch, capsys):
    train("--steps", "2")
    assert len(kept()) == 2
    with monkeypatch.context() as patch:
        without_encoding(patch)
        train("--steps", "3", "--resume")
        app(EVAL, standalone_mode=False)
    before = judged(capsys)
    for path in kept():
        path.unlink()
    app(EVAL, standalone_mode=False)
    assert judged(capsys) == before


@pytest.mark.parametrize("extra", [(), ("--tokenizer", "bpe"), ("--val-data", "val.txt")], ids=str)
def test_they_are_what_encoding_gives(extra, here):
    (here / "val.txt").write_text(TEXT[:300])
    train("--steps", "1", "--set", "data.end_of_text=false", *extra)
    tokenizer, cut = Tokenizer.load(Path("run")), int(0.9 * len(TEXT))
    parts = {TEXT[:cut], TEXT[cut:]} if "val.txt" not in extra else {TEXT, TEXT[:300]}
    expected = [tokenizer.encode_array([part]) for part in parts]
    found = [safetensors.numpy.load_file(path)["ids"] for path in kept()]
    assert sorted(map(len, found)) == sorted(map(len, expected))
    for ids in found:
        assert any(ids.dtype == e.dtype and np.array_equal(ids, e) for e in expected)


def rewritten(path: Path, *changes: tuple[bytes, bytes]) -> bytes:
    text = path.read_bytes()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


HARM = {
    "a bit": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "an id that is none": lambda raw: raw[:-1] + b"\xff",
    "cut short": lambda raw: raw[:-2],
    "longer": lambda raw: raw + b"\0\0",
    "empty": lambda raw: b"",
    "a header without end": lambda raw: b"\xff" * 8 + raw[8:],
    "no JSON": lambda raw: raw[:8] + b"[" * (len(raw) - 8),
    "another shape": lambda raw: re.sub(rb'"shape": \[(\d+)\]', rb'"shape": "\1" ', raw),
    "another key": lambda raw: re.sub(rb'"key": "....', b'"key": "0000', raw),
    "another dtype": lambda raw: raw.replace(b"U16", b"U32"),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_does_not_fit_is_passed_over_and_made_again(harm):
    text = load_corpus(["text.txt"])
    tokenizer = Tokenizer.train("char", [TEXT])
    part = (tokenizer, text, 0, 500, False)
    here, key = kept_ids.KeptIds(Path()), kept_ids.key_of(*part)
    ids = kept_ids.text_ids(*part, here)
    here.write(Path(), 0)
    (path,) = Path().glob("ids-*")
    whole = path.read_bytes()
    assert kept_ids._read(path, key, tokenizer.vocab_size).tobytes() == ids.tobytes()
    path.write_bytes(HARM[harm](whole))
    again = kept_ids.KeptIds(Path())
    assert np.array_equal(kept_ids.text_ids(*part, again), ids)
    again.write(Path(), 0)
    assert path.read_bytes() == whole


def test_ids_past_a_vocabulary_are_passed_over_whatever_their_hash_says():
    with Path("ids-k.safetensors").open("wb") as file:
        kept_ids._write(file, "k", np.array([3, 99], dtype=np.uint16))
    assert kept_ids._read(Path("ids-k.safetensors"), "k", 100) is not None
    assert kept_ids._read(Path("ids-k.safetensors"), "k", 99) is None


def test_another_text_tokenizer_or_part_has_another_key():
    (Path("two.txt")).write_text(TEXT[:9])
    one, two = load_corpus(["text.txt"]), load_corpus(["two.txt", "text.txt"])
    a, b = (Tokenizer.train("char", [TEXT + more]) for more in ("", "#"))
    parts = [(a, one, 0, 9, True), (b, one, 0, 9, True), (a, two, 0, 9, True)]
    parts += [(a, one, 0, 10, True), (a, one, 1, 9, True), (a, one, 0, 9, False)]
    assert len({kept_ids.key_of(*part) for part in parts}) == len(parts)


def test_a_run_does_without_where_they_find_no_room(monkeypatch):
    train("--steps", "2", "--out", "whole")

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(kept_ids, "write_file", full)
        train("--steps", "2")
    assert not kept() and state(Path("run"))[1:] == state(Path("whole"))[1:]
    full_soon = kept_ids.KeptIds(Path(), {"key": np.zeros(9, dtype=np.uint16)})
    full_soon.write(Path(), 1 << 62)
    assert not [*Path().glob("ids-*")], "nothing is taken that a checkpoint needs"


def test_a_text_that_has_changed_is_refused_as_before():
    train("--steps", "2")
    Path("text.txt").write_text(TEXT[:-1])
    with pytest.raises(RequestError, match="the data of this run has changed"):
        train("--steps", "3", "--resume")


def test_a_run_that_is_overwritten_leaves_no_ids_of_another_text():
    train("--steps", "1")
    before = kept()
    Path("text.txt").write_text(TEXT + "!")
    train("--steps", "1", "--overwrite")
    assert len(kept()) == 2 and not {*kept()} & {*before}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_as_it_keeps_them_goes_on_to_the_bit(tmp_path):
    app([*TRAIN, "--resume"], standalone_mode=False)
    kills, failures = fresh_run(tmp_path, state(Path("run")), sorted({*SOME, *range(61, 100, 3)}))
    assert kills == len(SOME) + 12 and failures == []
