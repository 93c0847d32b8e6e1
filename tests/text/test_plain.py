"""What is read of folders, what files are by their first bytes, where characters stand."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tformer.cli import app
from tformer.errors import RequestError, TformerError
from tformer.text import plain
from tformer.text.corpus import load_corpus
from tformer.text.plain import Trail, list_folder, place_in, read_text, whole_text

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 4
SMALL = [f"--set={setting}" for setting in ("model.n_layers=1", "model.d_model=8", "model.n_ctx=8")]
SMALL += ["--set=model.n_heads=1", "--tokenizer=char", "--steps=1", "--batch-size=2", "--device=cpu"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with nothing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def tformer(place, monkeypatch, capsys):
    """Run the command on bytes at standard input; gives what it wrote and said, or the text of its error."""

    def run(*args, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        try:
            app([*map(str, args)], standalone_mode=False)
        except TformerError as error:
            return str(error)
        out, err = capsys.readouterr()
        return out + err

    return run


def write(names, content=None):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"[{name}]" if content is None else content)


# ---------------------------------------------------------------------------- folders


def names_in(path="f"):
    return [file.relative_to(path).as_posix() for file in list_folder(Path(path)).files]


def test_endings_count_in_any_case_and_numbers_by_their_value(place):
    write(
        [
            f"f/{n}"
            for n in ("chapter10.TXT", "chapter2.txt", "Chapter1.Md", "b/3.markdown", "b/20.text", "B.log")
        ]
    )
    (place / "f/folder.txt").mkdir()
    assert names_in() == ["b/3.markdown", "b/20.text", "Chapter1.Md", "chapter2.txt", "chapter10.TXT"]


def test_the_order_is_the_same_however_the_files_came(place):
    names = [f"f/{a}{n}{end}" for a in "aBc" for n in (1, 2, 10, 100) for end in (".txt", ".md", "/x.txt")]
    random.Random(1).shuffle(names)
    write(names)
    assert names_in() == sorted(names_in(), key=lambda n: plain.natural_order(n))
    assert len(names_in()) == len(names)


HIDDEN = (
    ".git/a.txt",
    ".hidden.txt",
    "._one.txt",
    ".ipynb_checkpoints/one-checkpoint.txt",
    "deep/__pycache__/b.txt",
    "myenv/lib/c.txt",
)


def test_what_is_hidden_and_what_programs_keep_is_left_out_and_counted(place):
    write(f"f/{name}" for name in (*HIDDEN, "one.txt"))
    write(["f/myenv/pyvenv.cfg"])
    folder = list_folder(Path("f"))
    assert names_in() == ["one.txt"]
    assert (folder.hidden, folder.left_out) == (len(HIDDEN), "6 hidden")
    assert names_in("f/.git") == ["a.txt"], "what is named by hand is read"
    assert load_corpus(["f/.hidden.txt"]).text == "[f/.hidden.txt]"


def test_a_folder_that_is_trained_on_twice_does_not_give_its_first_run(tformer):
    write(["poem.txt"], TEXT)
    for _ in range(2):
        assert f"read 1 file, {len(TEXT)} characters" in tformer("train", ".", *SMALL)
    assert sorted(path.name for path in Path("runs").iterdir()) == [Path.cwd().name, f"{Path.cwd().name}-2"]


def test_links_are_followed_and_nothing_is_read_twice_or_for_ever(place):
    write(["f/a.txt", "f/z/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt", "e.txt"])
    for link, target in (
        ("f/aa", "z"),  # a folder of its own
        ("f/loop", "."),
        ("f/z/up", ".."),
        ("f/out", "../elsewhere"),
        ("elsewhere/back", "../f"),
        ("f/a-again.txt", "a.txt"),
        ("f/e.txt", "../e.txt"),
        ("f/broken.txt", "nowhere"),
    ):
        os.symlink(target, link)
    assert names_in() == ["a.txt", "e.txt", "out/c.txt", "out/deep/d.txt", "z/b.txt"]
    assert list_folder(Path("f")).again == 5


def test_train_tokenize_and_eval_say_what_was_read_of_a_folder(tformer):
    write(["f/one.TXT", "f/two.txt"], TEXT)
    write(["f/a.log", "f/b.log", "f/c.py", "f/Makefile", "f/.x"])
    said = f"f: read 2 files, {2 * len(TEXT)} characters; left out: 4 others (.log, .py), 1 hidden"
    assert said in tformer("train", "f", *SMALL, "--out", "run")
    assert said in tformer("tokenize", "f", "--tokenizer", "run", "--stats")
    assert said in tformer("eval", "loss", "--run", "run", "--data", "f", "--device", "cpu")
    assert said in tformer("eval", "attention", "--run", "run", "--data", "f", "--device", "cpu")
    assert "left out" not in tformer("train", "f/one.TXT", *SMALL)
    facts = yaml.safe_load(Path("run/tformer.yaml").read_text())["record"]["data"]
    assert (facts["documents"], facts["characters"]) == (2, 2 * len(TEXT))


def test_a_folder_without_text_says_what_is_there_and_the_advice_holds(tformer):
    write(["f/a.log", "f/b.log", "f/.x.txt"], TEXT)
    said = tformer("train", "f", *SMALL)
    assert (
        "(expected files that end in .txt, .text, .md or .markdown, or tables, found 2 others (.log), "
        "1 hidden" in said
    )
    assert "name the files themselves" in said and "f/" not in said.partition(";")[2]
    assert "runs/a" in tformer("train", "f/a.log", "f/b.log", *SMALL)
    Path("g").mkdir()
    assert tformer("train", "g", *SMALL).endswith("or tables)")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_passed_over(place):
    write(["f/a.txt", "f/locked/b.txt"])
    os.chmod("f/locked", 0)
    try:
        with pytest.raises(RequestError, match="cannot read f/locked"):
            list_folder(Path("f"))
    finally:
        os.chmod("f/locked", 0o700)


# ---------------------------------------------------------------------------- bytes as text


def read_in_blocks(raw: bytes, block: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "BLOCK", block)
        return "".join(read_text(io.BytesIO(raw), "poem.txt"))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
@example("a\r\n\u0301é€🙂\0\ufeff")
def test_a_text_is_the_same_at_every_size_of_block(text):
    raw = text.encode()
    assert {read_in_blocks(raw, block) for block in range(1, len(raw) + 2)} == {text.removeprefix("\ufeff")}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*map(str.encode, "aé€🙂"), b"\xff", b"\xe2", b"\xf0\x9f", b"\x80"])))
@example([b"abc", b"\xe2\x82"])
def test_a_byte_that_is_not_utf8_is_named_at_every_size_of_block(parts):
    raw = b"".join(parts)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        for block in range(1, len(raw) + 2):
            with pytest.raises(RequestError, match=f"poem.txt is not UTF-8 at byte {error.start} ") as caught:
                read_in_blocks(raw, block)
            assert f"found 0x{raw[error.start]:02x}" in str(caught.value)


def test_a_text_is_read_a_block_at_a_time():
    stream = io.BytesIO(b"a" * (3 * plain.BLOCK))
    next(read_text(stream, "long"))
    assert stream.tell() == plain.BLOCK


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), TEXT)  # of 1980: the time may hold a line end
    return out.getvalue()


def numpy_file():
    out = io.BytesIO()
    np.save(out, np.zeros(100, dtype=np.uint16))
    return out.getvalue()


PACKED = [  # what it is called, its bytes; the command that is advised gives the text again
    ("packed with gzip", gzip.compress(TEXT.encode(), mtime=0)),
    ("packed with bzip2", bz2.compress(TEXT.encode())),
    ("packed with xz", lzma.compress(TEXT.encode())),
    ("a zip archive", zipped("poem.txt")),
    ("UTF-16 ", TEXT.encode("utf-16")),
    ("UTF-16 ", b"\xfe\xff" + TEXT.encode("utf-16-be")),
    ("UTF-32 ", TEXT.encode("utf-32")),
    ("UTF-32 ", b"\0\0\xfe\xff" + TEXT.encode("utf-32-be")),
    ("UTF-16LE without a byte order mark", TEXT.encode("utf-16-le")),
    ("UTF-16BE without a byte order mark", TEXT.encode("utf-16-be")),
    ("UTF-32LE without a byte order mark", TEXT.encode("utf-32-le")),
    ("UTF-32BE without a byte order mark", TEXT.encode("utf-32-be")),
    ("not UTF-8 at byte 300 (found 0xe9)", (TEXT[:300] + "é" + TEXT[300:]).encode("cp1252")),
]
NO_TEXT = {
    "a document of an office program": zipped("[Content_Types].xml", "word/document.xml"),
    "a PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "a Parquet table": b"PAR1\x15\x04\x15\x10",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a NumPy array": numpy_file(),
    "packed with zstd": b"\x28\xb5\x2f\xfd\x24\x04\x21\0\0",
    "no text: it has many NUL bytes": b"\x7fELF" + bytes(40) + b"abc" * 40,
}


def made_by(command):
    """The names of the files that a line of the shell makes."""
    before = {*Path().rglob("*")}
    subprocess.run(command, shell=True, capture_output=True, check=True)
    return [str(path) for path in {*Path().rglob("*")} - before]


@pytest.mark.parametrize("what,raw", PACKED)
@pytest.mark.parametrize("name", ["poem", "-my poem's.txt"])
def test_what_is_packed_or_in_another_encoding_is_read_by_the_line_that_the_error_gives(
    tformer, what, raw, name
):
    Path(name).write_bytes(raw)
    said = tformer("train", "--", name)
    assert f"is {what}" in said
    command = re.search(r": ([^:]+)$", said)[1]
    program = command.rpartition(" && ")[2].split()[0]
    if not shutil.which(program):
        pytest.skip(f"no {program} here")
    (made,) = made_by(command)
    if name.endswith(".txt"):  # it keeps its name, so that a folder does not give what it was, too
        assert Path(made).read_bytes() == raw and made == f"{name}.orig"
        made = name
        assert "read 1 file, " in tformer("train", *SMALL, ".")
    assert Path(made).read_text().removeprefix("\ufeff").replace("é", "") == TEXT
    assert "runs/" in tformer("train", *SMALL, "--", made)


@pytest.mark.parametrize("what,raw", PACKED)
def test_standard_input_is_read_through_the_filter_that_the_error_gives(tformer, what, raw):
    said = tformer("train", "-", stdin=raw)
    assert said.startswith(f"standard input is {what}") and said.count("\n") == 0
    command = re.search(r": … \| ([^|]+) \| tformer …$", said)[1]
    if not shutil.which(command.split()[0]):
        pytest.skip(f"no {command.split()[0]} here")
    text = subprocess.run(command, shell=True, input=raw, capture_output=True, check=True).stdout
    assert text.decode().removeprefix("\ufeff").replace("é", "") == TEXT


@pytest.mark.parametrize("what", NO_TEXT)
def test_what_is_no_text_is_named_by_every_command(tformer, what):
    Path("thing").write_bytes(NO_TEXT[what])
    assert tformer("train", "thing").startswith(f"thing is {what}")
    Path("poem.txt").write_text(TEXT)
    tformer("train", "poem.txt", *SMALL, "--out", "run")
    for args in (
        ("tokenize", "--train", "thing", "--tokenizer", "char", "--out", "t.json"),
        ("tokenize", "thing", "--tokenizer", "run"),
        ("eval", "loss", "--run", "run", "--data", "thing"),
        ("train", "thing", "--init-from", "run"),
    ):
        assert tformer(*args).startswith(f"thing is {what}"), args
    for args in (("tokenize", "-", "--tokenizer", "run"), ("sample", "-", "--run", "run", "--device", "cpu")):
        said = tformer(*args, stdin=NO_TEXT[what])
        assert said.split("; ")[0].startswith(("standard input is " + what, "using")), said


def test_a_token_file_is_taken_by_its_name_and_decoded_as_the_error_says(tformer):
    Path("poem.txt").write_text(TEXT)
    tformer("tokenize", "--train", "poem.txt", "--tokenizer", "char", "--out", "t.json")
    tformer("tokenize", "poem.txt", "--tokenizer", "t.json", "--out", "ids.npy")
    advice = "train takes it by a name in .npy, and tokenize --decode writes its text"
    assert advice in tformer("tokenize", "ids.npy", "--tokenizer", "t.json")
    Path("ids.npy").rename("ids.NPY")
    assert advice in tformer("train", "ids.NPY", *SMALL)
    Path("ids.NPY").rename("ids.npy")
    assert "runs/ids" in tformer("train", "ids.npy", *SMALL, "--tokenizer", "t.json")


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd here")
def test_zstd_is_read_by_the_line_that_the_error_gives(tformer):
    raw = subprocess.run(["zstd", "-c"], input=TEXT.encode(), capture_output=True, check=True).stdout
    Path("poem").write_bytes(raw)
    said = tformer("train", "poem")
    (made,) = made_by(re.search(r": ([^:]+)$", said)[1])
    assert (made, Path(made).read_text()) == ("poem.txt", TEXT)


@pytest.mark.parametrize(
    ("name", "made"), [("poem", "poem.txt"), ("sub/poem", "sub/poem.txt"), ("taken", "taken-2.txt")]
)
def test_the_text_of_a_file_gets_a_name_of_its_own(tformer, name, made):
    Path("sub").mkdir()
    Path("taken.txt").write_text("mine")
    Path(name).write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    said = tformer("train", name)
    assert made_by(re.search(r": ([^:]+)$", said)[1]) == [made]
    assert (Path(made).read_text(), Path("taken.txt").read_text()) == (TEXT, "mine")


def test_the_advice_on_a_file_is_the_same_for_every_command_and_none_is_told_to_train(tformer):
    Path("poem.txt").write_text(TEXT)
    tformer("train", "poem.txt", *SMALL, "--out", "run")
    Path("p").write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    for args in (
        ("train", "poem.txt", "--val-data", "p", *SMALL),
        ("train", "poem.txt", "--eval-data", "p", *SMALL),
        ("tokenize", "p", "--tokenizer", "run"),
        ("eval", "loss", "--run", "run", "--data", "p"),
        ("eval", "lambada", "--run", "run", "--data", "p"),
        ("sample", "--prompt-file", "p", "--run", "run"),
    ):
        assert tformer(*args).endswith("make text of it: zcat p > p.txt"), args


def test_a_few_nul_bytes_are_text():
    text = "a\0b" * 15 + "c" * 500
    assert "".join(read_text(io.BytesIO(text.encode()), "poem.txt")) == text


# ---------------------------------------------------------------------------- byte order marks


def test_marks_are_dropped_from_every_file_and_anywhere_in_standard_input(tformer):
    marked = b"\xef\xbb\xbf" + TEXT.encode()
    for name in ("a.txt", "b.txt"):
        Path(name).write_bytes(marked)
    Path("plain.txt").write_text(2 * TEXT)
    together = {}
    for name, args, stdin in (
        ("plain", ["plain.txt"], b""),
        ("files", ["a.txt", "b.txt"], b""),
        ("pipe", ["-"], marked * 2),
    ):
        tformer("tokenize", "--train", *args, "--tokenizer", "char", "--out", f"{name}.json", stdin=stdin)
        ids = tformer("tokenize", *args, "--tokenizer", "plain.json", stdin=stdin)
        tformer("train", *args, *SMALL, "--out", name, stdin=stdin)
        together[name] = (Path(f"{name}.json").read_text(), ids, Path(name, "tokenizer.json").read_text())
    assert together["plain"] == together["files"] == together["pipe"]
    score = ("eval", "loss", "--run", "plain", "--json", "--device", "cpu", "--data")
    said = [tformer(*score, "plain.txt"), tformer(*score, "-", stdin=marked * 2)]
    scored = [json.loads(one.splitlines()[0])["loss"] for one in said]
    assert scored[0] == scored[1]
    prompts = "To\n\ufeffbe\r\n".encode("utf-8-sig")
    out = tformer(
        "sample", "-", "--run", "plain", "--max-tokens", 0, "--device", "cpu", "--json", stdin=prompts
    )
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["To", "be"]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
def test_marks_are_found_at_every_size_of_block(monkeypatch, block):
    monkeypatch.setattr(plain, "BLOCK", block)
    raw = "\ufeffone\ufefftwo".encode()
    assert "".join(read_text(io.BytesIO(raw), "poem.txt")) == "one\ufefftwo", "within a file it is text"
    assert "".join(read_text(io.BytesIO(raw), plain.STDIN)) == "onetwo"


# ---------------------------------------------------------------------------- where in a text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab\n", max_size=8), min_size=1, max_size=4), st.integers(1, 5))
def test_a_place_is_that_of_the_whole_text_however_it_was_cut(texts, size):
    trail, pieces = Trail(), []
    for number, text in enumerate(texts):
        cut = [text[i : i + size] for i in range(0, len(text), size)]
        pieces += trail.of(cut, f"{number}.txt")
    position = 0
    for number, text in enumerate(texts):
        for at in range(len(text)):
            line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
            where = f"{number}.txt, line {line}, column {column}"
            assert trail.at(position) == place_in(text, at, f"{number}.txt") == where
            position += 1
    assert trail.at(position) == ""


@pytest.mark.parametrize("at", [10, 340], ids=["in the training part", "in the validation part"])
def test_an_unknown_character_is_placed_in_file_pipe_folder_and_prompt(tformer, at):
    write(["a.txt", "f/a.txt"], TEXT)
    bad = TEXT[:at] + "€" + TEXT[at + 1 :]
    write(["f/b.txt"], bad)
    tformer("train", "a.txt", *SMALL, "--out", "run")
    line, column = TEXT.count("\n", 0, at) + 1, at - TEXT.rfind("\n", 0, at)
    spot = f"line {line}, column {column} is not in the vocabulary"
    further = ("--init-from", "run", "--steps", 1, "--device", "cpu")
    score = ("eval", "loss", "--run", "run", "--device", "cpu", "--data")
    token = ("--tokenizer", "run")
    for args in (
        ("train", "f", *further),
        ("train", "a.txt", "f/b.txt", *further),
        (*score, "f"),
        ("tokenize", "f", *token),
        ("tokenize", "f", *token, "--stats"),
        ("tokenize", "f", *token, "--out", "x.npy"),
    ):
        assert f"'€' (U+20AC) at f/b.txt, {spot}" in tformer(*args), args
    for args in (("train", "a.txt", "-", *further), (*score, "-"), ("tokenize", "a.txt", "-", *token)):
        assert f"at standard input, {spot}" in tformer(*args, stdin=bad.encode()), args
    for args in (
        ("sample", "To\nbe €", "--run", "run", "--device", "cpu"),
        ("eval", "attention", "--prompt", "To\nbe €", "--run", "run", "--device", "cpu"),
        ("eval", "generations", "--prompt", "To\nbe €", "--run", "run", "--device", "cpu"),
    ):
        assert "at the prompt, line 2, column 4 is not" in tformer(*args), args
    said = tformer("sample", "-", "--run", "run", "--device", "cpu", stdin="To\nbe €\n".encode())
    assert "at standard input, line 2, column 4 is not" in said


def test_a_text_is_hashed_by_the_bytes_that_were_there(place):
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone")
    seen = []
    assert whole_text(Path("a.txt"), seen.append) == "one"
    assert seen == [b"\xef\xbb\xbfone"]
