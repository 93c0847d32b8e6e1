"""`tformer tokenize --documents`: texts that end, to ids and back, and into token files that train takes."""

import io
import json
import shlex
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tformer.cli import app
from tformer.errors import RequestError
from tformer.run.record import read_record
from tformer.text.tokenizer import KINDS, Tokenizer

NAMES = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "rst"]
STORIES = [f"Once a {n}.\n\nIt ran." for n in NAMES[:30]]
HOW = {"names.txt": "line", "apart.txt": "%%", "rows.jsonl": "file"}
SMALL = """--steps 2 --batch-size 2 --device cpu --set model.n_layers=1 --set model.n_heads=1
    --set model.d_model=8 --set model.n_ctx=8 --set train.precision=fp32"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    Path("apart.txt").write_text("\n%%\n".join(STORIES) + "\n")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))


def tformer(line):
    app(shlex.split(line), standalone_mode=False)


def decoded(line, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        tformer(line)
    return out.buffer.getvalue().decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", HOW)
def test_every_document_goes_to_ids_and_back(kind, file, monkeypatch, capsys):
    how = HOW[file]
    size = "" if kind == "char" else "--vocab-size 300"
    tformer(f"tokenize --train {file} --documents {how} --tokenizer {kind} {size} --out t.json")
    tokenizer = Tokenizer.load(Path("t.json"))
    texts = NAMES if file == "names.txt" else STORIES
    wanted = [tokenizer.end_id]
    for text in texts:
        wanted += [*tokenizer.encode(text), tokenizer.end_id]
    capsys.readouterr()
    tformer(f"tokenize {file} --documents {how} --tokenizer t.json")
    assert [int(word) for word in capsys.readouterr().out.split()] == wanted
    tformer(f"tokenize {file} --documents {how} --tokenizer t.json --json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [tokenizer.decode(line["ids"]) for line in lines] == texts
    assert ["".join(line["tokens"]) for line in lines] == texts
    tformer(f"tokenize {file} --documents {how} --tokenizer t.json --out t.npy")
    assert f"{len(texts)} documents" in capsys.readouterr().err
    assert np.load("t.npy").tolist() == wanted
    for source in ("t.npy", "ids.txt"):
        Path("ids.txt").write_text(" ".join(map(str, wanted)))
        back = decoded(f"tokenize --decode {source} --documents {how} --tokenizer t.json", monkeypatch)
        assert back == (Path(file).read_text() if how != "file" else "\n".join(STORIES))
    tformer(f"tokenize {file} --documents {how} --tokenizer t.json --stats --json")
    counts = json.loads(capsys.readouterr().out)
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert counts == {
        "documents": len(texts),
        "tokens": len(wanted),
        "shortest": min(lengths),
        "mean": pytest.approx(np.mean(lengths)),
        "longest": max(lengths),
    }
    tformer(f"tokenize {file} --documents {how} --tokenizer t.json --show")
    assert "endoftext" in capsys.readouterr().out


def test_token_files_are_trained_on_by_document_one_or_several(capsys):
    tformer("tokenize --train names.txt --documents line --tokenizer char --out t.json")
    Path("a.txt").write_text("\n".join(NAMES[:60]))
    Path("b.txt").write_text("\n".join(NAMES[60:]))
    for name in ("names", "a", "b"):
        tformer(f"tokenize {name}.txt --documents line --tokenizer t.json --out {name}.npy")
    tformer(f"train names.npy --tokenizer t.json --documents line {SMALL} --out one")
    tformer(f"train a.npy b.npy --tokenizer t.json --documents line {SMALL} --out two")
    tformer(f"train names.txt --tokenizer t.json {SMALL} --set model.dropout=0.1 --out text")
    one, two, text = (read_record(Path(name)) for name in ("one", "two", "text"))
    assert one.settings["data"]["val_split"] == "documents" and two.data.source[1].endswith("b.npy")
    assert (one.data.train_tokens, one.data.val_tokens) == (two.data.train_tokens, two.data.val_tokens)
    assert text.data.train_tokens == one.data.train_tokens
    assert Path("one/model.safetensors").read_bytes() == Path("text/model.safetensors").read_bytes()
    assert Path("two/model.safetensors").read_bytes() == Path("text/model.safetensors").read_bytes()
    capsys.readouterr()
    tformer("eval loss --run one --json")
    judged = json.loads(capsys.readouterr().out)
    assert judged["loss"] == pytest.approx(one.result.val_loss, rel=1e-5)
    assert judged["bits_per_byte"] == pytest.approx(text.result.bits_per_byte, rel=1e-5)
    tformer("eval loss --run one --data a.npy --data b.npy --json")
    assert json.loads(capsys.readouterr().out)["tokens"] == 4 * 120 + 1
    tformer("eval generations --run one --temperature 1 -n 2 --json")
    assert json.loads(capsys.readouterr().out)["validation"]["mean_length"] == 3
    tformer(f"train a.npy b.npy {SMALL.replace('--steps 2', '--steps 3')} --resume --out two")
    with pytest.raises(RequestError, match="expected one kind of them"):
        tformer(f"train a.npy names.txt --tokenizer t.json {SMALL} --out three")


def test_a_text_of_one_document_ends_too_so_that_several_files_are_several(monkeypatch, capsys):
    tformer("tokenize --train names.txt --documents line --tokenizer bpe --vocab-size 300 --out t.json")
    end = Tokenizer.load(Path("t.json")).end_id
    for name, text in (("a", "Ab\n"), ("b", "Once.\nTwice.\n")):
        Path(f"{name}.txt").write_text(text)
        tformer(f"tokenize {name}.txt --documents file --tokenizer t.json --out {name}.npy")
        ids = np.load(f"{name}.npy").tolist()
        assert ids[0] == ids[-1] == end and ids.count(end) == 2
    assert "1 document," in capsys.readouterr().err
    back = decoded("tokenize a.npy b.npy --decode --documents file --tokenizer t.json", monkeypatch)
    assert back == "Ab\nOnce.\nTwice.\n"
    tformer("tokenize a.txt --documents auto --tokenizer t.json --stats --json")
    assert json.loads(capsys.readouterr().out)["documents"] == 1
    tformer("tokenize a.txt --documents auto --tokenizer t.json --json")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_ids_of_one_text_are_split_at_the_end_though_they_have_the_token(capsys):
    tformer("tokenize --train names.txt --documents line --tokenizer char --out t.json")
    tformer("tokenize names.txt --documents line --tokenizer t.json --out n.npy")
    for out, more in (("none", "--documents none"), ("off", "--set data.end_of_text=false")):
        tformer(f"train n.npy --tokenizer t.json {more} {SMALL} --out {out}")
        settings = read_record(Path(out)).settings["data"]
        assert (settings["documents"], settings["val_split"]) == ("none", "end")


def test_what_is_written_is_compared_with_documents_however_ids_are_split(capsys):
    tformer("tokenize --train names.txt --documents line --tokenizer char --out t.json")
    Path("few.txt").write_text("\n".join(NAMES[:15]) + "\n")
    for name in ("names", "few"):
        tformer(f"tokenize {name}.txt --documents line --tokenizer t.json --out {name}.npy")
    line = f"--tokenizer t.json --documents line {SMALL}"
    tformer(f"train few.npy {line} --set data.val_fraction=0.3 --out few")
    tformer(f"train names.npy {line} --set data.val_split=end --out end")
    tformer(f"train names.txt --val-data few.npy {line} --out val")
    capsys.readouterr()
    for run in ("few", "end", "val"):
        tformer(f"eval generations --run {run} --temperature 1 -n 2 --max-tokens 3 --json")
        found = json.loads(capsys.readouterr().out)
        assert found["temperatures"][0]["ended"] is not None
        assert all(sample["text"] in str(NAMES) for sample in found["validation_samples"])


def test_documents_that_cannot_end_or_are_not_there_are_refused():
    tformer("tokenize --train names.txt --tokenizer char --no-end-of-text --out t.json")
    with pytest.raises(RequestError, match="the tokenizer has no token that ends a document"):
        tformer("tokenize names.txt --documents line --tokenizer t.json")
    tformer("tokenize names.txt --documents none --tokenizer t.json --stats")
    tformer("tokenize --train names.txt --tokenizer char --out u.json")
    for blank in ("''", "' '", "'a\nb'"):
        for more in (
            "--tokenizer u.json",
            "--tokenizer u.json --decode",
            "--train --tokenizer char --out v.json",
        ):
            with pytest.raises(RequestError, match=r"data\.documents is .*expected none, line"):
                tformer(f"tokenize names.txt --documents {blank} {more}")
    with pytest.raises(RequestError, match="no line of the text is 'lines', and nothing else"):
        tformer("tokenize names.txt --documents lines --tokenizer u.json")
    Path("new.txt").write_text("abe\nzoe\n")
    with pytest.raises(RequestError, match=r"'z'.* at new\.txt, line 2, column 1"):
        tformer("tokenize new.txt --documents line --tokenizer u.json")
    Path("plain.npy").write_bytes(b"")
    tformer("tokenize names.txt --tokenizer u.json --out p.npy")
    with pytest.raises(RequestError, match=r"p\.npy has no token that ends one"):
        tformer(f"train p.npy --tokenizer u.json --set data.val_split=documents {SMALL} --out run")


@pytest.mark.parametrize("how", ["line", "paragraph", "%%", "file"])
def test_documents_are_cut_in_a_stream_and_are_what_they_are_in_memory(how, monkeypatch, capsys):
    between = {"line": "\n", "paragraph": "\n\n", "file": "\n"}.get(how, f"\n{how}\n")
    rows = ["ab cd\nef" * 30, "gh", *["ij kl"] * 3000, "mn op " * 3000, "qr"]
    texts = [row.replace("\n", " ") if how == "line" else row for row in rows]
    Path("t.txt").write_text(between.join(texts) + "\n")
    tformer("tokenize --train t.txt --tokenizer bpe --vocab-size 290 --out t.json")
    tokenizer = Tokenizer.load(Path("t.json"))
    if how == "file":
        texts = [Path("t.txt").read_text()]
    wanted = [tokenizer.end_id]
    for text in texts:
        wanted += [*tokenizer.encode(text.rstrip("\n") if how != "file" else text), tokenizer.end_id]
    monkeypatch.setattr("tformer.text.blocks.BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr("tformer.text.blocks.LONG_DOCUMENT", 4000)
    monkeypatch.setattr("tformer.text.plain.BLOCK", 700)
    capsys.readouterr()
    tformer(f"tokenize t.txt --documents={how} --tokenizer t.json")
    assert [int(word) for word in capsys.readouterr().out.split()] == wanted
    tformer(f"tokenize t.txt --documents={how} --tokenizer t.json --json")
    found = [json.loads(line)["ids"] for line in capsys.readouterr().out.splitlines()]
    assert [tokenizer.end_id, *(i for ids in found for i in (*ids, tokenizer.end_id))] == wanted
    lengths = [len(ids) for ids in found]
    tformer(f"tokenize t.txt --documents={how} --tokenizer t.json --stats --json")
    counts = json.loads(capsys.readouterr().out)
    assert (counts["documents"], counts["tokens"]) == (len(texts), len(wanted))
    assert (counts["shortest"], counts["longest"]) == (min(lengths), max(lengths))
    assert counts["mean"] == pytest.approx(np.mean(lengths))


def test_memory_does_not_grow_with_a_list_that_is_cut(monkeypatch):
    from tformer.commands.tokenize_documents import CutText

    monkeypatch.setattr("tformer.text.blocks.BLOCK_CHARACTERS", 10_000)
    monkeypatch.setattr("tformer.text.plain.BLOCK", 5_000)
    tokenizer = Tokenizer.train("char", ["abcd efg"], end_of_text=True)
    peaks = []
    for n in (10, 10_000, 40_000):  # the first imports, and finds memory
        Path("t.txt").write_text("abcd efg\n" * n)
        text = CutText(["t.txt"], "text", "line", tokenizer)
        tracemalloc.start()
        for _ in text.chunks():
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert text.n_documents == n
    assert peaks[2] < 1.2 * peaks[1], peaks


def test_what_is_empty_or_lacks_a_character_is_said_with_its_place():
    tformer("tokenize --train names.txt --documents line --tokenizer char --out t.json")
    Path("blank.txt").write_text("\n \n")
    with pytest.raises(RequestError, match=r"blank\.txt is empty"):
        tformer("tokenize blank.txt --documents line --tokenizer t.json")
    Path("other.txt").write_text("ar\n\nbé\n")
    with pytest.raises(RequestError, match=r"at other\.txt, line 3, column 2"):
        tformer("tokenize other.txt --documents line --tokenizer t.json")
