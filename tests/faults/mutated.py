"""Files that others damaged or wrote, thousands of them, through the command line's entry function.

Each case changes one file of a run and runs one command, in this process. A copy of the process does some
hundreds of cases, so that what hangs, crashes or takes all memory is one case and not the end.
"""

import contextlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.kill import load, run
from tests.faults.row import Outcome, Row
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, checkpoints, made, no_pictures

CASES, SOME = 20_000, 150
AT_ONCE = 250  # cases of a copy of the process
HANGS = 10.0  # seconds
MEMORY = 4 << 30
TOKENIZE = ["tokenize", "text.txt", "--tokenizer", "run/tokenizer.json", "--stats"]
RESUME = [*TRAIN, "--resume", "--steps", "7"]
OTHER = ["--out", "other", "--overwrite", "--device", "cpu", "--set", "train.steps=1"]
OTHER += ["--set", "train.batch_size=2"]
SMALL = [f"model.{name}" for name in ("n_layers=1", "n_heads=1", "d_model=8", "n_ctx=8")]
FROM_IDS = ["train", "ids.npy", "--tokenizer", "run/tokenizer.json", *OTHER]
FROM_IDS += [word for setting in SMALL for word in ("--set", setting)]
FROM_FILE = ["train", "text.txt", "--config", "small.yaml", *OTHER]
YAML = "model:\n  n_layers: 1\n  n_heads: 1\n  d_model: 8\n  n_ctx: 8\ntrain:\n  lr: 1e-3\n"
CAUSALITY = ["eval", "causality", "--run", "run", "--device", "cpu", "--positions", "2"]
# A file, by what it is called below the folder, and the commands that read it.
READERS: dict[str, list[list[str]]] = {
    "run/config.json": [SAMPLE, EVAL, CAUSALITY],
    "run/model.safetensors": [SAMPLE, EVAL],
    "run/tokenizer.json": [SAMPLE, TOKENIZE],
    "run/tokenizer_config.json": [SAMPLE],
    "run/generation_config.json": [SAMPLE],
    "run/tformer.yaml": [SAMPLE, EVAL, RESUME],
    "run/metrics.jsonl": [RESUME, EVAL],
    "run/evals.jsonl": [EVAL],
    "newest/manifest.json": [RESUME],
    "newest/model.safetensors": [RESUME],
    "newest/optimizer.safetensors": [RESUME],
    "ids.npy": [FROM_IDS],
    "small.yaml": [FROM_FILE],
}
OF_THE_RUN = ("run/model.safetensors", "run/tokenizer.json")  # whose hashes are known
ANOTHER = "another tool saved it"
STRANGE = ("null", "true", "-1", "1e999", "NaN", "[]", "{}", '"x"', '""', "10000000000", "0", "0.5")
STRANGE += ('"\\u001b[31m"',)
DEEP = "[" * 5000


def measure(folder: Path, whole: bool) -> Outcome:
    """Mutate, run, judge."""
    here, _ = made(folder / "made")
    run(EVAL, here)
    run(["tokenize", "text.txt", "--tokenizer", "run", "--out", "ids.npy"], here)
    (here / "small.yaml").write_text(YAML)
    load()
    outcome, codes, done = Outcome(), Counter[int](), 0
    wanted = CASES if whole else SOME
    while done < wanted:
        done += _batch(folder / "here", here, done, min(done + AT_ONCE, wanted), codes, outcome.failures)
    told = ", ".join(f"{codes[code]:,} ended with {code}" for code in sorted(codes))
    outcome.found = f"{done:,} files: {told}"
    return outcome


def _batch(
    here: Path, made_here: Path, first: int, end: int, codes: Counter[int], failures: list[str]
) -> int:
    """Cases from `first` on in a copy of this process; how many it came to."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(told)
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(made_here, here)
            os.chdir(here)
            _work(here, made_here, range(first, end), tells)
        finally:
            os._exit(0)
    os.close(tells)
    n, last, why = 0, "", ""
    with os.fdopen(told, "rb", buffering=0) as stream:
        rest = b""
        while True:
            if not select.select([stream], [], [], HANGS + 5)[0]:
                why = f"hangs for more than {HANGS:.0f} s"
                break
            block = stream.read(1 << 16)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                said = json.loads(line)
                last = said["case"]
                if "code" in said:
                    n += 1
                    codes[said["code"]] += 1
                    failures += [f"{last}: {problem}" for problem in said["problems"]]
                    last = ""
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if last:  # it did not come through its case
        n += 1
        failures.append(f"{last}: {why or f'the process ended ({status})'}")
    return n


def _work(here: Path, made_here: Path, cases: range, tells: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _size(), MEMORY + _size()))
    no_pictures()
    newest = checkpoints(here / "run")[-1]
    for number in cases:
        draws = random.Random(number)
        name = draws.choice(list(READERS))
        path = newest / name.removeprefix("newest/") if name.startswith("newest/") else here / name
        args = draws.choice(READERS[name])
        whole = path.read_bytes()
        changed, how = mutated(whole, name, draws)
        path.write_bytes(changed)
        case = f"case {number}: {name}, {how}, {' '.join(args[:2])}"
        os.write(tells, json.dumps({"case": case}).encode() + b"\n")
        began = time.monotonic()
        code, said = call(args)
        took = time.monotonic() - began
        problems = judge(code, said)
        problems += [f"took {took:.0f} s"] * (took > HANGS)
        if name.startswith("newest/") and changed != whole and "mended" not in how:
            problems += ["a checkpoint is taken that its hashes refuse"] * ("continuing after step 6" in said)
        if code == 0 and changed != whole and name in OF_THE_RUN and args is not TOKENIZE:
            problems += ["a file is taken that its hash refuses, without a word"] * (ANOTHER not in said)
        line = {"case": case, "code": code, "problems": problems}
        os.write(tells, json.dumps(line).encode() + b"\n")
        shutil.rmtree(here / "other", ignore_errors=True)
        if args is RESUME:
            shutil.rmtree(here / "run")
            shutil.copytree(made_here / "run", here / "run")
        else:
            path.write_bytes(whole)


def _size() -> int:
    """Bytes of address space that this process has."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def call(args: list[str]) -> tuple[int, str]:
    """The command line's entry function in this process: its exit code, and what it said on stderr."""
    from tformer.cli import main

    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")
    before = sys.argv, sys.stdout, sys.stderr, sys.stdin
    sys.argv, sys.stdout, sys.stderr, sys.stdin = ["tformer", *args], out, err, io.TextIOWrapper(io.BytesIO())
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        return 99, f"Traceback: {error!r}"
    finally:
        sys.argv, sys.stdout, sys.stderr, sys.stdin = before
    out.flush()
    err.flush()
    text = err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    return int(code or 0), text  # type: ignore[call-overload]


def judge(code: int, said: str) -> list[str]:
    """What is wrong with how a command ended."""
    errors = [line for line in said.splitlines() if line.startswith("tformer: error: ")]
    problems = [f"ended with {code}: {said[-200:]}"] * (code not in (0, 1, 2))
    problems += [f"{len(errors)} errors and exit code {code}: {said[-200:]}"] * (len(errors) != (code != 0))
    problems += [f"a bug: {errors}"] * ("this is a bug" in said)
    problems += [f"a traceback: {said[-300:]}"] * ("Traceback" in said or "panicked" in said)
    return problems + ["a terminal escape in an error"] * any("\x1b" in line for line in errors)


def mutated(data: bytes, name: str, draws: random.Random) -> tuple[bytes, str]:
    """A file that is not what it was, and how."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [_flip, _cut, _splice, _fill]
    if name.endswith((".json", ".jsonl", ".yaml")):
        ways += [_value, _value, _value, _line, _deep]
    way = draws.choice(ways)
    changed, how = way(data, draws), way.__name__.removeprefix("_")
    if name.endswith("manifest.json") and draws.random() < 0.5:
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            from tformer.run.manifest import manifest_hash

            values = json.loads(changed)
            values["sha256"] = manifest_hash(values)
            return json.dumps(values).encode(), f"{how}, its hash mended"
    return changed, how


def _flip(data: bytes, draws: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draws.choice((1, 1, 2, 8, 64))):
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draws: random.Random) -> bytes:
    return data[: draws.randrange(len(data))]


def _splice(data: bytes, draws: random.Random) -> bytes:
    a, b, c = sorted(draws.randrange(len(data)) for _ in range(3))
    return draws.choice(
        (data[:a] + data[b:], data[:b] + data[a:], data[:a] + data[b:c] + data[a:b] + data[c:])
    )


def _fill(data: bytes, draws: random.Random) -> bytes:
    a, b = sorted(draws.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + draws.choice((bytes(b - a), b"\xff" * (b - a), draws.randbytes(b - a))) + data[b:]


def _value(data: bytes, draws: random.Random) -> bytes:
    """Another value after a colon."""
    found = list(re.finditer(rb": ?([^,\n\[{}\]]+)", data))
    if not found:
        return _flip(data, draws)
    place = draws.choice(found)
    return data[: place.start(1)] + draws.choice(STRANGE).encode() + data[place.end(1) :]


def _line(data: bytes, draws: random.Random) -> bytes:
    """A line taken away, or written twice."""
    lines = data.splitlines(keepends=True)
    at = draws.randrange(len(lines))
    return b"".join(lines[:at] + draws.choice(([], [lines[at]] * 2)) + lines[at + 1 :])


def _deep(data: bytes, draws: random.Random) -> bytes:
    at = draws.randrange(len(data))
    return data[:at] + DEEP.encode() + data[at:]


ROW = Row(
    "mutated files",
    "mutated checkpoints, configurations, tokenizers, token files, metrics and records through the command "
    "line's entry function",
    "20,000: no traceback, no hang over 10 s, nothing accepted that a checksum refuses",
    measure,
)
