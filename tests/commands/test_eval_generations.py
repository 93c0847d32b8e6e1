"""`tformer eval generations` as its users meet it, from run to table."""

import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

from tests.conftest import save_run, tiny_model
from tests.evals.test_overlap import naive
from tests.evals.test_writing import PLAY
from tformer.cli import app
from tformer.errors import RequestError
from tformer.evals.generations import Generations
from tformer.run.record import DataFacts, Record, read_evaluations
from tformer.show.generations import generations_view
from tformer.show.run_page import run_page
from tformer.text.tokenizer import Tokenizer

ESCAPE = "\x1b"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An untrained run of each tokenizer on PLAY, and a foreign directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text(PLAY)
    for kind in ("word", "char", "bpe"):
        tokenizer = Tokenizer.train(kind, [PLAY], 300)
        model = tiny_model(vocab_size=tokenizer.vocab_size, std=0.1)
        record = Record(data=DataFacts(source=[str(tmp_path / "play.txt")]))
        settings = {"tokenizer": kind, "val_fraction": 0.25}
        save_run(tmp_path / "runs" / kind, model, tokenizer, settings, record)
    (tmp_path / "runs" / "bpe").rename(tmp_path / "foreign")
    (tmp_path / "foreign" / "tformer.yaml").unlink()
    return tmp_path


def evaluate(*args):
    """`tformer eval generations`, in this process."""
    app(["eval", "generations", "--device", "cpu", "--max-tokens", "30", *args], standalone_mode=False)


def result_of(capsys, *args):
    """Its object."""
    evaluate("--json", *args)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("run", ["word", "char", "foreign"])
def test_every_tokenizer_is_sampled_and_measured(runs, capsys, run):
    data = ("--data", "play.txt") if run == "foreign" else ()
    result = result_of(capsys, "--run", run, "--temperature", "0.5", "--temperature", "1.2", *data)
    assert [c["temperature"] for c in result["temperatures"]] == [0.5, 1.2]
    assert len(result["samples"]) == 2 * 4 * 4
    expected = int((0.9 if run == "foreign" else 0.75) * len(PLAY))
    assert result["training_characters"] == expected
    for column in result["temperatures"]:
        texts = [s["text"] for s in result["samples"] if s["temperature"] == column["temperature"]]
        assert column["characters"] == sum(map(len, texts)), "the prompt is not measured"
        spaced = [re.sub(r"\s+", " ", text) for text in texts]
        lengths = [naive(text, re.sub(r"\s+", " ", PLAY[:expected])) for text in spaced]
        assert column["longest_overlap"] == max(map(max, lengths))
        assert column["mean_overlap"] == pytest.approx(sum(map(sum, lengths)) / sum(map(len, spaced)))
        assert column["longest_overlap_text"] in re.sub(r"\s+", " ", PLAY[:expected])
    for sample in result["validation_samples"]:
        assert sample["prompt"] + sample["text"] in PLAY[expected:]


def test_the_real_text_is_as_long_as_the_samples(runs, capsys):
    result = result_of(capsys, "--run", "char", "--temperature", "1", "-n", "2", "--max-tokens", "20")
    assert result["validation"]["characters"] == result["temperatures"][0]["characters"] == 8 * 20
    assert result["validation"]["known_words"] > 0.9 > result["temperatures"][0]["known_words"]


def test_a_sample_is_drawn_again_by_its_seed(runs, capsys):
    result = result_of(capsys, "--run", "char", "--prompt", "The sun", "--prompt", "I know", "-n", "2")
    assert len({(s["prompt"], s["seed"]) for s in result["samples"]}) == 4
    for sample in result["samples"][1::5]:
        app(
            [
                "sample",
                sample["prompt"],
                "--run",
                "char",
                "--seed",
                str(sample["seed"]),
                "--max-tokens",
                "30",
                "--temperature",
                str(sample["temperature"]),
                "--device",
                "cpu",
            ],
            standalone_mode=False,
        )
        assert capsys.readouterr().out == sample["prompt"] + sample["text"] + "\n"


def test_bits_per_byte_are_those_of_the_sample_given_its_prompt(runs, capsys):
    from tformer.run.huggingface import load_model

    result = result_of(
        capsys, "--run", "char", "--prompt", "The", "--max-tokens", "13", "--temperature", "1", "-n", "3"
    )
    model, tokenizer = load_model(runs / "runs" / "char"), Tokenizer.load(runs / "runs" / "char")
    bits = 0.0
    for sample in result["samples"]:
        ids = torch.tensor(tokenizer.encode("The" + sample["text"]))
        logs = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])[2:]
        bits -= logs.sum().item() / math.log(2)
    assert result["temperatures"][0]["bits_per_byte"] == pytest.approx(bits / (3 * 13), rel=1e-4)


def test_greedy_samples_are_drawn_once_for_each_prompt(runs, capsys):
    result = result_of(capsys, "--run", "char", "--temperature", "0", "--temperature", "1", "-n", "3")
    assert [c["samples"] for c in result["temperatures"]] == [4, 12]
    assert result["validation"]["samples"] == 12


def test_the_table_the_copies_and_the_samples_are_shown_and_kept(runs, capsys):
    evaluate("--run", "char")
    out = capsys.readouterr().out
    for said in ("known words", "T 0.8", "validation", "repeated 4-grams", "36 more samples in --json"):
        assert said in out
    assert ESCAPE not in out
    (line,) = read_evaluations(runs / "runs" / "char")
    page = run_page("char", Record(), [], [line])
    assert "known words" in page and "T 0.8, seed 1" in page


def test_what_is_kept_is_read_again_and_of_an_earlier_version_its_numbers(runs, capsys):
    values = result_of(capsys, "--run", "char", "-n", "1")
    again = json.loads(json.dumps(Generations.from_dict(values).as_dict()))
    assert {"run": "runs/char"} | again == values
    (line,) = read_evaluations(runs / "runs" / "char")
    del line.result["validation"]["errors"]
    with pytest.raises(RequestError, match="not what `eval generations` of this version finds"):
        Generations.from_dict(line.result)
    page = run_page("char", Record(), [], [line])
    assert "known words" not in page and "training characters" in page


def test_on_a_narrow_terminal_the_table_fits_and_nothing_moves_the_cursor(runs, capsys):
    result = result_of(capsys, "--run", "char")
    for sample in result["samples"]:
        sample["text"] = "\x1b[2J" + sample["text"]
    for width, has_errors in ((80, False), (130, True)):
        file = io.StringIO()
        console = Console(file=file, width=width, force_terminal=True, color_system=None)
        generations_view("runs/char", Generations.from_dict(result), console)
        assert max(map(len, file.getvalue().splitlines())) <= width
        assert ESCAPE not in file.getvalue() and "\ufffd[2J" in file.getvalue()
        assert ("±" in file.getvalue()) == has_errors


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--run", "../foreign"), "give --data FILE"),
        (("--run", "char", "--temperature", "-1"), "--temperature -1"),
        (("--run", "char", "--max-tokens", "0"), "--max-tokens 0"),
        (("--run", "char", "-n", "0"), "-n 0"),
        (("--run", "char", "--prompt", "é"), "not in the vocabulary"),
        (("--run", "char", "--out", "a.svg"), "--out with eval generations"),
        (("--run", "char", "--data", "one.txt"), "too little text to compare with"),
    ],
)
def test_what_cannot_be_measured_is_refused(runs, args, named):
    (runs / "one.txt").write_text("a")
    args = tuple("foreign" if a == "../foreign" else a for a in args)
    with pytest.raises(RequestError, match=re.escape(named)):
        evaluate(*args)
