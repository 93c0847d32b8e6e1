"""`tformer train FOLDER/`: the steps that the same text in memory would have, over files that are mapped."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tformer.cli import app
from tformer.errors import RequestError
from tformer.run import token_folders
from tformer.run.record import read_record
from tformer.run.token_folders import open_folder_ids
from tformer.text import blocks, data, shards
from tformer.text.data import Windows
from tformer.text.split import ids_apart
from tformer.text.tokenizer import Tokenizer

STORIES = [f"Once {a} {b} went\nto {b}, and {a}." for a in ("Ann", "Bob", "Cid") for b in "abcdefghijk"]
SMALL = """--steps 6 --batch-size 2 --device cpu --lr 0.01 --set model.n_layers=1 --set model.n_heads=1
    --set model.d_model=8 --set model.n_ctx=8 --set train.precision=fp32 --set train.log_every=1
    --set train.eval_every=2 --set train.checkpoint_every=2"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 90)
    monkeypatch.setattr(shards, "SHARD", 60)
    Path("prose.txt").write_text(" ".join(STORIES * 3))
    Path("more.txt").write_text(" ".join(STORIES[::-1]))
    Path("rows.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    tformer("tokenize --train prose.txt --tokenizer bpe --vocab-size 290 --out t.json")
    for name in ("prose.txt", "more.txt", "rows.jsonl"):
        tformer(f"tokenize {name} --tokenizer t.json --out {name.partition('.')[0]}/ --processes 1")


def tformer(line):
    app(shlex.split(line), standalone_mode=False)


def losses(run: str) -> list[tuple[float, float | None]]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line.get("val_loss")) for line in lines if "loss" in line]


def weights(run: str) -> dict[str, np.ndarray]:
    return load_file(Path(run, "model.safetensors"))


def same_weights(one: str, other: str) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("of", "val"),
    [("prose.txt", ""), ("prose.txt", "--val-data more.txt --set data.val_split=end"), ("rows.jsonl", "")],
)
def test_the_steps_are_those_of_the_text_in_memory_to_the_bit(of, val):
    val, name = val or "--set data.val_fraction=0", of.partition(".")[0]
    tformer(f"train {of} {SMALL} {val} --tokenizer t.json --out text")
    tformer(f"train {name}/ {SMALL} {val.replace('more.txt', 'more/')} --out folder")
    assert losses("text") == losses("folder") and len(losses("text")) == 6
    assert same_weights("text", "folder")
    text, folder = (read_record(Path(run)).data for run in ("text", "folder"))
    assert folder.train_tokens == text.train_tokens and folder.val_tokens == text.val_tokens
    assert folder.source == [str(Path(name).resolve())] and folder.characters == text.characters
    assert Tokenizer.load(Path("folder")).token_bytes == Tokenizer.load(Path("t.json")).token_bytes


def test_a_run_that_was_ended_goes_on_to_the_same_bits(capsys):
    tformer(f"train rows/ {SMALL} --out whole")
    tformer(f"train rows/ {SMALL.replace('--steps 6', '--steps 4')} --out parts")
    tformer(f"train rows/ {SMALL} --out parts --resume")
    assert "continuing after step 4" in capsys.readouterr().err
    assert losses("parts")[-1] == losses("whole")[-1] and same_weights("whole", "parts")
    tformer("tokenize more.txt --tokenizer t.json --out rows/ --overwrite --processes 1")
    with pytest.raises(RequestError, match="leave --resume out and give another --out"):
        tformer(f"train rows/ {SMALL} --out parts --resume --steps 8")


def test_the_computed_order_takes_the_place_of_the_stored_one_and_resumes(monkeypatch):
    ids = np.arange(5000, dtype=np.uint16)
    stored = Windows(ids, 8, seed=1).starts(0, 20)
    monkeypatch.setattr(data, "MOST_STORED", 100)
    windows = Windows(ids, 8, seed=1)
    epochs = [windows.starts(0, windows.per_epoch), windows.starts(1, windows.per_epoch)]
    assert not np.array_equal(stored, epochs[0][:20])
    for starts in epochs:
        assert len(np.unique(starts // 8)) == windows.per_epoch
    assert not np.array_equal(*epochs) and (epochs[0] == epochs[1]).sum() < 10
    assert np.array_equal(windows.starts(7, 3), Windows(ids, 8, seed=1).starts(7, 3))
    assert not np.array_equal(windows.starts(7, 3), Windows(ids, 8, seed=2).starts(7, 3))
    arrays = [array for _, order in windows._order.values() for array in vars(order).values()]
    assert all(array.nbytes < 1000 for array in arrays if isinstance(array, np.ndarray))
    monkeypatch.setattr(data, "MOST_STORED", 10)
    goes_on_to_the_same_bits()


def goes_on_to_the_same_bits() -> None:
    tformer(f"train rows/ {SMALL} --out a")
    tformer(f"train rows/ {SMALL.replace('--steps 6', '--steps 3')} --out b")
    tformer(f"train rows/ {SMALL} --out b --resume")
    assert same_weights("a", "b")


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.9])
def test_documents_are_drawn_as_of_the_same_ids_in_memory_and_a_sorted_list_leaves_no_end_of_it(fraction):
    given = open_folder_ids(["rows"])
    train, val = given.parts("documents", fraction)
    ids, cut = ids_apart(given.ids[:], given.tokenizer.end_id, fraction)
    assert np.array_equal(train[:], ids[:cut]) and np.array_equal(val, ids[cut:])
    drawn = [re.findall(r"Once (\w+)", given.tokenizer.decode(part.tolist())) for part in (train[:], val)]
    assert drawn[0] != sorted(drawn[0]) or fraction == 0.9
    if fraction == 0.3:
        assert {*drawn[1]} == {"Ann", "Bob", "Cid"}


@pytest.mark.parametrize("names", [["rows"], ["rows", "more", "prose"]])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("most", [token_folders.MOST_SHUFFLED, 10])
def test_the_parts_are_all_of_the_ids_and_documents_are_whole(names, fraction, most, monkeypatch):
    monkeypatch.setattr(token_folders, "MOST_SHUFFLED", most)
    given = open_folder_ids(names)
    ids, end = given.ids[:], given.tokenizer.end_id
    keeps_order = most < given.n_documents
    for how in ("documents", "end"):
        train, val = given.parts(how, fraction)
        kept = train[:]
        assert len(train) == len(kept) and np.array_equal(train[np.arange(len(train))], kept)
        if how == "end" or (not fraction and keeps_order):
            assert np.array_equal(np.concatenate((kept, val)), ids)
            continue
        left_out = 0 if keeps_order else len(names) - 1  # the token before the first of each folder but one
        counts = np.bincount(ids)
        counts[end] -= left_out
        assert np.array_equal(np.bincount(np.concatenate((kept, val[1:]))), counts)
        if not fraction:
            continue
        assert val[0] == end == val[-1] and 0 < len(val) - 1 <= max(fraction * len(ids), 14)
        texts = [given.tokenizer.decode(part.tolist()) for part in np.split(val, np.flatnonzero(val == end))]
        assert {text.removeprefix("<|endoftext|>") for text in texts} - {""} <= {*STORIES}
    again = open_folder_ids(names).parts("documents", fraction)[1]
    assert np.array_equal(again, given.parts("documents", fraction)[1])


def test_validation_is_judged_again_by_eval_and_bounded(monkeypatch, capsys):
    monkeypatch.setattr(token_folders, "MOST_TO_VALIDATE", 40)
    tformer(f"train rows/ {SMALL} --set data.val_fraction=0.5 --out run")
    record = read_record(Path("run"))
    assert record.data.val_tokens and 20 < record.data.val_tokens <= 41 and record.val_split == "documents"
    said = capsys.readouterr().err
    assert "ids in 7 files, 33 documents that end" in said and "are enough to validate on" in said
    tformer("eval loss --run run --json")
    assert json.loads(capsys.readouterr().out)["tokens"] == record.data.val_tokens - 1
    tformer("eval loss --run run --data rows/ --json")
    assert json.loads(capsys.readouterr().out)["tokens"] == read_record(Path("run")).data.train_tokens + (
        record.data.val_tokens - 2
    )
    tformer("eval loss --run run --data rows/ids-00000.npy --json")
    assert json.loads(capsys.readouterr().out)["tokens"] == 59
    tformer("eval generations --run run -n 2 --max-tokens 9 --json")
    monkeypatch.setattr(token_folders, "MOST_TO_SCORE", 50)
    with pytest.raises(RequestError, match=r"rows has 397 ids \(at most 50 are scored\); give one"):
        tformer("eval loss --run run --data rows/")


def test_bits_per_byte_are_those_of_the_text(capsys):
    tformer(f"train rows/ {SMALL} --out run")
    capsys.readouterr()
    found = []
    for source in ("rows/", "rows.jsonl"):
        tformer(f"eval loss --run run --data {source} --json")
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["bytes"] == found[1]["bytes"] and found[0]["bits_per_byte"] == found[1]["bits_per_byte"]


REFUSED = {
    "rows/ prose.txt": r"token folders and others: rows/ prose.txt \(expected one kind",
    "rows/ --tokenizer char": r"data.tokenizer is char \(rows/ holds ids of bpe\); leave it out",
    "rows/ --tokenizer other.json": r"another tokenizer \(bpe of 2\d\d, and that one is word of 266\)",
    "rows/ --documents line": r"data.documents is line \(rows has: file\)",
    "rows/ --set data.val_split=files": r"data.val_split is files \(rows holds ids\); data.val_split=end",
    "prose/ --set data.val_split=documents": r"val_split is documents \(prose has 0 that end\)",
    "rows/ --set model.n_ctx=5000": "expected at least n_ctx",
    "rows/ words/": r"words and rows are of different tokenizers",
    "rows/ prose/ separated/": r"separated and rows have different documents \('%%' and 'file'\)",
    "ended/": r"ended is not whole yet .*go on with the same tformer tokenize",
    "untold/": r"no tokenizer (at|in) untold",
}


def test_an_index_that_lies_is_refused_in_a_line():
    """Whatever train would make of it: a separator of nothing, an end of documents that is no id."""
    index = json.loads(Path("rows/index.json").read_text())
    for lie, said in {
        '{"documents": ""}': "documents .*at least 1 character",
        '{"field": ""}': "field .*at least 1 character",
        '{"end_id": null}': "expected the id that ends 33 documents, found none",
    }.items():
        values = json.loads(lie)
        tokenizer = index["tokenizer"] | {k: v for k, v in values.items() if k == "end_id"}
        Path("rows/index.json").write_text(json.dumps(index | values | {"tokenizer": tokenizer}))
        with pytest.raises(RequestError, match=said):
            tformer(f"train rows/ {SMALL} --out run")


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(line):
    tformer("tokenize --train prose.txt --tokenizer word --vocab-size 290 --out other.json")
    tformer("tokenize prose.txt --tokenizer other.json --out words/ --processes 1")
    Path("apart.txt").write_text("\n%%\n".join(STORIES))
    tformer("tokenize apart.txt --documents %% --tokenizer t.json --out separated/ --processes 1")
    shutil.copytree("rows", "ended")
    index = json.loads(Path("ended/index.json").read_text())
    Path("ended/index.json").write_text(json.dumps(index | {"complete": False, "sha256": None}))
    shutil.copytree("rows", "untold")
    Path("untold/tokenizer.json").unlink()
    with pytest.raises(RequestError, match=REFUSED[line]):
        tformer(f"train {SMALL} {line} --out run")
    assert not Path("run").exists()
