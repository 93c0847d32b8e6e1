"""The catalogue of what others get wrong, each case through the command: one line, the exit code, no harm.

A case makes one thing wrong in a folder with a text and a run, and runs a command there. What it ends with
and what it says are written here by hand; nothing that existed may change. A request that is wrong leaves
nothing; a training that could not be done leaves a run to go on with.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.faults.kill import run
from tests.faults.row import Outcome, Row
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, checkpoints, made, no_pictures

Change = Callable[[Path], object]
RESUME = [*TRAIN, "--resume", "--steps", "7"]
NEW = [*TRAIN[:3], "new", *TRAIN[4:]]
STATS = ["tokenize", "text.txt", "--tokenizer", "run", "--stats"]
LEARN = ["tokenize", "text.txt", "--train", "--tokenizer", "char", "--out", "made.json"]
ATTENTION = ["eval", "attention", "--prompt", "To be", "--run", "run", "--device", "cpu"]
CAUSALITY = ["eval", "causality", "--run", "run", "--device", "cpu"]
ANSWER = ["answer", "5", "--run", "run"]
READERS = {"sample": SAMPLE, "eval loss": EVAL, "eval causality": CAUSALITY, "answer": ANSWER}
SOME = 12  # of the sample: every so manyth case


@dataclass(frozen=True)
class Case:
    """What is wrong, the command, its exit code, and what it says of that (of 0: anywhere in its lines)."""

    name: str
    args: list[str]
    code: int
    says: str
    change: Change = lambda here: None
    prepare: Callable[[], object] = lambda: None  # in the process of the command


def put(name: str, content: bytes | str) -> Change:
    """A file with other content."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda here: (here / name).write_bytes(data)


def values(name: str, **changes: Any) -> Change:
    """Other values in a JSON file."""

    def change(here: Path) -> None:
        path = here / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Other tensors in the file of a run."""

    def changed(here: Path) -> None:
        path = here / "run" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return changed


def cut(name: str) -> Change:
    """Half of a file."""
    return lambda here: (here / name).write_bytes(
        (here / name).read_bytes()[: (here / name).stat().st_size // 2]
    )


def of_checkpoints(n: int, change: Callable[[Path], object]) -> Change:
    """The same done to the newest `n`."""
    return lambda here: [change(path) for path in checkpoints(here / "run")[-n:]]


def spoil(folder: Path) -> None:
    """A flipped bit in the weights of a checkpoint."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def manifest(**changes: Any) -> Callable[[Path], object]:
    """Other values in a manifest, with the hash that goes with them."""

    def change(folder: Path) -> None:
        from tformer.run.manifest import manifest_hash

        path = folder / "manifest.json"
        said = json.loads(path.read_text()) | changes
        said["sha256"] = manifest_hash(said)
        path.write_text(json.dumps(said))

    return change


def array(name: str, ids: np.ndarray) -> Change:
    """A token file."""
    return lambda here: np.save(here / name, ids, allow_pickle=True)


def stdin(data: bytes) -> Callable[[], object]:
    """Something in the pipe."""
    return lambda: setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def no_memory() -> None:
    """A model that finds none."""
    from tformer.model import Transformer

    def forward(self: object, *args: object, **options: object) -> object:
        raise MemoryError

    Transformer.forward = Transformer.hidden = forward  # type: ignore[method-assign,assignment]
    no_pictures()


def offline(error: Exception) -> Callable[[], object]:
    """A network that fails so, and an empty cache."""

    def prepare() -> None:
        import urllib.request

        from tformer.text import corpus

        def refuse(*args: object, **options: object) -> object:
            raise error

        urllib.request.urlopen = refuse  # type: ignore[assignment]
        corpus.time.sleep = lambda seconds: None  # type: ignore[attr-defined,assignment]
        os.environ["TFORMER_CACHE"] = str(Path.cwd() / "cache")

    return prepare


def nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if tensors[name].dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()


def whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].to(torch.int32)


def fewer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(iter(tensors))]


def more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["more"] = torch.zeros(2)


def only_pickles(here: Path) -> None:
    (here / "run" / "model.safetensors").unlink()
    (here / "run" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b]\n"
OPEN = ["train", "text.txt", "--out", "new", "--device", "cpu"]
FROM_FILE = [*OPEN, "--config", "my.yaml"]
DIRECTORIES = {  # of a run, whatever reads it
    "a truncated file of weights": (
        2,
        r"cannot read run/model.safetensors.*is it whole",
        cut("run/model.safetensors"),
    ),
    "weights with a header of 2**60 bytes": (
        2,
        r"header too large.*is it whole",
        put("run/model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"),
    ),
    "a tensor of other numbers": (
        2,
        r"run: h\.0\.attn\.c_attn\.bias is torch\.int32 \(expected floating point",
        weights(whole_numbers),
    ),
    "a tensor of another shape": (2, r"is \(7, 24\) \(config\.json says \(8, 24\)", weights(other_shape)),
    "a missing tensor": (2, r"run lacks tensors \(missing h\.0", weights(fewer)),
    "a tensor too many": (2, r"tensors too many \(unexpected more", weights(more)),
    "a tensor that is not finite": (2, r"holds numbers that are not finite", weights(nan)),
    "pickled weights": (
        2,
        r"pytorch_model\.bin, which is pickle and is not read\); save it as safetensors",
        only_pickles,
    ),
    "a configuration of 10**9 layers": (
        2,
        r"run/config\.json sets n_layer to 1000000000 \(expected less than or equal to 1000",
        values("run/config.json", n_layer=10**9),
    ),
    "a configuration with NaN": (
        2,
        r"run/config\.json sets n_embd to nan \(expected .*valid integer",
        put("run/config.json", '{"model_type": "gpt2", "n_embd": NaN}'),
    ),
    "a deep configuration": (2, r"cannot read run/config\.json", put("run/config.json", "[" * 100_000)),
    "a configuration that is no object": (
        2,
        r"run/config\.json holds no object",
        put("run/config.json", "[]"),
    ),
    "another kind of model": (
        2,
        r"model_type 'llama' \(expected gpt2 or nanochat",
        values("run/config.json", model_type="llama"),
    ),
    "no configuration": (2, r"no config\.json in run", lambda here: (here / "run" / "config.json").unlink()),
    "a malformed tokenizer": (2, r"run/tokenizer\.json is not a tokenizer\.json", cut("run/tokenizer.json")),
    "a tokenizer that is none": (
        2,
        r"run/tokenizer\.json is not a tokenizer\.json",
        put("run/tokenizer.json", "{}"),
    ),
}
CHECKPOINTS = {  # of a run that is resumed
    "the newest checkpoint is damaged": (
        0,
        r"step-00000006.*sha256[\s\S]*continuing after step 4",
        of_checkpoints(1, spoil),
    ),
    "every checkpoint is damaged": (
        1,
        r"no checkpoint in run/checkpoints is whole .*start again in another --out",
        of_checkpoints(9, spoil),
    ),
    "a checkpoint of a newer format": (
        1,
        r"newer tformer \(format 99, .*\); upgrade",
        of_checkpoints(1, manifest(format=99)),
    ),
    "a manifest that leads out of the folder": (
        1,
        r"manifest\.json is not one of ours",
        of_checkpoints(9, manifest(files={"../../text.txt": {"bytes": 1, "sha256": ""}})),
    ),
    "a manifest that is cut short": (
        1,
        r"manifest\.json is not JSON",
        of_checkpoints(9, lambda folder: cut("manifest.json")(folder)),
    ),
    "a deep manifest": (
        1,
        r"manifest\.json is not JSON",
        of_checkpoints(9, lambda folder: (folder / "manifest.json").write_text("[" * 100_000)),
    ),
    "another text": (
        2,
        r"the data of this run has changed .*; leave --resume out",
        put("text.txt", "Another text.\n" * 80),
    ),
    "another tokenizer": (
        2,
        r"run/tokenizer\.json is not the one .*; put it back",
        lambda here: (here / "run" / "tokenizer.json").write_text(
            (here / "run" / "tokenizer.json").read_text().replace('"T"', '"\u00a7"')
        ),
    ),
    "a record that is no YAML": (
        2,
        r"run/tformer\.yaml, line 1 is not YAML",
        put("run/tformer.yaml", "a: ["),
    ),
}
SETTINGS = {  # in --config
    "10**9 layers": (
        2,
        r"model\.n_layers in my\.yaml .*less than or equal to 1000",
        "model:\n  n_layers: 1000000000\n",
    ),
    "NaN": (2, r"train\.lr in my\.yaml .*finite number", "train:\n  lr: .nan\n"),
    "a key twice": (2, r"my\.yaml, line 3 .*'lr' is given twice", "train:\n  lr: 1\n  lr: 2\n"),
    "an unknown key": (
        2,
        r"unknown key train\.lerning_rate in my\.yaml; did you mean",
        "train:\n  lerning_rate: 1\n",
    ),
    "a wrong type": (2, r"train\.steps in my\.yaml .*'many'", "train:\n  steps: many\n"),
    "deep nesting": (2, r"nested too deeply", "[" * 100_000),
    "a tag": (2, r"my\.yaml, line 1 .*tag", "train: !!python/object/apply:os.system ['touch owned']\n"),
    "aliases of aliases": (2, r"aliases have no use here", BOMB),
    "bytes that are no text": (2, r"my\.yaml \(not UTF-8", b"train:\n  lr: \xff\n"),
    "a list": (2, r"my\.yaml holds no settings", "- 1\n"),
}
TEXTS = {  # that are trained on
    "an empty text": (2, r"is empty \(expected (text|at least one character)", b""),
    "a text of two characters": (
        2,
        r"has 2 tokens \(expected at least n_ctx \+ 1 = 9\); give more text",
        b"ab",
    ),
    "a text that is not UTF-8": (2, r"is not UTF-8 at byte 6 \(found 0xff\)", b"To be \xff or not"),
    "UTF-16": (2, r"is UTF-16 .*iconv -f UTF-16 -t UTF-8", "To be, or not to be".encode("utf-16")),
    "a gzip file of another name": (2, r"packed with gzip .*zcat", b"\x1f\x8b\x08\x00" + bytes(60)),
    "NUL bytes": (2, r"is UTF-16LE without a byte order mark", b"a\0b\0c\0" * 100),
    "a pickle": (2, r"is no text: it has many NUL bytes", b"\x80\x02}q\x00." * 30),
}
IDS = {  # token files that are trained on
    "an id that the tokenizer lacks": (
        2,
        r"ids\.npy has id 60000 \(the tokenizer has 24 ids",
        array("ids.npy", np.full(200, 60_000, np.uint16)),
    ),
    "an id beyond uint16": (
        2,
        r"ids\.npy has id 70000 \(the tokenizer has 24 ids",
        array("ids.npy", np.full(200, 70_000, np.uint32)),
    ),
    "signed ids": (
        2,
        r"ids\.npy holds int64 .*expected unsigned ids",
        array("ids.npy", np.zeros(200, np.int64)),
    ),
    "ids in two dimensions": (
        2,
        r"ids\.npy holds uint16 of shape \(20, 20\)",
        array("ids.npy", np.zeros((20, 20), np.uint16)),
    ),
    "objects": (2, r"cannot read the token file ids\.npy", array("ids.npy", np.array([{}], object))),
    "a file of odd length": (
        2,
        r"cannot read the token file ids\.npy",
        lambda here: (here / "ids.npy").write_bytes((here / "ids.npy").read_bytes()[:-1]),
    ),
    "as few ids as a window": (
        2,
        r"has 7 tokens \(expected at least n_ctx \+ 1 = 9",
        array("ids.npy", np.zeros(8, np.uint16)),
    ),
}
OUTPUTS = {  # where a file or a run is to be written, and what is said of that
    "train into a file": ([*TRAIN[:3], "text.txt", *TRAIN[4:]], r"text\.txt is a file"),
    "train into a run that is there": (TRAIN, r"run exists .*--overwrite, --resume"),
    "train into a folder of others": ([*TRAIN[:3], "others", *TRAIN[4:]], r"others exists .*not a run\)"),
    "tokenize --out a folder": ([*LEARN[:-1], "others"], r"others is a folder"),
    "tokenize --out a file that is there": ([*LEARN[:-1], "text.txt"], r"text\.txt exists; .*--overwrite"),
    "tokenize --out in no folder": ([*LEARN[:-1], "none/made.json"], r"no folder none"),
    "eval --out a file that is there": (
        [*ATTENTION, "--out", "there.svg"],
        r"there\.svg exists; .*--overwrite",
    ),
    "eval --out in no folder": ([*ATTENTION, "--out", "none/made.svg"], r"no folder none"),
    "eval --out of another kind": ([*ATTENTION, "--out", "made.pdf"], r"ending in \.svg or \.png"),
    "answer --report that is there": ([*ANSWER, "--report", "there.md"], r"there\.md exists; .*--overwrite"),
    "answer --report in no folder": ([*ANSWER, "--report", "none/made.md"], r"no folder none"),
}
WORDS = {  # on the command line
    "a text that is not there": (
        [*TRAIN[:1], "none.txt", *NEW[2:]],
        r"no data at none\.txt .*expected a file",
    ),
    "a run that is not there": (["sample", "T", "--run", "none"], r"no run 'none' .*; train one with"),
    "a tokenizer that is not there": (
        ["tokenize", "text.txt", "--tokenizer", "none.json"],
        r"no tokenizer at none\.json .*; make one with",
    ),
    "a passage file that is not there": (
        ["eval", "lambada", "--run", "run", "--data", "none.jsonl"],
        r"cannot read none\.jsonl",
    ),
    "a question that is none": (["answer", "zzzz"], r"no question 'zzzz' .*expected 1 to 6"),
    "a device that is not there": (
        [*SAMPLE[:-1], "mps" if not torch.backends.mps.is_available() else "cuda"],
        r"is not there .*; use cpu",
    ),
    "an empty --stop": ([*SAMPLE, "--stop", ""], r"--stop is empty"),
    "a prompt out of the vocabulary": (
        ["sample", "\u2603", "--run", "run", "--device", "cpu"],
        r"U\+2603\) at the prompt, line 1, column 1",
    ),
    "an option that is none": (["train", "text.txt", "--setp"], r"No such option: --setp .*--steps"),
    "10**9 layers by --set": (
        [*NEW, "--set", "model.n_layers=1000000000"],
        r"model\.n_layers in the command line .*1000000000",
    ),
    "NaN by --set": ([*NEW, "--set", "train.lr=nan"], r"train\.lr in the command line .*nan"),
    "a file to begin from": (
        [*NEW, "--init-from", "text.txt"],
        r"text\.txt is a file \(expected a model directory",
    ),
    "escapes in a name": (
        ["tokenize", "\x1b[31mnone.txt", "--tokenizer", "run"],
        r"no data at \ufffd\[31mnone\.txt",
    ),
    "a step that has no checkpoint": (
        [*SAMPLE, "--step", "5"],
        r"no checkpoint of step 5 in run \(it has 4, 6",
    ),
}
NO_HARM = {  # cases that are no faults
    "a prompt longer than the context": (
        ["sample", "To be, " * 20, "--run", "run", "--max-tokens", "2", "--device", "cpu"],
        0,
    ),
    "an empty prompt": (["sample", "", "--run", "run", "--max-tokens", "2", "--device", "cpu"], 0),
    "a file of one line": (["tokenize", "long.txt", "--tokenizer", "run", "--stats"], 0),
    "CRLF and a byte order mark": (["tokenize", "crlf.txt", *LEARN[2:]], 0),
    "a run that is finished": ([*TRAIN, "--resume"], 0),
}


STEP = r"with 2 windows of 8 tokens at a time \(a model of [\d,]+ parameters\)"
NO_MEMORY = [  # commands, and what they are told to ask less of
    (
        NEW,
        rf"out of memory {STEP}; go on with --resume --set train\.micro_batch_size=1, which makes the same",
    ),
    (EVAL, r"out of memory; give a shorter text, a run with a smaller model"),
    ([*SAMPLE, "--json"], r"out of memory; lower -n \(it is 1\) or --max-tokens \(it is 2\)"),
    (["answer", "5"], r"out of memory; leave --full or --run out"),
]


def cases() -> list[Case]:
    """All of them."""
    found = [
        Case(f"{command}: {name}", args, code, says, change)
        for name, (code, says, change) in DIRECTORIES.items()
        for command, args in READERS.items()
        if "tokenizer" not in name or command != "eval causality"  # which reads none
    ]
    found += [
        Case(f"train --resume: {n}", RESUME, code, says, change)
        for n, (code, says, change) in CHECKPOINTS.items()
    ]
    found += [
        Case(f"train --config: {n}", FROM_FILE, code, says, put("my.yaml", text))
        for n, (code, says, text) in SETTINGS.items()
    ]
    for n, (code, says, text) in TEXTS.items():
        found.append(Case(f"train: {n}", NEW, code, says, put("text.txt", text)))
        piped = [*NEW[:1], "-", *NEW[2:]]
        found.append(Case(f"train -: {n}", piped, code, says, prepare=stdin(text)))
        if n != "a text of two characters":
            found.append(Case(f"tokenize --train: {n}", LEARN, code, says, put("text.txt", text)))
    from_ids = ["train", "ids.npy", *("run/tokenizer.json" if word == "char" else word for word in NEW[2:])]
    found += [
        Case(f"train IDS: {n}", from_ids, code, says, change) for n, (code, says, change) in IDS.items()
    ]
    found += [Case(n, args, 2, says) for n, (args, says) in (OUTPUTS | WORDS).items()]
    found += [Case(n, args, code, "") for n, (args, code) in NO_HARM.items()]
    found += [Case(f"{args[0]}: out of memory", args, 1, says, prepare=no_memory) for args, says in NO_MEMORY]
    named = [*NEW[:1], "tinyshakespeare", *NEW[2:]]
    found.append(
        Case(
            "download: no network",
            named,
            1,
            "could not download .*unreachable.*by hand",
            prepare=offline(OSError("Network is unreachable")),
        )
    )
    found.append(
        Case(
            "download: no network for LAMBADA",
            ["eval", "lambada", "--run", "run"],
            1,
            "could not download .*unreachable.*by hand",
            prepare=offline(OSError("Network is unreachable")),
        )
    )
    found.append(
        Case("train: a loss that is not finite", [*NEW, "--lr", "1e30"], 1, "diverged at step .*--lr")
    )
    return found


def judge(case: Case, code: int, said: str) -> list[str]:
    """What is wrong with how a command ended."""
    errors = [line for line in said.splitlines() if line.startswith("tformer: error: ")]
    found = [f"ended with {code}, not {case.code}: {said[-300:]}"] * (code != case.code)
    found += [f"{len(errors)} errors: {said[-300:]}"] * (len(errors) != (case.code != 0))
    found += [f"a bug: {said[-300:]}"] * (
        "this is a bug" in said or "Traceback" in said or "panicked" in said
    )
    found += ["a terminal escape"] * ("\x1b" in said)
    about = errors[0] if errors else said
    return found + [f"does not say {case.says!r}: {about}"] * (not re.search(case.says, about))


def contents(here: Path) -> dict[str, str]:
    """Every file of a folder, as its hash."""
    files = (path for path in here.rglob("*") if path.is_file())
    return {str(path.relative_to(here)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tried(case: Case, made_here: Path, here: Path) -> tuple[int, str, list[str]]:
    """A case: how the command ended, what it said, and what is not as it should be."""
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(made_here, here)
    case.change(here)
    before = contents(here)
    code, said = run(case.args, here, prepare=case.prepare)
    found = judge(case, code, said)
    if case.code:
        after = contents(here)
        found += [f"{name} is not as it was" for name in before if after.get(name) != before[name]]
    if case.code == 2:
        found += [f"{name} is left" for name in after if name not in before]
        found += ["a folder is left"] * ((here / "new").exists())
    return code, said, found


def place(folder: Path) -> Path:
    """A folder with all that the cases need."""
    here, _ = made(folder)
    run(["tokenize", "text.txt", "--tokenizer", "run", "--out", "ids.npy"], here)
    (here / "others").mkdir()
    for name in ("others/letter.txt", "there.svg", "there.md"):
        (here / name).write_text("somebody's")
    (here / "long.txt").write_text("To be or not to be " * 50_000)
    (here / "crlf.txt").write_bytes(b"\xef\xbb\xbfTo be,\r\nor not\r\n")
    return here


def measure(folder: Path, whole: bool) -> Outcome:
    """Every case, or some."""
    here = place(folder / "made")
    outcome, chosen = Outcome(), cases()[:: 1 if whole else SOME]
    for case in chosen:
        outcome.failures += [f"{case.name}: {problem}" for problem in tried(case, here, folder / "here")[2]]
    outcome.found = f"{len(chosen)} cases: each has its exit code and its line, and what existed is as it was"
    return outcome


ROW = Row(
    "catalogue",
    "every case of the catalogue of bad input, in each command that reads it",
    "its exit code, one line that names it, no traceback; what existed is as it was",
    measure,
)
