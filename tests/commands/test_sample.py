"""`tformer sample`: prompts of several lines, what ends a text, what has been said already."""

import io
import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import save_run, tiny_model
from tformer.cli import app
from tformer.commands.sample import unescaped
from tformer.errors import RequestError
from tformer.sample import Sampling, continue_text, penalise
from tformer.text.tokenizer import Tokenizer

TEXT = "to be or not,\nthat is\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run on characters."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train("char", [TEXT])
    save_run(tmp_path / "m", tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    return tmp_path


def sample(*args: str, stdin: bytes | None = None):
    """The lines of `sample --json`, or the error."""
    words = ["sample", *args, "--run", "m", "--max-tokens", "6", "--greedy", "--seed", "1", "--json"]
    done = CliRunner().invoke(app, words, input=stdin)
    if isinstance(done.exception, RequestError):
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---------------------------------------------------------------------------- prompts


def test_a_file_is_one_prompt_of_many_lines(place):
    (place / "p.txt").write_bytes(b"\xef\xbb\xbfto be\nor not\n")
    (line,) = sample("--prompt-file", "p.txt")
    assert line["prompt"] == "to be\nor not"
    assert sample("--prompt-file", "-", stdin=b"to be\nor not\n") == [line]
    assert sample("-", "-0", stdin=b"to be\nor not\0") == [line]
    assert sample("to be\nor not") == [line]


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_prompts_that_end_with_nul_have_lines_of_their_own(place, end):
    lines = sample("-", "--null", stdin=b"to\nbe\0\0or\r\n\0not".replace(b"\r", b"") + end)
    assert [line["prompt"] for line in lines] == ["to\nbe", "", "or\n", "not"]


def test_prompts_come_as_they_are_written(monkeypatch):
    from tformer.commands.options import stdin_lines

    blocks = iter([b"to\0b", b"e\0", b"or"])

    class Slow(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return next(blocks, b"")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slow()))
    lines = stdin_lines(b"\0")
    assert next(lines) == "to" and next(lines) == "be" and next(blocks) == b"or"
    assert list(lines) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("to", "--prompt-file", "p.txt"), "PROMPT both say"),
        (("--null", "--prompt-file", "p.txt"), "--null both say"),
        (("to", "--null"), "--null without standard input"),
        (("--prompt-file", "none.txt"), "none.txt"),
        (("to", "--stop", ""), "--stop is empty"),
        (("to", "--repetition-penalty", "0"), "expected a number above 0"),
        (("to", "--repetition-penalty", "inf"), "expected a number above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(place, args, said):
    assert said in sample(*args)


# ---------------------------------------------------------------------------- the end


def test_a_stop_string_of_the_command_line_may_be_a_line_end(place):
    assert [unescaped(text) for text in (r"\n", r"a\tb\r", r"\\n", r"\d", "e")] == [
        "\n",
        "a\tb\r",
        r"\n",
        r"\d",
        "e",
    ]
    free = sample("to", "--max-tokens", "60")[0]["text"]
    (line,) = sample("to", "--max-tokens", "60", "--stop", r"\n")
    assert line["text"] == free.split("\n")[0]


# ---------------------------------------------------------------------------- what came before


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 9.0])
def test_the_penalty_is_that_of_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 11, generator=generator), torch.randint(11, (3, 5), generator=generator)
    seen = torch.zeros(3, 11, dtype=torch.bool).scatter(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalise(logits, seen, penalty), theirs)


def test_ids_of_prompt_and_text_are_less_probable_and_each_sample_has_its_own():
    model, tokenizer = tiny_model(vocab_size=12), Tokenizer.train("char", ["abcdefghijkl"])
    wanted, ids = [], [0, 3]
    for _ in range(9):  # step by step, without a cache
        logits, seen = model(torch.tensor([ids]))[:, -1], torch.tensor([[i in ids for i in range(12)]])
        wanted.append(int(penalise(logits, seen, 1.7).argmax()))
        ids.append(wanted[-1])
    greedily = Sampling(0.0, repetition_penalty=1.7)
    assert continue_text(model, tokenizer, [0, 3], 1, 9, greedily, 0)[0].ids == wanted
    drawn = Sampling(1.0, repetition_penalty=1.7)
    together = continue_text(model, tokenizer, [0, 3], 3, 9, drawn, 5)
    alone = [continue_text(model, tokenizer, [0, 3], 1, 9, drawn, 5 + i)[0] for i in range(3)]
    assert together == alone
