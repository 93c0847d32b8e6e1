"""Options that contradict each other, do nothing or are none, and what `main` says of them."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import save_run, tiny_model
from tformer.cli import main
from tformer.text.tokenizer import Tokenizer

TEXT = "To be, or not to be: - milk -5 + 3 =\n--Well, he said -now é\n" * 20
SMALL = (
    "--steps 1 --batch-size 2 --device cpu --set model.n_layers=1 --set model.d_model=8 --set model.n_ctx=8"
)
DASH = "put text that begins with a dash last, after --"


@pytest.fixture
def tformer(tmp_path, monkeypatch, capsys):
    """Runs a command where a text and a run lie, `run`; gives its exit code, what it wrote and said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    monkeypatch.setenv("TFORMER_DEVICE", "cpu")
    Path("text.txt").write_text(TEXT)
    tokenizer = Tokenizer.train("bpe", [TEXT], 300)
    save_run(tmp_path / "run", tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tformer", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def refused(tformer, *words):
    """What is said of a command that is refused, in one line."""
    code, out, err = tformer(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


# ---------------------------------------------------------------------------- text that begins with a dash


@pytest.mark.parametrize(
    "prompt", ["- milk", "-5 + 3 =", "--Well, he said", "--Well", "---", "-now it", "-é", "-0.5"]
)
def test_a_prompt_that_begins_with_a_dash_is_told_the_way_in_which_leads_in(tformer, prompt):
    assert f"; {DASH}, or see: tformer sample --help" in refused(tformer, "sample", prompt, "--run", "run")
    options = ("--run", "run", "--max-tokens", 0)
    assert tformer("sample", *options, "--", prompt)[:2] == (0, f"{prompt}\n")


@pytest.mark.parametrize("words", [("--greddy",), ("--min_p", "1"), ("-n", "many"), ("To", "be")])
def test_what_is_no_text_is_not_told_of_dashes(tformer, words):
    assert DASH not in refused(tformer, "sample", *words, "--run", "run")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("eval", "--run"), "eval"),
        (("eval", "loss", "--run"), "eval loss"),
        (("train", "--preset"), "train"),
        (("sample", "eval", "--seed"), "sample"),
        (("--nothing",), ""),
    ],
)
def test_an_error_names_the_help_of_its_command(tformer, words, command):
    assert refused(tformer, *words).endswith(f"see: {' '.join(['tformer', command]).strip()} --help\n")


# ---------------------------------------------------------------------------- settings as options


@pytest.mark.parametrize(
    ("words", "option", "setting"),
    [
        ("--vocab-size 300", "--vocab-size", "data.vocab_size=300"),
        ("--vocab-size=300", "--vocab-size", "data.vocab_size=300"),
        ("--n-layers 2", "--n-layers", "model.n_layers=2"),
        ("--weight_decay 0.5", "--weight_decay", "train.weight_decay=0.5"),
    ],
)
def test_a_setting_that_is_given_as_an_option_is_told_as_one_that_works(tformer, words, option, setting):
    key = setting.partition("=")[0]
    said = refused(tformer, "train", "text.txt", *words.split())
    assert said.endswith(f"no such option: {option} ({key} is a setting); give it as: --set {setting}\n")
    advised = shlex.split(said.rpartition(": ")[2])
    code, _, err = tformer("train", "text.txt", *SMALL.split(), "--set", "model.n_heads=1", *advised)
    assert code == 0, err
    name, value = re.fullmatch(r"\w+\.(\w+)=(.*)", setting).groups()
    assert f"\n  {name}: {value}\n" in Path("runs/text/tformer.yaml").read_text()


def test_a_setting_without_its_value_is_told_too(tformer):
    for words in (("--dropout",), ("--dropout", "--steps", "3")):
        assert refused(tformer, "train", "text.txt", *words).endswith("--set model.dropout=VALUE\n")


def test_an_option_that_is_no_setting_is_told_as_before(tformer):
    assert "No such option: --stepps" in refused(tformer, "train", "text.txt", "--stepps", 3)


# ---------------------------------------------------------------------------- contradictions


def test_greedy_has_no_temperature(tformer):
    sample = ("sample", "To", "--run", "run", "--max-tokens", 3)
    said = refused(tformer, *sample, "--greedy", "--temperature", 0.7)
    assert "--greedy and --temperature 0.7 contradict each other (greedy is temperature 0); leave one" in said
    greedy = tformer(*sample, "--greedy")
    assert greedy[0] == 0
    assert greedy == tformer(*sample, "--greedy", "--temperature", 0) == tformer(*sample, "--temperature", 0)
    assert tformer(*sample, "--temperature", 0.8, "--seed", 1) == tformer(*sample, "--seed", 1)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("eval loss --run run --data text.txt", "--out loss.html"),
        ("eval --run run --data text.txt", "--out loss.html"),
        ("eval attention --run run --prompt To", "--out heads.svg"),
        ("tokenize text.txt --tokenizer run", "--out ids.npy"),
        ("answer dense-layers", "--report a.md"),
    ],
)
def test_overwrite_needs_something_to_replace(tformer, words, option):
    option, _, file = option.partition(" ")
    said = refused(tformer, *words.split(), "--overwrite")
    assert said.endswith(f"--overwrite without {option}; say what to replace: {option} FILE\n")
    if words.startswith("answer"):  # its experiments take seconds, and have tests
        return
    assert tformer(*words.split(), option, file, "--overwrite")[0] == 0


# ---------------------------------------------------------------------------- too little to validate on


def test_a_text_of_which_nothing_is_left_to_validate_on_is_warned_of(tformer):
    Path("ten.txt").write_text("abcdefghij")
    train = ("train", "ten.txt", *SMALL.split(), "--set", "model.n_heads=1", "--tokenizer", "char")
    code, _, err = tformer(*train, "--out", "little")
    assert code == 0
    assert "no validation: the validation part has 1 token," in err
    assert "; give more text, or --val-data FILE" in err
    assert "no validation" not in tformer(*train, "--val-data", "ten.txt", "--out", "own")[2]
    assert "no validation" not in tformer(*train, "--set", "data.val_fraction=0", "--out", "none")[2]


def test_one_of_several_processes_leaves_at_once():
    """No thread of a process group meets an interpreter that is ending."""
    script = (
        "import atexit; atexit.register(print, 'ending'); from tformer.cli import leave; print('x'); leave(3)"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | rank, capture_output=True, text=True, check=False
        )
        for rank in ({}, {"RANK": "1"})
    ]
    assert [(d.returncode, d.stdout.split()) for d in done] == [(3, ["x", "ending"]), (3, ["x"])]
