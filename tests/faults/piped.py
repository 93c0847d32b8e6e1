"""A gigabyte of text from a pipe: the memory that it takes, and whether the ids are those of one piece.

Of characters, the oracle is a table made of the vocabulary, over all of it; of BPE, the encoding of a part
of the text as a whole.
"""

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from tests.faults.row import Outcome, Row
from tformer.text.tokenizer import Tokenizer

GIGABYTE, PART, SOME = 1_000_000_000, 20_000_000, 2_000_000
BLOCK, BLOCKS = 1_000_000, 50  # bytes of one, and how many differ
MOST = 300  # MB
WORDS = (
    "To be, or not to be,",
    "that is the question:\n",
    "Whether 'tis nobler",
    "in the mind",
    "to suffer\n",
)
RUNS = """
import pathlib, re, sys
from tformer.cli import main
try:
    main()
finally:
    print(re.search("VmHWM: *(.*) kB", pathlib.Path("/proc/self/status").read_text().replace("\\t", " "))[1])
"""


@cache
def block(number: int) -> bytes:
    """Text of exactly a million bytes, each block another."""
    draws = random.Random(number)
    text = " ".join(draws.choices((*WORDS, "a" * 30, "    ", "9 1 88"), k=BLOCK // 8)).encode()
    assert len(text) >= BLOCK
    return text[:BLOCK]


def measure(folder: Path, whole: bool) -> Outcome:
    """Both vocabularies."""
    if not Path("/proc/self/status").exists():
        return Outcome(skipped="nothing says how much memory a process held")
    outcome, told = Outcome(), []
    for kind, size in (("char", GIGABYTE), ("bpe", PART)) if whole else (("char", SOME), ("bpe", SOME)):
        tokenizer = Tokenizer.train(kind, [block(0).decode(), block(1).decode()], 512)
        path, out = folder / f"{kind}.json", folder / f"{kind}.npy"
        path.write_text(tokenizer.to_json())
        code, megabytes = piped(size // BLOCK, path, out)
        if code != 0:
            outcome.failures.append(f"{kind}: ended with {code}")
            continue
        ids = np.load(out, mmap_mode="r")
        equal = _as_by_table(path, ids, size // BLOCK) if kind == "char" else _as_one_piece(path, ids, size)
        outcome.failures += [f"{kind}: other ids"] * (not equal)
        outcome.failures += [f"{kind}: {megabytes:.0f} MB"] * (megabytes > MOST)
        told.append(f"{kind}: {size / 1e6:,.0f} MB, {len(ids):,} ids, {megabytes:.0f} MB of memory")
        out.unlink()
    outcome.found = "; ".join(told)
    return outcome


def piped(n_blocks: int, tokenizer: Path, out: Path) -> tuple[int, float]:
    """The exit code of `tformer tokenize -`, and the most memory that it held, in MB."""
    arguments = ["tokenize", "-", "--tokenizer", str(tokenizer), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin and process.stdout
    with process.stdin as stream:
        for number in range(n_blocks):
            stream.write(block(number % BLOCKS))
    with process.stdout as said:
        kilobytes = said.read().strip()
    return process.wait(), int(kilobytes or 0) / 1000


def _as_by_table(path: Path, ids: np.ndarray, n_blocks: int) -> bool:
    table = np.full(256, -1)
    for token, number in json.loads(path.read_text())["model"]["vocab"].items():
        if len(token) == 1 and ord(token) < 256:
            table[ord(token)] = number
    expected = [table[np.frombuffer(block(n), dtype=np.uint8)] for n in range(min(n_blocks, BLOCKS))]
    return len(ids) == n_blocks * BLOCK and all(
        np.array_equal(ids[n * BLOCK : (n + 1) * BLOCK], expected[n % BLOCKS]) for n in range(n_blocks)
    )


def _as_one_piece(path: Path, ids: np.ndarray, size: int) -> bool:
    text = b"".join(block(n % BLOCKS) for n in range(size // BLOCK)).decode()
    return np.array_equal(ids, np.asarray(Tokenizer.load(path).encode(text)))


ROW = Row(
    "pipe",
    "tokenizing 1 GB from a pipe",
    f"at most {MOST} MB of memory, the ids of one piece",
    measure,
)
