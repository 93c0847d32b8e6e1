"""Numbers of any size, as settings and as options: an error in one line, or harmless, at once.

What a number would be allocated, computed or counted by is bounded before that is done. Every setting and
every option that takes a number is found by its type, so that a new one is tried as well.
"""

import re
import resource
import shutil

import pytest
import typer.main

from tests.command import run
from tests.conftest import save_run, tiny_model
from tests.faults.tiny import SETTINGS, TEXT
from tests.test_every_option import parameters, walk
from tformer.cli import app
from tformer.config import MOST_STEPS, MOST_WINDOWS, Config, TrainConfig
from tformer.errors import RequestError
from tformer.layers import flag_layer, merge
from tformer.text.tokenizer import Tokenizer
from tformer.training.budget import Costs, steps_within

HUGE = ("1000000000", f"{10**18}", f"{10**400}", "9" * 5000, "1e308")
ANSWERS_WITHIN = 2.0  # seconds of a processor, for a refusal
DONE_WITHIN = 30.0  # `answer` does some work
ROOM = 8 << 30  # bytes of addresses: what is not refused and is larger ends there, and not the machine

NUMBERS = {
    f"{section}.{name}": field
    for section, of_section in Config.model_fields.items()
    for name, field in of_section.annotation.model_fields.items()
    if field.annotation in (int, float)
}
WHOLE = [key for key, field in NUMBERS.items() if field.annotation is int]
COUNTS = [key for key in WHOLE if any(getattr(m, "le", 0) == MOST_STEPS for m in NUMBERS[key].metadata)]


def tiny(**given):
    values = SETTINGS | {"train.batch_size": 2, "train.steps": 1} | given
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


TRAIN = ["train", "text.txt", "--device", "cpu", "--precision", "fp32", "--no-compile", "--tokenizer", "char"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a text, passages, a run on the text and one on reversal."""
    folder = tmp_path_factory.mktemp("bounds")
    (folder / "text.txt").write_text(TEXT)
    (folder / "passages.jsonl").write_text('{"text": "To be, or not to be"}\n')
    run(*TRAIN, "--out", "run", *tiny(), cwd=folder, check=0)
    of_reversal = {"model.n_ctx": 5, "data.reversal_length": 3, "data.reversal_symbols": 4}
    reversal = ["train", "reversal", "--out", "rev", "--device", "cpu", "--no-compile"]
    run(*reversal, *tiny(**of_reversal), cwd=folder)  # whose verdict is as it may be
    return folder


def answer(*arguments, cwd):
    """What a command says, in little time and address space; an error is one line, and no bug."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))

    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(*arguments, cwd=cwd, prepare=limit)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = [word if len(word) < 40 else f"{word[:9]}… ({len(word)})" for word in arguments]
    assert "this is a bug" not in done.stderr and "Traceback" not in done.stderr, (shown, done.stderr)
    took = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    assert took < (ANSWERS_WITHIN if done.returncode == 2 else DONE_WITHIN), (shown, took)
    if done.returncode == 2:
        errors = [line for line in done.stderr.splitlines() if line.startswith("tformer: error: ")]
        assert len(errors) == 1 and len(errors[0]) < 400, (shown, done.stderr)
    return done


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize("key", WHOLE)
def test_every_whole_number_among_the_settings_has_an_upper_bound(key):
    assert any(hasattr(m, "le") or hasattr(m, "lt") for m in NUMBERS[key].metadata)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_huge_setting_is_refused_in_a_short_line_that_names_it_or_is_within_its_bounds(key):
    for value in HUGE:
        try:
            config = merge([flag_layer([f"{key}={value}"], {})])
        except RequestError as error:
            assert key in str(error) or key.partition(".")[2] in str(error)
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            section, _, name = key.partition(".")
            assert abs(getattr(getattr(config, section), name)) <= (2**63 if key in WHOLE else 1e308)


def test_a_count_at_its_bound_is_harmless(here):
    others = [key for key in COUNTS if key != "train.steps"]
    assert len(others) >= 6
    given = tiny(**dict.fromkeys(others, MOST_STEPS))
    shutil.rmtree(here / "most", ignore_errors=True)
    assert answer(*TRAIN, "--out", "most", *given, cwd=here).returncode == 0
    given = tiny(**{"train.steps": MOST_STEPS})
    assert answer(*TRAIN, "--estimate", *given, cwd=here).returncode == 0


def test_a_time_has_no_more_steps_than_a_run_can_have():
    assert steps_within(float("inf"), Costs(1e-3, 0.0, 0.0, 0.0), TrainConfig()) == MOST_STEPS


@pytest.mark.parametrize(
    "given",
    [
        {"model.d_model": 2**17},  # each within its bounds, and all of them more than a machine has
        {"model.d_model": 2**14, "model.n_layers": 1000},
        {"train.batch_size": MOST_WINDOWS, "model.n_ctx": 512, "model.d_model": 512},
    ],
)
def test_a_training_that_has_no_room_is_refused_before_it_takes_any(here, given):
    done = answer(*TRAIN, "--out", "large", *tiny(**given), cwd=here)
    assert done.returncode == 2 and "GB are free" in done.stderr and "give a smaller model" in done.stderr
    assert not (here / "large").exists()


# ---------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def large(here):
    """Beside it, runs with a wide context and with a large vocabulary, and a text for them."""
    tokenizer = Tokenizer.train("char", [TEXT])
    small = {"n_layers": 1, "n_heads": 1, "d_model": 8}
    save_run(here / "wide", tiny_model(**small, vocab_size=64, n_ctx=2**18), tokenizer)
    save_run(here / "wordy", tiny_model(**small, vocab_size=2**20, n_ctx=2**14), tokenizer)
    return here


GIVEN = ["--data", "text.txt", "--prompt", "T"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["sample", "T", "--run", "wide", "-n", "1024", "--max-tokens", "1000000", "--json"],
            r"the keys and values of 1,024 samples in a context of 262,144 tokens take at least 17"
            r"\.\d GB \(.* GB are free\); lower -n or --max-tokens",
        ),
        (
            ["eval", "generations", "--run", "wide", "-n", "1024", "--max-tokens", "1000000", *GIVEN],
            r"1,024 samples in a context of 262,144 tokens take at least 17\.\d GB.*; lower -n or",
        ),
        (
            ["eval", "loss", "--run", "wordy", "--data", "text.txt"],
            r"scoring \d+ tokens at once takes at least 1\d\.\d GB for their logits \(.* are free\); give a",
        ),
    ],
    ids=["sample", "eval generations", "eval loss"],
)
def test_what_a_run_has_no_room_for_is_refused_before_it_takes_any(large, arguments, says):
    done = answer(*arguments, "--device", "cpu", cwd=large)
    assert done.returncode == 2 and re.search(says, done.stderr), done.stderr
    assert done.stdout == ""


READERS = {
    "sample": ["sample", "T", "--device", "cpu"],
    "eval loss": ["eval", "loss", "--device", "cpu"],
    "eval causality": ["eval", "causality", "--device", "cpu"],
    "answer": ["answer", "5"],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_that_has_no_room_is_refused_before_its_weights_are_read(here, reader):
    def prepare():
        from tformer.run import huggingface, loaded

        loaded.free_bytes = lambda device: 1000
        huggingface.read_model_tensors = lambda folder: pytest.fail("they are read")

    done = run(*READERS[reader], "--run", "run", cwd=here, prepare=prepare, check=2)
    says = (
        r"the model in run takes at least 0\.0 MB for its 1,\d+ weights \(0\.0 MB are free\); give a run with"
    )
    assert re.search(says, done.stderr) and done.stderr.count("tformer: error: ") == 1, done.stderr


# ---------------------------------------------------------------------------- options

CPU = ["--device", "cpu"]
ON_TEXT = ["--run", "run", *CPU]
LINES = {  # a quick line of each command that takes numbers
    "sample": ["sample", "T", "--json", *ON_TEXT],
    "eval": ["eval", *ON_TEXT],
    "eval loss": ["eval", "loss", *ON_TEXT],
    "eval reversal": ["eval", "reversal", "--run", "rev", *CPU],
    "eval lambada": ["eval", "lambada", "--data", "passages.jsonl", *ON_TEXT],
    "eval causality": ["eval", "causality", *ON_TEXT],
    "eval attention": ["eval", "attention", "--run", "rev", *CPU],
    "eval generations": ["eval", "generations", *ON_TEXT],
    "tokenize": [
        "tokenize",
        "--train",
        "text.txt",
        "--tokenizer",
        "bpe",
        "--out",
        "made.json",
        "--overwrite",
    ],
    "train": [*TRAIN, "--estimate", "--accelerator", "h100", *tiny()],
    "answer": ["answer", "shapes"],
}
IN_OTHER_WAYS = {
    ("tokenize", "--processes"): ["tokenize", "text.txt", "--tokenizer", "run", "--out", "ids/"],
    ("eval", "-n"): ["eval", "--run", "rev", *CPU],
    ("eval", "--seed"): ["eval", "--run", "rev", *CPU],
}


def numbers_of_commands():
    return [
        (" ".join(path), parameter.opts[0])
        for path, command in walk(typer.main.get_command(app))
        for parameter in parameters(command)
        if re.search("int|float", type_of(parameter))
    ]


def type_of(parameter):
    """In words, of any version of Typer."""
    if hasattr(parameter, "type_descriptor"):
        return str(parameter.type_descriptor.annotation)
    return parameter.type.name


def line_with(command, option, value):
    words = list(IN_OTHER_WAYS.get((command, option), LINES[command]))
    key = {"--steps": "train.steps=", "--batch-size": "train.batch_size="}.get(option)
    at = next((i for i, word in enumerate(words) if key and word.startswith(key)), 0)
    if at:
        del words[at - 1 : at + 1]
    return [*words, option, value]


@pytest.mark.parametrize(
    "command,option", [("sample", "-n"), ("eval causality", "--seed"), ("eval reversal", "-n")]
)
def test_a_huge_option_is_refused(here, command, option):
    assert answer(*line_with(command, option, f"{10**400}"), cwd=here).returncode == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("command,option", numbers_of_commands())
def test_every_option_that_is_a_number_answers_at_once_however_large_it_is(here, command, option):
    for value in HUGE:
        shutil.rmtree(here / "ids", ignore_errors=True)
        assert answer(*line_with(command, option, value), cwd=here).returncode in (0, 1, 2)
