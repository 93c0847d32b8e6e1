"""`tformer tokenize --out FOLDER/`: the ids of the text in memory, however it is ended and begun again."""

import hashlib
import io
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tformer.cli import app
from tformer.errors import RequestError, TformerError
from tformer.run.kept_ids import text_ids
from tformer.show import progress
from tformer.text import blocks, shards
from tformer.text.corpus import load_corpus
from tformer.text.documents import TextReading
from tformer.text.shard_writer import DIFFERENT
from tformer.text.shards import TokenFolder, is_token_folder, open_token_folder
from tformer.text.tokenizer import KINDS, Tokenizer

STORIES = [f"Once {a} {b} went\nto {b}, and {a}." for a in ("Ann", "Bob", "Cid") for b in "abcdefghijk"]
SEPARATED = {"apart.txt": "%%", "paragraphs.txt": "paragraph", "lines.txt": "line", "prose.txt": "file"}
SMALL = """import tformer.text.blocks as b, tformer.text.shards as s
b.BLOCK_CHARACTERS, b.LONG_DOCUMENT, s.SHARD = 500, 2000, 1500
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 90)
    monkeypatch.setattr(blocks, "LONG_DOCUMENT", 400)
    monkeypatch.setattr(shards, "SHARD", 60)
    Path("apart.txt").write_text("\n%%\n".join([*STORIES, "end " * 600]) + "\n")
    Path("paragraphs.txt").write_text("\n\n \n".join(STORIES))
    Path("lines.txt").write_text("\r\n\n".join(story.replace("\n", " ") for story in STORIES))
    Path("prose.txt").write_text(" ".join(STORIES))
    Path("rows.jsonl").write_text("".join(json.dumps({"text": t, "verse": t[:9]}) + "\n" for t in STORIES))
    for kind in KINDS:
        size = "" if kind == "char" else "--vocab-size 300"
        tformer(f"tokenize --train prose.txt apart.txt --tokenizer {kind} {size} --out {kind}.json")


def tformer(line):
    app(shlex.split(line), standalone_mode=False)


def opened(name: str = "ids") -> TokenFolder:
    return open_token_folder(Path(name))


def in_memory(names: list[str], kind: str, how: str, field: str = "text") -> np.ndarray:
    corpus = load_corpus(names, reading=TextReading(field, how))
    return text_ids(Tokenizer.load(Path(f"{kind}.json")), corpus, 0, len(corpus.text), True)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*SEPARATED, "rows.jsonl", "apart.txt rows.jsonl"])
def test_the_ids_and_the_ends_are_those_of_the_text_in_memory(name, kind):
    how = SEPARATED.get(name.split()[0], "file")
    tformer(f"tokenize {name} --documents {how} --tokenizer {kind}.json --out ids/ --processes 1")
    wanted, found = in_memory(name.split(), kind, how), opened()
    assert np.array_equal(found.ids[:], wanted) and found.ids.dtype == wanted.dtype
    assert found.index.sha256 == hashlib.sha256(wanted.tobytes()).hexdigest()
    assert len(found.ids.files) == -(-len(wanted) // 60) > 5
    ends = np.flatnonzero(wanted == found.tokenizer.end_id)[1:] + 1
    assert np.array_equal(found.ends(np.arange(found.index.n_documents)), ends)
    assert found.index.read.documents == len(ends) and found.tokenizer.token_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [*SEPARATED.values(), "none"])
def test_a_folder_is_decoded_to_the_bytes_that_it_was_made_of(how, kind, capfdbinary):
    between = {"line": "\n", "paragraph": "\n\n", "%%": "\n%%\n"}.get(how, " ")
    texts = [story.replace("\n", " ") for story in STORIES] if how == "line" else STORIES
    Path("text.txt").write_text(between.join(texts) + "\n")
    for name in ("one", "two"):
        tformer(f"tokenize text.txt --documents {how} --tokenizer {kind}.json --out {name}/ --processes 1")
    assert len(opened("one").ids.files) > 5
    capfdbinary.readouterr()
    for names, times in {"one/": 1, "one/ two": 2}.items():
        tformer(f"tokenize {names} --decode")
        apart = between if times > 1 and how not in ("file", "none") else "\n"
        wanted = apart.join([between.join(texts)] * times) + "\n"
        assert capfdbinary.readouterr().out == wanted.encode()
    tformer("tokenize one/ --decode --documents=--")
    told = capfdbinary.readouterr().out.decode()
    assert (
        told.count("\n--\n") == opened("one").index.n_documents - 1 if how not in ("file", "none") else told
    )


def test_rows_are_decoded_to_lines_of_their_own(capfdbinary):
    tformer("tokenize rows.jsonl --field verse --tokenizer bpe.json --out ids/ --processes 1")
    capfdbinary.readouterr()
    tformer("tokenize ids/ --decode --tokenizer bpe.json")
    assert capfdbinary.readouterr().out.decode().splitlines() == [story[:9] for story in STORIES]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "ids/ --decode --tokenizer word.json",
            "ids of another tokenizer .*leave --tokenizer out: the folder",
        ),
        ("ids/ prose.txt --decode", "token folders and others"),
        ("ids/ other/ --decode", "have different documents"),
        (
            "ids/ --stats --tokenizer bpe.json",
            "ids/ is a folder of ids .*; .*tokenize --decode writes its text",
        ),
        ("--train ids --tokenizer bpe --out n.json", "ids is a folder of ids"),
        ("begun/ --decode", "begun is not whole yet"),
    ],
)
def test_a_folder_that_cannot_be_decoded_is_refused_with_advice(line, said):
    tformer("tokenize lines.txt --documents line --tokenizer bpe.json --out ids/ --processes 1")
    tformer("tokenize prose.txt --documents file --tokenizer bpe.json --out other/ --processes 1")
    Path("begun").mkdir()
    for name, content in contents("ids").items():
        Path("begun", name).write_bytes(content.replace(b'"complete": true', b'"complete": false'))
    with pytest.raises(RequestError, match=said):
        tformer(f"tokenize {line}")


@pytest.mark.parametrize("kind", KINDS)
def test_without_documents_they_are_those_of_the_text_as_a_stream(kind):
    tformer(f"tokenize prose.txt --documents none --tokenizer {kind}.json --out ids/ --processes 1")
    tformer(f"tokenize prose.txt --tokenizer {kind}.json --out ids.npy")
    assert np.array_equal(opened().ids[:], np.load("ids.npy"))
    assert opened().index.read.blocks > 9, "it is never in memory as a whole"
    assert opened().index.n_documents == 0


def test_a_folder_says_what_is_in_it_and_a_second_time_changes_nothing(capsys):
    Path("ids").mkdir()  # a folder that is there needs no slash
    line = "tokenize rows.jsonl --field verse --tokenizer word.json --out ids --json"
    tformer(line)
    out, err = capsys.readouterr()
    text = "".join(story[:9] for story in STORIES)
    ids = in_memory(["rows.jsonl"], "word", "file", "verse")
    assert json.loads(out) == {
        "out": "ids",
        "tokens": len(ids),
        "documents": len(STORIES),
        "bytes": len(text),
        "characters": len(text),
        "shards": -(-len(ids) // 60),
    }
    assert "documents: files or rows" in err
    before = contents("ids")
    tformer(line.removesuffix("--json"))
    assert "was whole already: 33 documents" in capsys.readouterr().err and contents("ids") == before
    tformer("tokenize prose.txt --tokenizer char.json --out ids --overwrite")
    assert opened().tokenizer.kind == "char" and is_token_folder("ids") and not is_token_folder(".")


class Killed(BaseException):
    """What nothing catches."""


def test_whenever_it_is_ended_it_goes_on_to_the_same_files(monkeypatch, capsys):
    line = "tokenize rows.jsonl --tokenizer bpe.json --out {}/ --processes 1"
    tformer(line.format("whole"))
    replaced, left, n_ended = os.replace, 0, 0

    def replace(*names):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replaced(*names)

    monkeypatch.setattr("os.replace", replace)
    for first in range(2 * len(contents("whole"))):
        left, before = first, n_ended
        for _ in range(50):
            try:
                tformer(line.format(f"ids{first}"))
                break
            except Killed:
                left = 6 + first  # each time that it goes on: enough for one file and the index
                n_ended += 1
        assert contents(f"ids{first}") == contents("whole"), first
        if n_ended == before:
            break
    assert n_ended > 20 and "going on in ids9: 120 ids of" in capsys.readouterr().err


def test_with_several_processes_a_kill_leaves_nothing_that_is_not_taken_up():
    Path("big.txt").write_text("".join(f"{story} {i}\n" for i in range(60) for story in STORIES))
    command = "tokenize big.txt --tokenizer bpe.json --out {}/ --processes 2"
    run = SMALL + "from tformer.__main__ import program; program()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    chance, kills = random.Random(0), 0

    def start(folder: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", run, *command.format(folder).split()]
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)

    assert b"ids of" in start("whole").communicate()[1]
    while True:
        process = start("ids")
        until = time.monotonic() + 120
        n = len(list(Path().glob("ids/ids-*")))
        while kills < 3 and process.poll() is None and time.monotonic() < until:
            if len(list(Path().glob("ids/ids-*"))) > n + chance.randrange(5):
                process.send_signal(signal.SIGKILL)
        code = process.wait(120)
        assert process.stderr is not None
        said = process.stderr.read()  # ends only when the workers have ended too
        process.stderr.close()
        assert code in (0, -signal.SIGKILL), said
        if code == 0:
            break
        kills += 1
    assert kills == 3 and b"going on in ids" in said
    assert contents("ids") == contents("whole")
    assert np.array_equal(opened().ids[:], in_memory(["big.txt"], "bpe", "file"))


def test_progress_has_rate_and_time_left_and_what_was_there_already_is_no_part_of_the_rate(
    monkeypatch, capsys
):
    """By a clock that goes a second a reading: 10 MB a second, after 400 MB that were passed over in one."""
    now = itertools.count()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(now)))
    with progress.bytes_progress("tokenizing", 10**9) as told:
        told(400 * 10**6)
        told.from_here()
        for _ in range(10):
            told(10 * 10**6)
    assert capsys.readouterr().err == "tokenizing: 500 of 1,000 MB  10.0 MB/s  left 50.0 s\n"
    begun(monkeypatch)
    passed_over = []
    monkeypatch.setattr(progress.ShownBytes, "from_here", lambda shown: passed_over.append(shown.done))
    there = json.loads(Path("ids/index.json").read_text())["read"]["bytes"]
    tformer("tokenize lines.txt --tokenizer bpe.json --out ids/ --processes 1")
    assert len(passed_over) == 1 and there < passed_over[0] <= Path("lines.txt").stat().st_size


# ---------------------------------------------------------------------------- what is refused


def begun(monkeypatch) -> None:
    """A folder that was ended after some files."""
    left = 8
    replaced = os.replace

    def replace(*names):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replaced(*names)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        with pytest.raises(Killed):
            tformer("tokenize lines.txt --tokenizer bpe.json --out ids/ --processes 1")


OTHERS = {
    "tokenize lines.txt --tokenizer word.json": r"another tokenizer \(bpe of 291, sha256 \w{12}…, now w",
    "tokenize prose.txt --tokenizer bpe.json": r"another text \(lines.txt of [\d,]+ bytes, now prose.txt of",
    "tokenize lines.txt prose.txt --tokenizer bpe.json": r"another text \(1 file, now 2\)",
    "tokenize lines.txt --documents line --tokenizer bpe.json": r"--documents \('file', now 'line'\)",
    "tokenize lines.txt --field verse --tokenizer bpe.json": r"another --field \('text', now 'verse'\)",
}


@pytest.mark.parametrize("line", OTHERS)
def test_another_text_or_tokenizer_is_refused_and_named(line, monkeypatch):
    begun(monkeypatch)
    before = contents("ids")
    with pytest.raises(RequestError, match=OTHERS[line] + r".*; give another folder, or --overwrite"):
        tformer(line + " --out ids/")
    assert contents("ids") == before
    tformer(line + " --out ids/ --overwrite")
    assert opened().index.complete


def test_a_text_that_was_changed_in_place_is_found_by_its_bytes(monkeypatch):
    begun(monkeypatch)
    text = Path("lines.txt").read_bytes()
    Path("lines.txt").write_bytes(text.replace(b"Ann", b"Anm", 1))
    line = "tokenize lines.txt --tokenizer bpe.json --processes 1 --out"
    with pytest.raises(
        RequestError, match=rf"begun with another text \(the first [\d,]+ bytes.*; {DIFFERENT}$"
    ):
        tformer(f"{line} ids/")
    tformer(f"{line} others/")
    shutil.copytree("ids", "again")
    tformer(f"{line} again/ --overwrite")
    assert contents("again") == contents("others")
    Path("lines.txt").write_bytes(text)
    with Path("ids/ids-00000.npy").open("r+b") as file:
        file.seek(140)
        file.write(b"\0\0\0\0")
    with pytest.raises(RequestError, match=r"ids-00000.npy is damaged \(sha256"):
        tformer("tokenize lines.txt --tokenizer bpe.json --out ids/")


def test_standard_input_goes_on_when_it_is_given_again(monkeypatch):
    text = Path("prose.txt").read_bytes()

    def given(text: bytes, out: str = "ids/") -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        tformer(f"tokenize - --tokenizer bpe.json --processes 1 --out {out}")

    with monkeypatch.context() as patch:
        patch.setattr("tformer.text.shard_writer.ShardWriter.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            given(text)
    with pytest.raises(
        RequestError, match=rf"begun with a longer text \(it ends after 200 bytes.*; {DIFFERENT}$"
    ):
        given(text[:200])
    given(text[:200], "others/")
    shutil.copytree("ids", "again")
    given(text[:200], "again/ --overwrite")
    assert contents("again") == contents("others")
    given(text)
    assert np.array_equal(opened().ids[:], in_memory(["prose.txt"], "bpe", "file"))


def test_what_cannot_be_done_is_refused_in_a_line(monkeypatch):
    Path("box/ids-00000.npy").mkdir(parents=True)
    for line, said in {
        "lines.txt --tokenizer bpe.json --out ids": r"ends in .npy\); --out ids.npy, or --out ids/ for a",
        "lines.txt --tokenizer bpe.json --out lines.txt/": r"lines.txt is a file \(expected a folder",
        "lines.txt --tokenizer bpe.json --out .": r"\. is no folder of ids alone",
        "lines.txt --tokenizer bpe.json --out box/ --overwrite": r"box is no folder of ids alone \(ids-00000",
        "lines.txt --tokenizer bpe.json --out none/ids/": r"cannot write none/ids",
        "lines.txt --tokenizer bpe.json --processes 2": r"--processes without --out FOLDER/",
        "lines.txt --tokenizer bpe.json --out ids/ --processes 0": r"--processes 0 \(expected 1 to",
        "empty.txt --tokenizer bpe.json --out ids/": "the text is empty",
    }.items():
        Path("empty.txt").write_text("\n")
        where = "" if "empty" not in line else " --documents line"
        with pytest.raises(TformerError, match=said):
            tformer(f"tokenize {line}{where}")


def test_one_process_at_a_time_writes_a_folder():
    from tformer.temporary import lock

    Path("ids").mkdir()
    held = lock(Path("ids"))
    with pytest.raises(RequestError, match=r"ids is being written \(another process does.*; wait for it$"):
        tformer("tokenize lines.txt --tokenizer bpe.json --out ids/")
    if held is not None:
        os.close(held)
    tformer("tokenize lines.txt --tokenizer bpe.json --out ids/ --processes 1")  # it has waited


@pytest.mark.parametrize("processes", [1, 2])
def test_a_character_that_is_in_no_vocabulary_is_named_with_its_place(processes):
    Path("odd.txt").write_text("Once Ann\nand Bob\n" * 30 + "and Ü\n")
    with pytest.raises(RequestError, match=r"character 'Ü' \(U\+00DC\) at odd.txt, line 61, column 5"):
        tformer(f"tokenize odd.txt --tokenizer char.json --out ids/ --processes {processes}")
    with pytest.raises(RequestError, match=r"ids is not whole yet .*; go on with the same tformer tokenize"):
        opened()
