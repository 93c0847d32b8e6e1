"""What others wrote, asked or broke, met through the command: one line, the right exit code, nothing lost.

The command runs in this process, `main` and all; the runs are tiny.
"""

import io
import json
import os
import random
import signal
import sys
import threading
import time

import pytest
from safetensors.torch import save_file

from tests.conftest import tiny_model
from tests.faults.kill import load
from tests.faults.kill import run as in_a_copy
from tformer.cli import main
from tformer.config import Config
from tformer.errors import Stopped
from tformer.files import write_json
from tformer.run import huggingface
from tformer.run.huggingface import to_hf, to_hf_config
from tformer.run.pretrained import is_origin
from tformer.run.record import DataFacts, Origin, Record
from tformer.text import tokenizer
from tformer.text.tokenizer import Tokenizer

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 4


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a text and no runs; signals are handled as before, afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    (tmp_path / "hamlet.txt").write_text(TEXT)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tformer(monkeypatch, capsys):
    """Run the command; gives its exit code, what it wrote and what it said."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["tformer", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code, *capsys.readouterr())

    return run


def write_run(folder, seed=0, std=0.3, kind="char", text=TEXT, source="hamlet.txt", **changes):
    """A directory as `train` leaves it, with random weights."""
    folder.mkdir(parents=True)
    trained = Tokenizer.train(kind, [text], 300)
    model = tiny_model(seed, std, vocab_size=trained.vocab_size, **changes)
    (folder / "tokenizer.json").write_text(trained.to_json())
    write_json(folder / "config.json", to_hf_config(model.config))
    save_file(to_hf(model.config, model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    config = Config().updated("model", **model.config.model_dump())
    record = Record(settings=config.model_dump(), data=DataFacts(source=[str(source)]))
    (folder / "tformer.yaml").write_text(record.as_yaml())
    return model, trained


# ---------------------------------------------------------------------------- which run is meant


@pytest.mark.parametrize(("given", "meant"), [("m", "runs/m"), ("./m", "m"), ("runs/../m", "m")])
def test_a_name_with_a_separator_is_a_path_and_never_a_run_of_that_name(place, tformer, given, meant):
    write_run(place / "runs/m", seed=1, text=TEXT + "€")
    write_run(place / "m", seed=2)
    sample = ("sample", "To", "--greedy", "--max-tokens", 9, "--device", "cpu", "--run")
    assert tformer(*sample, given)[:2] == tformer(*sample, (place / meant).resolve())[:2]
    stats = ("tokenize", "hamlet.txt", "--stats", "--tokenizer")
    assert tformer(*stats, given) == tformer(*stats, place / meant), "a tokenizer is found as a run is"


def test_a_path_that_is_no_run_is_not_looked_for_among_the_runs(place, tformer):
    write_run(place / "runs/m")
    assert tformer("sample", "To", "--run", "./m")[0] == 2
    assert tformer("sample", "To", "--run", "../m")[0] == 2


def test_a_run_began_from_the_path_that_is_meant_and_from_no_other(place):
    recorded = Record(init_from=Origin(source=str((place / "runs/m").resolve())))
    assert is_origin("m", recorded) and is_origin("runs/m", recorded)
    assert not is_origin("./m", recorded)


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "command",
    [("sample", "To"), ("sample", "To", "--greedy"), ("eval", "loss"), ("eval", "loss", "--json")],
    ids=" ".join,
)
def test_logits_that_are_not_finite_are_an_error_and_not_a_bug(place, tformer, command):
    write_run(place / "huge", std=1e30, activation="relu")
    code, out, err = tformer(*command, "--run", "huge", "--device", "cpu")
    assert code == 1, "the weights are finite, what they make is not"
    assert err.splitlines()[-1].startswith("tformer: error: the logits are not finite (")
    assert out in ("", "To")
    assert not (place / "huge/evals.jsonl").exists()


def test_a_small_config_allocates_nothing_before_the_shapes_agree(place, tformer, monkeypatch):
    write_run(place / "m")
    values = {"model_type": "gpt2", "n_positions": 262144, "n_embd": 8192, "n_layer": 1, "n_head": 1}
    write_json(place / "m/config.json", values | {"vocab_size": 10, "tformer": {"positions": "sinusoidal"}})
    monkeypatch.setattr(huggingface, "sinusoidal_positions", lambda *sizes: pytest.fail("17 GB"))
    code, _, err = tformer("sample", "To", "--run", "m", "--device", "cpu")
    assert (code, "m has tensors too many" in err) == (2, True), err


def test_a_tensor_that_is_given_twice_is_refused_whichever_would_win(place, tformer):
    model, _ = write_run(place / "m")
    file = place / "m/model.safetensors"
    tensors = to_hf(model.config, model.state_dict())
    twice = tensors | {f"transformer.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(twice, file, {"format": "pt"})
    code, _, err = tformer("sample", "To", "--run", "m", "--device", "cpu")
    assert (code, "m has a tensor under two names (h.0." in err) == (2, True), err
    file.unlink()
    names = ("model-1.safetensors", "model-2.safetensors")
    for name in names:
        save_file(tensors, place / "m" / name, {"format": "pt"})
    weight_map = {tensor: names[i % 2] for i, tensor in enumerate(tensors)}
    write_json(place / "m/model.safetensors.index.json", {"weight_map": weight_map})
    code, _, err = tformer("sample", "To", "--run", "m", "--device", "cpu")
    assert (code, "m has a tensor in two of its files" in err) == (2, True), err


# ---------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(
    ("kind", "i", "found"),
    [
        ("bpe", 4_000_000_000, "257 tokens, and an id of 4,000,000,000"),
        ("bpe", 2571, "257 tokens, and an id of 2,571"),
        ("bpe", 7, "an id for two tokens (1 of them)"),
        ("char", 4_000_000_000, "an id of 4,000,000,000"),
    ],
)
@pytest.mark.parametrize("use", ["--stats", "--show", "--json"])
def test_a_tokenizer_with_an_id_far_from_its_size_is_refused_at_once(place, tformer, kind, i, found, use):
    values = json.loads(Tokenizer.train(kind, [TEXT], 257).to_json())
    values["model"]["vocab"]["hostile" if kind == "bpe" else "€"] = i
    values["model"]["vocab"] = {t: n for t, n in values["model"]["vocab"].items() if n < 256 or n == i}
    values["model"] |= {"merges": []} if kind == "bpe" else {}
    (place / "t.json").write_text(json.dumps(values))
    start = time.process_time()
    code, out, err = tformer("tokenize", "hamlet.txt", "--tokenizer", "t.json", use)
    assert time.process_time() - start < 2
    assert (code, out, found in err) == (2, "", True), err


def test_a_pattern_that_would_take_for_ever_is_no_bug(place, tformer):
    """The engine gives it up, in a panic."""
    values = json.loads(Tokenizer.train("bpe", [TEXT], 300).to_json())
    splits = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [splits, values["pre_tokenizer"]]}
    (place / "t.json").write_text(json.dumps(values))
    (place / "a.txt").write_text("a" * 40 + "b\n")
    code, out, err = tformer("tokenize", "a.txt", "--tokenizer", "t.json", "--stats")
    assert (code, out, "this is a bug" in err) == (2, "", False)
    assert "tformer: error: the tokenizer cannot cut this text (its pattern: Onig" in err
    said = in_a_copy(["tokenize", "a.txt", "--tokenizer", "t.json", "--stats"], place)
    assert said == (2, err), "nor is a line of the engine's own printed"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_while_a_tokenizer_loads_ends_the_command_as_anywhere(place, monkeypatch, number, code):
    (place / "t.json").write_text(Tokenizer.train("char", [TEXT]).to_json())
    load()  # before it is changed
    monkeypatch.setattr(tokenizer, "kind_of", lambda engine: signal.raise_signal(number))
    assert in_a_copy(["tokenize", "hamlet.txt", "--tokenizer", "t.json"], place) == (code, "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_what_ends_a_program_while_a_tokenizer_loads_is_no_fault_of_the_file(place, monkeypatch, error):
    (place / "t.json").write_text(Tokenizer.train("char", [TEXT]).to_json())

    def ended(engine):
        raise error

    monkeypatch.setattr(tokenizer, "kind_of", ended)
    with pytest.raises(type(error)):
        Tokenizer.load(place / "t.json")


def test_learning_is_left_at_once_when_a_signal_comes(place):
    """The engine would take many seconds over all the pairs of this text, and looks at no signal itself."""
    draw = random.Random(0)
    blocks = ("".join(draw.choices("abcdefgh", k=999)) for _ in range(1000))
    whole = " ".join(blocks)
    text = " ".join(whole.translate({97: digit}) for digit in range(48, 58))
    (place / "long.txt").write_text(text)
    train = ["tokenize", "--train", "long.txt", "--tokenizer", "bpe", "--vocab-size", "1000000"]
    load()
    start = time.monotonic()
    alarm = lambda: threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()  # noqa: E731
    assert in_a_copy([*train, "--out", "t.json"], place, prepare=alarm) == (143, "")
    assert time.monotonic() - start < 4
    assert not (place / "t.json").exists()


# ---------------------------------------------------------------------------- texts


def test_a_byte_order_mark_is_no_text_to_any_command(place, tformer, monkeypatch):
    marked = b"\xef\xbb\xbf" + TEXT.encode()
    (place / "marked.txt").write_bytes(marked)
    train = ("tokenize", "--train", "--tokenizer", "char")
    assert tformer(*train, "marked.txt", "--out", "m.json")[0] == 0
    assert tformer(*train, "hamlet.txt", "--out", "h.json")[0] == 0
    assert (place / "m.json").read_bytes() == (place / "h.json").read_bytes()
    given = {
        name: tformer("tokenize", name, "--tokenizer", "h.json") for name in ("hamlet.txt", "marked.txt")
    }
    assert given["hamlet.txt"] == given["marked.txt"]
    both = tformer("tokenize", "marked.txt", "marked.txt", "--tokenizer", "h.json", "--stats", "--json")
    assert json.loads(both[1])["characters"] == 2 * len(TEXT), "before every file, not before the first alone"
    write_run(place / "m")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfTo\n")))
    code, out, err = tformer("sample", "-", "--run", "m", "--max-tokens", 0, "--device", "cpu")
    assert (code, out) == (0, "To\n"), err


@pytest.mark.parametrize("at", [30, 330], ids=["in the training part", "in the validation part"])
def test_a_character_that_a_vocabulary_lacks_is_found_in_its_file(place, tformer, monkeypatch, at):
    write_run(place / "m")
    line, column = TEXT.count("\n", 0, at) + 1, at - TEXT.rfind("\n", 0, at)
    (place / "new.txt").write_text(TEXT[:at] + "€" + TEXT[at + 1 :])
    where = f"character '€' (U+20AC) at new.txt, line {line}, column {column} is not in the vocabulary"
    for command in (
        ("train", "new.txt", "--init-from", "m", "--steps", 1),
        ("train", "hamlet.txt", "new.txt", "--init-from", "m", "--steps", 1),
        ("tokenize", "hamlet.txt", "new.txt", "--tokenizer", "m", "--stats"),
        ("tokenize", "hamlet.txt", "new.txt", "--tokenizer", "m"),
    ):
        code, _, err = tformer(*command)
        assert (code, where in err) == (2, True), err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("To\nbe €\n".encode())))
    code, _, err = tformer("sample", "-", "--run", "m", "--max-tokens", 0, "--device", "cpu")
    assert (code, "at standard input, line 2, column 4 is" in err) == (2, True), err


# ---------------------------------------------------------------------------- what a person sees

ESCAPES = "\x1b]0;OWNED\x07\x1b[2J\x9b31m"


def has_escapes(text):
    return any(c in text for c in "\x1b\x07\x9b")


def test_escapes_in_names_and_files_do_not_reach_the_terminal(place, tformer):
    model, _ = write_run(place / "m", source="no\x1b[31msuch\x07")
    code, _, err = tformer("eval", "loss", "--run", "m", "--device", "cpu")
    assert (code, has_escapes(err), "\ufffd[31msuch" in err) == (2, False, True)
    tensors = to_hf(model.config, model.state_dict()) | {ESCAPES: model.embed.weight.detach().clone()}
    save_file(tensors, place / "m/model.safetensors", {"format": "pt"})
    code, _, err = tformer("sample", "To", "--run", "m", "--device", "cpu")
    assert (code, has_escapes(err), "OWNED" in err) == (2, False, True)
    (place / "t.json").write_text(json.dumps({"model": {"type": ESCAPES}}))
    code, _, err = tformer("tokenize", "hamlet.txt", "--tokenizer", "t.json")
    assert (code, has_escapes(err)) == (2, False)
    write_run(place / f"runs/x{ESCAPES}")
    for command in (("sample", "To", "--max-tokens", 1), ("tokenize", "hamlet.txt")):
        code, _, err = tformer(*command)
        assert (code, has_escapes(err), "using runs/x\ufffd" in err) == (0, False, True)
    code, out, err = tformer("eval", "loss", "--data", "hamlet.txt", "--device", "cpu")
    assert (code, has_escapes(out + err)) == (0, False), out


def test_ordinary_characters_of_any_language_stay_on_a_terminal(place, tformer, monkeypatch):
    text = "a\u00a0b\u3000c\u200dd\u200ce\u200ff\u00adg\u2009h\U0001fae9\r\ni\tj"
    write_run(place / "m", text=text + "\x1b[2J\x9b\u202e")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    sample = ("sample", "--run", "m", "--max-tokens", 0, "--device", "cpu")
    assert tformer(*sample, text)[1] == text.replace("\r\n", "\n") + "\n"
    assert tformer(*sample, "a\x1b[2J\x9b\u202e\rb")[1] == "a\ufffd[2J\ufffd\ufffd\ufffdb\n"


# ---------------------------------------------------------------------------- settings and records


def test_many_keys_are_read_in_linear_time_and_one_twice_is_still_found(place, tformer):
    keys = "".join(f"  k{i}: 1\n" for i in range(20_000))
    (place / "many.yaml").write_text("train:\n" + keys)
    (place / "twice.yaml").write_text("train:\n" + keys + "  k7: 2\n")
    for name, found in (("many", "unknown key train.k0 in many.yaml"), ("twice", "'k7' is given twice")):
        start = time.process_time()
        code, _, err = tformer("train", "hamlet.txt", "--config", f"{name}.yaml")
        assert (code, found in err) == (2, True), err
        assert time.process_time() - start < 4, "quadratic: eight seconds"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("m/config.json", ("sample", "To", "--run", "m")),
        ("m/tformer.yaml", ("sample", "To", "--run", "m")),
        ("m/tokenizer.json", ("sample", "To", "--run", "m")),
        ("m/model.safetensors.index.json", ("sample", "To", "--run", "m")),
        ("big.yaml", ("train", "hamlet.txt", "--config", "big.yaml")),
    ],
)
def test_a_file_of_settings_is_not_read_whatever_its_size(place, tformer, name, command):
    write_run(place / "m")
    (place / name).touch()
    os.truncate(place / name, 1 << 40)
    if "index" in name:
        (place / "m/model.safetensors").rename(place / "m/model-1.safetensors")
    code, _, err = tformer(*command)
    assert (code, f"{name} is too large (expected at most" in err) == (2, True), err
    os.truncate(place / name, 0)


@pytest.mark.parametrize("fraction", ["null", "text", "[1]", "{}", "true", "7", "-0.5", ".nan"])
def test_a_record_whose_fraction_is_none_is_damaged_and_not_a_bug(place, tformer, fraction):
    write_run(place / "m")
    (place / "m/tformer.yaml").write_text(f"data: {{val_fraction: {fraction}}}\nrecord: {{}}\n")
    code, _, err = tformer("eval", "loss", "--run", "m", "--device", "cpu")
    assert (code, "m/tformer.yaml is damaged (data.val_fraction: expected" in err) == (2, True), err
