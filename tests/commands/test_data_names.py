"""What DATA may be taken for: a name of ours that is a file here too, and an address of the network."""

import io
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import save_run, tiny_model
from tformer.cli import app
from tformer.errors import TformerError
from tformer.text.corpus import shadowed
from tformer.text.tokenizer import Tokenizer

TEXT = "To be, or not to be, that is the question:\n" * 20
SMALL = """--steps 1 --batch-size 2 --device cpu --tokenizer char --set model.n_layers=1 --set model.d_model=8
    --set model.n_heads=1 --set model.n_ctx=8 --set train.precision=fp32"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a text, and a cache in which the named texts lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    monkeypatch.setenv("TFORMER_CACHE", str(tmp_path / "cache"))
    Path("cache").mkdir()
    for name in ("shakespeare", "tinyshakespeare"):
        Path(f"cache/{name}.txt").write_text(TEXT)
    Path("poem.txt").write_text(TEXT[::-1])
    return tmp_path


@pytest.fixture
def tformer(place, monkeypatch, capsys):
    """Run a command line; gives what it said, or the text of its error."""

    def run(line, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        try:
            app(shlex.split(line), standalone_mode=False)
        except TformerError as error:
            assert error.exit_code == 2
            return str(error)
        return capsys.readouterr().err

    return run


@pytest.fixture
def run(place):
    """A run of random weights, `run`."""
    tokenizer = Tokenizer.train("char", [TEXT], 0)
    return save_run(place / "run", tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)


# ---------------------------------------------------------------------------- names of ours

OURS = {
    "tinyshakespeare": "40,000 lines of Shakespeare, 1.1 MB, the usual benchmark",
    "reversal": "the task",
    "shakespeare": "the complete works of William Shakespeare (Project Gutenberg 100)",
}


@pytest.mark.parametrize("name", OURS)
def test_a_name_of_ours_that_is_here_too_says_which_was_taken_and_how_to_have_the_other(place, name):
    assert shadowed([name, "poem.txt", "-"]) == ()
    note = f"{name} is taken for {OURS[name]}; for the {{}} of that name give ./{name}"
    Path(name).write_text(TEXT)
    assert shadowed([name, name]) == (note.format("file"),)
    Path(name).unlink()
    Path(name).mkdir()
    assert shadowed(["poem.txt", name]) == (note.format("folder"),)
    assert shadowed([f"./{name}"]) == ()


def test_every_command_that_takes_such_a_name_says_so(tformer, run):
    name = "tinyshakespeare"
    Path(name).write_text(TEXT[::-1])
    (note,) = shadowed([name])
    said = tformer(f"train {name} {SMALL} --val-data {name} --out ours")
    assert said.startswith(note) and said.count(note) == 1
    assert f"source:\n    - {name}\n" in Path("ours/tformer.yaml").read_text()
    for task in ("loss", "attention", "generations -n 1 --max-tokens 2 --prompt To --temperature 1"):
        assert note in tformer(f"eval {task} --run run --data {name}"), task
        assert "is taken for" not in tformer(f"eval {task} --run run --data ./{name}"), task


def test_the_task_is_taken_before_a_file_of_its_name(tformer):
    Path("reversal").write_text(TEXT)
    small = SMALL.replace("--tokenizer char", "").replace("n_ctx=8", "n_ctx=5")
    task = "--set data.reversal_length=3 --set data.reversal_symbols=4"
    said = tformer(f"train reversal {small} {task} --set train.keep=last --json --out t")
    assert said.startswith("reversal is taken for the task; for the file of that name give ./reversal\n")
    assert "is taken for" not in tformer(f"train ./reversal {SMALL} --out f")


# ---------------------------------------------------------------------------- addresses


PAGE = "https://example.com/a book.txt?x=1&y=2"


def test_an_address_is_shown_whole_and_fetched_by_the_line_that_the_error_gives(tformer):
    said = tformer(f"train '{PAGE}'")
    assert said.startswith(f"{PAGE} is an address (")
    command = said.rpartition("; fetch it: ")[2]
    words = shlex.split(command)
    assert words[:3] == ["curl", "-L", PAGE] and words[3:] == ["|", "tformer", "train", "-"]
    assert "runs/stdin" in tformer(f"train - {SMALL}", stdin=TEXT)


@pytest.mark.parametrize(
    "line",
    [
        "train poem.txt '{}'",
        "train poem.txt --val-data '{}'",
        "train poem.txt --eval-data '{}'",
        "train poem.txt --config '{}'",
        "tokenize '{}' --tokenizer run",
        "tokenize --train '{}' --tokenizer char --out t.json",
        "eval loss --run run --data '{}'",
        "eval lambada --run run --data '{}'",
        "eval attention --run run --data '{}'",
        "sample --prompt-file '{}' --run run",
    ],
)
def test_where_a_pipe_is_not_taken_or_not_alone_an_address_goes_into_a_file_first(tformer, run, line):
    said = tformer(line.format(PAGE))
    assert said.startswith(f"{PAGE} is an address (expected a file that is here); ")
    assert said.endswith(f"first: curl -L -o FILE '{PAGE}'")


def test_what_curl_does_not_fetch_is_not_given_to_it(tformer):
    assert tformer("train s3://bucket/a.txt") == (
        "s3://bucket/a.txt is an address (expected a file that is here); fetch it into a file first"
    )


def test_a_folder_that_looks_like_an_address_is_a_folder(tformer):
    Path("ftp:").mkdir()
    Path("ftp:/a.txt").write_text(TEXT)
    assert "address" not in tformer(f"train ftp://a.txt {SMALL}")


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("https://huggingface.co/roneneldan/TinyStories-33M", "roneneldan/TinyStories-33M"),
        ("https://huggingface.co/roneneldan/TinyStories-33M/tree/main", "roneneldan/TinyStories-33M"),
        ("https://hf.co/gpt2", "openai-community/gpt2"),
    ],
)
def test_a_page_of_the_hub_is_told_by_its_name(tformer, page, name):
    for line in (f"sample To --run {page}", f"train poem.txt --init-from {page}"):
        assert tformer(line).endswith(f"; the Hub's name for it is {name}")
