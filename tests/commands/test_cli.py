"""The command line as its users meet it: streams, exit codes, errors, pipes, signals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import ENVIRONMENT, start
from tests.command import run as tformer
from tests.commands.conftest import SHORT, TEXT, TINY

pytestmark = pytest.mark.figured

# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["bogus"], "bogus"),
        (["train", "nothere"], "nothere"),
        (["train", "reversal", "--steps", "x"], "--steps"),
        (["train", "reversal", "--steps", "0"], "train.steps"),
        (["train", "reversal", "--set", "model.n_layer=3"], "model.n_layers"),
        (["train", "reversal", "--set", "model.n_layers=1.5"], "model.n_layers"),
        (["train", "reversal", "--set", "nonsense"], "KEY=VALUE"),
        (["train", "reversal", "--preset", "shakespear"], "shakespeare"),
        (["train", "reversal", "--config", "none.yaml"], "none.yaml"),
        (["train", "reversal", "--device", "cuda:99"], "cuda:99"),
        (["train", "reversal", "--device", "toaster"], "toaster"),
        (["train", "reversal", "--resume"], "no unfinished run"),
        (["train", "reversal", "reversal"], "alone"),
        (["train", "reversal", "--set", "model.n_ctx=7"], "n_ctx"),
        (["eval", "bogus"], "bogus"),
        (["eval", "--run", "nope"], "nope"),
        (["sample", "hi", "--run", "nope"], "nope"),
        (["sample", "hi", "--temperature", "-1"], "--temperature"),
        (["sample", "hi", "--top-p", "1.5"], "--top-p"),
        (["tokenize", "x", "--tokenizer", "none.json"], "none.json"),
        (["tokenize", "x", "--tokenizer", "word"], "--train"),
        (["tokenize", "x", "--train", "--tokenizer", "word"], "--out"),
        (["answer", "99"], "99"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(tmp_path, args, names):
    done = tformer(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("tformer: error: ")
    assert names in lines[0]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_debug_shows_the_traceback(tmp_path):
    wrong = ("tokenize", "a.txt", "--tokenizer", "nothere.json")
    done = tformer(*wrong, cwd=tmp_path, env={"TFORMER_DEBUG": "1"}, fresh=True)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "Traceback" in tformer("--debug", "train", "nothere", cwd=tmp_path).stderr


def test_an_unexpected_exception_says_that_it_is_a_bug(tmp_path):
    from tformer.run import find

    def broken(name):
        raise ZeroDivisionError("oh")

    def prepare():
        find.find_run = broken

    done = tformer("sample", "x", "--run", "y", cwd=tmp_path, prepare=prepare)
    assert done.returncode == 1
    assert "this is a bug: ZeroDivisionError: oh" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_that_exists_is_overwritten(place):
    done = tformer("train", "reversal", "--out", "runs/reversal", cwd=place, check=2)
    assert "--overwrite" in done.stderr
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "thesis.txt").write_text("x")
    tformer("train", "reversal", "--out", "mine", "--overwrite", cwd=place, check=2)
    assert (place / "mine" / "thesis.txt").read_text() == "x"
    before = {p: p.read_bytes() for p in (place / "runs/reversal").rglob("*") if p.is_file()}
    done = tformer(
        "train",
        "reversal",
        "--out",
        "runs/reversal",
        "--overwrite",
        "--minutes",
        "0.0001",
        cwd=place,
        check=2,
    )
    assert "too short" in done.stderr
    assert before == {p: p.read_bytes() for p in before}, "refused before anything was removed"
    (place / "t.json").write_text("precious")
    tformer("tokenize", "--train", "hamlet.txt", "--tokenizer", "char", "--out", "t.json", cwd=place, check=2)
    assert (place / "t.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["causality", "--data", "hamlet.txt"], "--data with eval causality"),
        (["loss", "-n", "3"], "-n with eval loss"),
        (["attention", "--precision", "fp32"], "--precision with eval attention"),
        (["--positions", "3"], "--positions with eval reversal"),
    ],
)
def test_an_option_that_a_task_has_no_use_for_is_refused(place, args, named):
    done = tformer("eval", *args, "--run", "reversal", cwd=place, check=2)
    assert named in done.stderr


def test_a_wrong_option_names_the_help_of_its_command(tmp_path):
    done = tformer("eval", "--tempereture", "1", cwd=tmp_path, check=2)
    assert done.stderr.rstrip().endswith("see: tformer eval --help")


# ---------------------------------------------------------------------------- tokenize


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_tokenize_and_decode_give_back_the_bytes(tmp_path, kind):
    text = (TEXT + "naïve ☂ \r\n\t 😀 end").encode()
    (tmp_path / "a.txt").write_bytes(text)
    size = [] if kind == "char" else ["--vocab-size", "300"]
    tformer(
        "tokenize", "--train", "a.txt", "--tokenizer", kind, *size, "--out", "t.json", cwd=tmp_path, check=0
    )
    ids = tformer(
        "tokenize", "-", "--tokenizer", "t.json", cwd=tmp_path, stdin=text, binary=True, check=0, fresh=True
    )
    back = tformer(
        "tokenize",
        "-",
        "--decode",
        "--tokenizer",
        "t.json",
        cwd=tmp_path,
        stdin=ids.stdout,
        binary=True,
        check=0,
    )
    assert back.stdout == text
    tformer("tokenize", "a.txt", "--tokenizer", "t.json", "--out", "a.npy", cwd=tmp_path, check=0)
    back = tformer(
        "tokenize", "a.npy", "--decode", "--tokenizer", "t.json", cwd=tmp_path, binary=True, check=0
    )
    assert back.stdout == text
    values = json.loads(tformer("tokenize", "a.txt", "--tokenizer", "t.json", "--json", cwd=tmp_path).stdout)
    assert values["ids"] == [int(i) for i in ids.stdout.split()]
    assert len(values["tokens"]) == len(values["ids"])


def test_input_that_is_not_utf_8_is_refused_at_its_byte(place):
    done = tformer(
        "tokenize", "-", "--tokenizer", "runs/hamlet", cwd=place, stdin=b"To be \xff", binary=True, check=2
    )
    assert b"byte 6" in done.stderr


# ---------------------------------------------------------------------------- sample


def test_a_prompt_and_its_continuation_go_to_stdout(place):
    done = tformer(
        "sample", "To be", "--run", "hamlet", "--max-tokens", "12", "--seed", "3", cwd=place, check=0
    )
    assert done.stdout.startswith("To be")
    assert len(done.stdout) == len("To be") + 12 + 1
    again = tformer(
        "sample", "To be", "--run", "hamlet", "--max-tokens", "12", "--seed", "3", cwd=place, fresh=True
    )
    assert again.stdout == done.stdout


def test_prompts_from_stdin_give_one_object_a_line(place):
    done = tformer(
        "sample",
        "-",
        "--json",
        "--run",
        "word",
        "--max-tokens",
        "4",
        "-n",
        "2",
        cwd=place,
        stdin="To\nbe\n",
        check=0,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["To", "To", "be", "be"]
    assert lines[1]["seed"] == lines[0]["seed"] + 1
    assert all(set(line) >= {"prompt", "text", "ids", "seed", "finish_reason"} for line in lines)
    alone = tformer(
        "sample",
        "To",
        "--json",
        "--run",
        "word",
        "--max-tokens",
        "4",
        "--seed",
        str(lines[1]["seed"]),
        cwd=place,
    )
    assert json.loads(alone.stdout)["ids"] == lines[1]["ids"]


def test_text_piped_in_with_no_argument_is_read(place):
    done = tformer("sample", "--run", "hamlet", "--max-tokens", "3", cwd=place, stdin="mind\n", check=0)
    assert done.stdout.startswith("mind")


def test_the_empty_prompt_works(place):
    done = tformer("sample", "", "--run", "hamlet", "--max-tokens", "3", cwd=place, check=0)
    assert len(done.stdout) == 4


def test_an_unknown_character_in_the_prompt_is_named(place):
    done = tformer("sample", "To €", "--run", "hamlet", cwd=place, check=2)
    assert "'€'" in done.stderr
    assert "the prompt, line 1, column 4" in done.stderr


def test_the_newest_text_run_is_picked_and_said(place):
    done = tformer("sample", "To", "--max-tokens", "2", cwd=place, check=0)
    assert "using runs/word" in done.stderr


def test_a_closed_pipe_ends_it_silently(place):
    sample = f"{sys.executable} -m tformer sample 'To be' --run hamlet --max-tokens 4000"
    command = f"{sample} | head -c 20; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=place, capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )
    assert done.stdout.endswith("141\n")
    assert done.stderr == ""


def test_a_pipe_that_is_read_unasked_is_said(place):
    args = ["sample", "--run", "hamlet", "--max-tokens", "3"]
    assert "reading prompts" in tformer(*args, cwd=place, stdin="To\n", check=0).stderr
    assert "reading prompts" not in tformer(*args, "-", cwd=place, stdin="To\n", check=0).stderr
    ids = tformer("tokenize", "--tokenizer", "runs/hamlet", cwd=place, stdin="To be", check=0)
    assert ids.stderr == "reading a text from standard input\n"
    back = ("tokenize", "--decode", "--tokenizer", "runs/hamlet")
    decoded = tformer(*back, cwd=place, stdin=ids.stdout, check=0)
    assert (decoded.stdout, decoded.stderr) == ("To be", "reading ids from standard input\n")
    assert tformer(*back, "-", cwd=place, stdin=ids.stdout, check=0).stderr == ""
    train = ("train", "--steps", "1", *TINY, "--tokenizer", "char", "--out")
    assert "reading a text from" in tformer(*train, "one", cwd=place, stdin=TEXT, check=0).stderr
    assert "reading a text from" not in tformer(*train, "other", "-", cwd=place, stdin=TEXT, check=0).stderr


def test_a_closed_pipe_needs_no_signal_of_that_name(place):
    """Windows has no SIGPIPE."""
    code = (
        "import os, signal, sys\n"
        "del signal.SIGPIPE\n"
        "import tformer.cli\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "sys.argv = ['tformer', 'tokenize', 'hamlet.txt', '--tokenizer', 'runs/hamlet']\n"
        "tformer.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=ENVIRONMENT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (141, b"")


# ---------------------------------------------------------------------------- eval and train


def test_eval_suits_the_run(place):
    done = tformer("eval", "--run", "reversal", "--json", cwd=place, check=0)
    values = json.loads(done.stdout)
    assert values["passed"] is True
    assert values["chance"] == 0.25
    assert [p["half"] for p in values["positions"]] == ["first"] * 2 + ["second"] * 3
    values = json.loads(tformer("eval", "--run", "hamlet", "--json", cwd=place, check=0).stdout)
    assert set(values) >= {"run", "loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert values["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1
    table = tformer("eval", "--run", "hamlet", "--data", "hamlet.txt", cwd=place, check=0)
    assert f"{len(TEXT) - 1:,} scored" in table.stdout


def test_eval_agrees_with_training(place):
    metrics = [json.loads(line) for line in (place / "runs/hamlet/metrics.jsonl").read_text().splitlines()]
    best = min(m["val_loss"] for m in metrics if "val_loss" in m)
    done = tformer("eval", "loss", "--run", "hamlet", "--json", cwd=place, check=0)
    values = json.loads(done.stdout)
    assert values["loss"] == pytest.approx(best, abs=5e-3)


def test_a_failed_verdict_is_exit_1(place):
    done = tformer(
        "train",
        "reversal",
        "--steps",
        "2",
        *SHORT,
        "--out",
        "runs/unlearned",
        "--batch-size",
        "2",
        "--json",
        cwd=place,
        check=1,
    )
    assert json.loads(done.stdout)["passed"] is False
    assert "FAILED" in done.stderr
    tformer("eval", "reversal", "--run", "unlearned", cwd=place, check=1)


def test_training_says_everything_to_stderr(place):
    done = tformer("train", "-", "--steps", "3", *TINY, "--json", cwd=place, stdin=TEXT, check=0)
    values = json.loads(done.stdout)
    assert set(values) >= {"run", "steps", "tokens", "seconds", "loss", "val_loss", "bits_per_byte"}
    assert values["steps"] == 3
    assert values["tokens"] == 3 * 4 * 16
    assert "step 3/3" in done.stderr
    assert (place / values["run"] / "loss.svg").read_text().lstrip().startswith("<?xml")


def test_a_second_run_of_a_name_gets_a_number(place):
    done = tformer("train", "reversal", "--steps", "1", *SHORT, "--json", cwd=place)
    assert Path(json.loads(done.stdout)["run"]).name == "reversal-2"


def test_no_network_names_the_cache_and_the_way_on(tmp_path):
    done = tformer(
        "train",
        "shakespeare",
        cwd=tmp_path,
        env={"TFORMER_CACHE": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},
    )
    assert done.returncode == 1
    assert str(tmp_path / "cache" / "shakespeare.txt") in done.stderr
    assert "tformer train FILE" in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error" in line]) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_resume_goes_on(tmp_path, number, code):
    (tmp_path / "hamlet.txt").write_text(TEXT)
    arguments = ["train", "hamlet.txt", "--steps", "3000", *TINY, "--set", "train.eval_every=0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = start(arguments, tmp_path, fresh=number == signal.SIGTERM, **pipes)
    metrics = tmp_path / "runs" / "hamlet" / "metrics.jsonl"
    until = time.time() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.time() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    (checkpoint,) = (tmp_path / "runs" / "hamlet" / "checkpoints").iterdir()
    stopped_at = int(checkpoint.name.removeprefix("step-"))
    assert 0 < stopped_at < 3000
    if number != signal.SIGTERM:  # going on is the same after each
        return
    done = tformer(
        "train", "hamlet.txt", "--resume", "--steps", str(stopped_at + 20), "--json", cwd=tmp_path, check=0
    )
    assert f"continuing after step {stopped_at}" in done.stderr
    assert json.loads(done.stdout)["steps"] == stopped_at + 20
    done = tformer("train", "hamlet.txt", "--resume", "--out", "runs/hamlet", "--json", cwd=tmp_path, check=0)
    assert json.loads(done.stdout)["steps"] == stopped_at + 20, "a finished run stays as it is"
