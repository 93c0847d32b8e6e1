"""`tformer sample`: prompts of several lines, what ends a text, what has been said already."""

import contextlib
import io
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import save_run, tiny_model
from tformer.cli import app
from tformer.commands.sample import unescaped
from tformer.errors import RequestError
from tformer.evals.tokens import level
from tformer.run.loaded import load_run
from tformer.sample import Sampling, continue_text, penalise
from tformer.show.logprobs import coloured_sample
from tformer.show.loss import LEVEL_STYLES
from tformer.show.words import visible
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
        (("to", "--keep-stop"), "--keep-stop without --stop"),
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


def test_a_stop_string_that_is_kept_ends_the_text_where_transformers_ends_it(place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = Tokenizer.train("char", [TEXT, "abcdef"])  # which transformers encodes, to learn how
    save_run(place / "m", tiny_model(vocab_size=tokenizer.vocab_size), tokenizer)
    (free,) = sample("to")
    stop = free["text"][2:4]
    (cut,), (kept,) = (
        sample("to", "--stop", stop),
        sample("to", "--stop", stop, "--stop", "zz", "--keep-stop"),
    )
    assert kept == cut | {"text": cut["text"] + stop} and kept["finish_reason"] == "stop"
    model, tokenizer = AutoModelForCausalLM.from_pretrained("m"), AutoTokenizer.from_pretrained("m")
    ids = tokenizer("to", return_tensors="pt")["input_ids"]
    theirs = model.generate(ids, do_sample=False, max_new_tokens=6, stop_strings=[stop], tokenizer=tokenizer)
    assert tokenizer.decode(theirs[0]) == "to" + kept["text"]
    words = ["sample", "to", "--run", "m", "--greedy", "--max-tokens", "6", "--stop", stop, "--keep-stop"]
    live = CliRunner().invoke(app, words)
    assert live.stdout == f"to{kept['text']}\n"


# ---------------------------------------------------------------------------- what came before


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 9.0])
def test_the_penalty_is_that_of_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 11, generator=generator), torch.randint(11, (3, 5), generator=generator)
    seen = torch.zeros(3, 11, dtype=torch.bool).scatter(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert torch.equal(penalise(logits, seen, penalty), theirs)


def test_a_text_with_a_penalty_is_the_one_that_transformers_writes(place):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("m"), AutoTokenizer.from_pretrained("m")
    prompt = tokenizer("to be", return_tensors="pt").input_ids
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    texts = []
    for penalty in ("1", "1.8", "30"):
        theirs = model.generate(prompt, repetition_penalty=float(penalty), **options)[0, prompt.shape[1] :]
        (line,) = sample("to be", "--repetition-penalty", penalty)
        assert line["ids"] == theirs.tolist()
        texts.append(line["text"])
    assert len(set(texts)) > 1, "it makes a difference"


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


# ---------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("k", [0, 2, 1000])
def test_logprobs_are_those_of_a_plain_forward_whatever_is_drawn_from(place, n, k):
    words = ["sample", "to be", "--run", "m", "--max-tokens", "9", "--seed", "3", "-n", str(n), "--json"]
    words += ["--temperature", "2", "--top-k", "3", "--repetition-penalty", "1.5"]
    plain = CliRunner().invoke(app, words).stdout.splitlines()
    told = CliRunner().invoke(app, [*words, "--logprobs", str(k)]).stdout.splitlines()
    loaded = load_run(place / "m")
    prompt = loaded.tokenizer.encode("to be")
    assert len(told) == n
    for without, line in zip(map(json.loads, plain), map(json.loads, told), strict=True):
        entries = line.pop("logprobs")
        assert line == without and [entry["id"] for entry in entries] == line["ids"]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + line["ids"]]))[0, len(prompt) - 1 : -1]
        expected = logits[:, : loaded.tokenizer.vocab_size].log_softmax(-1)
        for entry, row in zip(entries, expected, strict=True):
            assert entry["logprob"] == pytest.approx(row[entry["id"]].item(), abs=1e-4)
            assert entry["text"] == loaded.tokenizer.decode([entry["id"]])
            values, ids = row.topk(min(k, len(row)))
            assert [one["logprob"] for one in entry["top"]] == pytest.approx(values.tolist(), abs=1e-4)
            assert {one["id"] for one in entry["top"]} == set(ids.tolist())
            if k == 1000:
                assert sum(math.exp(one["logprob"]) for one in entry["top"]) == pytest.approx(1)


def test_an_id_that_ends_a_text_has_its_logprob_and_what_comes_after_has_none(place):
    loaded = load_run(place / "m")
    ends = set(range(0, loaded.tokenizer.vocab_size, 2))
    sampling = Sampling(temperature=1.5)
    samples = continue_text(loaded.model, loaded.tokenizer, [1], 6, 12, sampling, 5, end_ids=ends, logprobs=1)
    assert {s.finish_reason for s in samples} == {"eos"} and len({len(s.ids) for s in samples}) > 1
    for sample in samples:
        assert [token.id for token in sample.logprobs] == sample.ids


def test_logprobs_in_a_pipe_need_json(place):
    done = CliRunner().invoke(app, ["sample", "to be", "--run", "m", "--logprobs", "1"])
    assert "give --json" in str(done.exception)


@pytest.mark.parametrize("colours", [True, False])
def test_on_a_terminal_each_token_has_the_colour_of_its_probability(place, colours):
    from rich.console import Console

    loaded = load_run(place / "m")
    (sample,) = continue_text(
        loaded.model, loaded.tokenizer, [1], 1, 8, Sampling(1.0), 5, stop=["\0"], logprobs=0
    )
    heard = io.StringIO()
    console = Console(
        file=heard, force_terminal=True, color_system="truecolor", no_color=not colours, width=80
    )
    coloured_sample("to", sample, loaded.tokenizer.token_bytes, console)
    wanted = [LEVEL_STYLES[level(-token.logprob)] for token in sample.logprobs]
    marks = re.sub(r"\x1b\[[\d;]*m", "", heard.getvalue())
    assert marks.startswith("to")
    assert ("48;2;" in heard.getvalue()) == (colours and any(wanted))
    if colours:
        assert marks.rstrip("\n") == "to" + visible(sample.text.encode(), lines=True).rstrip("\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_shown_the_colours_and_what_they_mean(place):
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "tformer", "sample", "-", "--run", "m", "--max-tokens", "4"]
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])}
    (place / "prompts").write_text("to be\nto be\n")
    with (place / "prompts").open() as prompts:
        process = subprocess.Popen(
            [*words, "--logprobs", "0"],
            stdin=prompts,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=place,
        )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown
    assert b"\x1b[" in shown and shown.count(b"probability (nats)") == 1, shown
    assert shown.count(b"to be") == 2, shown


# ---------------------------------------------------------------------------- one prompt after another


class Terminal:
    """A command on a terminal of its own, as a person has it: what it shows, and keys that are pressed."""

    def __init__(self, folder: Path, *words: str):
        import pty

        environment = os.environ | {"TERM": "dumb", "PYTHONPATH": str(Path(__file__).parents[2])}
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execve(sys.executable, [sys.executable, "-m", "tformer", *words], environment)
        self.shown = b""

    def until(self, text: bytes) -> bytes:
        """What is shown up to and with a text."""
        limit = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < limit, self.shown
            if select.select([self.end], [], [], 1)[0]:
                self.shown += os.read(self.end, 4096)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def press(self, keys: bytes) -> None:
        os.write(self.end, keys)

    def code(self) -> int:
        """How it ended."""
        with contextlib.suppress(OSError):
            while os.read(self.end, 4096):
                pass
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_one_prompt_after_another_until_ctrl_d(place):
    words = ["sample", "--interactive", "--run", "m", "--greedy", "--max-tokens", "100000000"]
    person = Terminal(place, *words, "--stop", "zzzz")
    person.until(b"> ")
    person.press(b"to be\n")
    person.until(b"to be")  # echoed
    person.until(b"to be")  # and continued
    person.press(b"\x03")
    person.until(b"> ")
    person.press(b"to#be\n")
    assert b"'#'" in person.until(b"> "), "said, and asked again"
    time.sleep(0.5)  # a signal before Python waits for a key would wait for the key
    person.press(b"ha\x03")
    person.until(b"> ")
    person.press(b"\x1b[A\x1b[A\n")  # the line before the last one, of the history
    person.until(b"to be")
    person.press(b"\x03")
    person.until(b"> ")
    person.press(b"\x04")
    assert person.code() == 0


@pytest.mark.parametrize(
    "words", [["to be"], ["--prompt-file", "p.txt"], ["--json"], ["-n", "2"], ["--logprobs", "1"], []]
)
def test_interactive_takes_no_prompt_and_needs_a_person(place, words):
    done = CliRunner().invoke(app, ["sample", "--interactive", "--run", "m", *words])
    expected = f"--interactive and {words[0] if words[0] != 'to be' else 'PROMPT'}" if words else "a terminal"
    assert expected in str(done.exception)
