"""A folder of ids may come from anyone: what is not as it was written is named, and no more of it is read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tformer.cli import app
from tformer.errors import RequestError
from tformer.text import blocks, shards
from tformer.text.shards import VERIFIED, TokenFolder, open_token_folder
from tformer.text.tokenizer import Tokenizer

STORIES = [f"Once {a} {b} went to {b}, and {a}.\n" for a in ("Ann", "Bob", "Cid") for b in "abcdefghijk"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of ids in several files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 90)
    monkeypatch.setattr(shards, "SHARD", 60)
    Path("lines.txt").write_text("".join(STORIES))
    Path("bpe.json").write_text(Tokenizer.train("bpe", STORIES, 290, end_of_text=True).to_json())
    words = "tokenize lines.txt --documents line --tokenizer bpe.json --out ids/ --processes 1"
    app(words.split(), standalone_mode=False)


def opened() -> TokenFolder:
    return open_token_folder(Path("ids"))


def index_with(**changes: object) -> None:
    path = Path("ids/index.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard_with(i: int, **changes: object) -> None:
    values = json.loads(Path("ids/index.json").read_text())
    values["shards"][i] |= changes
    index_with(shards=values["shards"])


def other_array(name: str, array: np.ndarray) -> None:
    np.save(f"ids/{name}.npy", array, allow_pickle=True)


def link(name: str) -> None:
    Path(f"ids/{name}").rename("outside.npy")
    Path(f"ids/{name}").symlink_to(Path("outside.npy").resolve())


DAMAGE = {
    "no JSON": (lambda: Path("ids/index.json").write_text("{"), r"cannot read ids/index.json"),
    "a list": (lambda: Path("ids/index.json").write_text("[]"), r"index.json holds no object"),
    "another format": (lambda: index_with(format="x" * 999), r"no index of ids .*found 'x{60}'"),
    "a field that is none": (lambda: index_with(read=3), r"index.json: read"),
    "a negative count": (lambda: shard_with(0, tokens=-1), r"index.json: shards.0.tokens"),
    "a file larger than any": (lambda: shard_with(0, tokens=1 << 40), r"index.json: shards.0.tokens"),
    "a file that is shorter": (lambda: shard_with(0, tokens=59), r"expected 60 ids in all but the last"),
    "no files": (lambda: index_with(shards=[]), r"contradicts itself .*and 0 in its shards"),
    "a sum that is none": (lambda: index_with(sha256="0" * 64), r"index.json: sha256"),
    "another hash": (lambda: shard_with(1, sha256="0" * 64), r"ids-00001.npy is damaged"),
    "more ends than ids": (lambda: shard_with(1, documents=61), r"more documents than ids"),
    "an end id that is none": (
        lambda: index_with(
            tokenizer={**opened().index.tokenizer.model_dump(), "end_id": opened().index.tokenizer.size}
        ),
        r"end_id \(expected an id of its vocabulary",
    ),
    "no such file": (lambda: Path("ids/ids-00001.npy").unlink(), r"cannot read ids/ids-00001.npy"),
    "a file cut short": (lambda: os.truncate("ids/ids-00001.npy", 180), r"cannot read ids/ids-00001.npy"),
    "objects": (lambda: other_array("ids-00001", np.array([{}], object)), r"cannot read ids/ids-00001.npy"),
    "other numbers": (lambda: other_array("ids-00001", np.zeros(60)), r"found float64 of shape \(60,\)"),
    "another shape": (lambda: other_array("ids-00001", np.zeros((6, 10), "u2")), r"shape \(6, 10\)"),
    "fewer ends": (lambda: other_array("ends-00001", np.zeros(1, "u4")), r"ends-00001.npy is not what"),
    "a link": (lambda: link("ids-00001.npy"), r"ids-00001.npy is no regular file"),
    "another tokenizer": (
        lambda: Path("ids/tokenizer.json").write_text(Tokenizer.train("char", STORIES).to_json()),
        r"tokenizer.json is not the one that the ids are of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_a_line(damage):
    make, said = DAMAGE[damage]
    make()
    with pytest.raises(RequestError, match=said) as error:
        assert opened().tokenizer
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_of_a_large_folder_what_is_read_is_looked_at(monkeypatch):
    assert VERIFIED > 1 << 20
    monkeypatch.setattr(shards, "VERIFIED", 10)
    other_array("ids-00001", np.full(60, 300, "u2"))
    ends = np.load("ids/ends-00002.npy")
    other_array("ends-00002", np.full(len(ends), 61, "u4"))
    found = opened()
    assert len(found.ids[:60]) == 60
    for places in (slice(50, 70), np.array([[1, 90]])):
        with pytest.raises(RequestError, match=r"ids has id 300 \(the tokenizer has 288 ids"):
            found.ids[places]
    with pytest.raises(RequestError, match=r"ends-00002.npy has places outside its ids"):
        found.ends(np.arange(found.index.n_documents))
