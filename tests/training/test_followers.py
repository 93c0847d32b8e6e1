"""What the processes do that are not the first: their share of the work, and nothing to the run."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.test_noted import TEXT, config
from tests.training.test_ranks import metrics, side_by_side
from tests.training.test_sharded import CPU, UNEVEN, Told
from tformer.errors import TformerError
from tformer.evals import loss
from tformer.run import kept_ids
from tformer.run.checkpoint import open_run
from tformer.run.data import Data, prepare_data
from tformer.text.tokenizer import Tokenizer
from tformer.training import following, opening
from tformer.training.compiled import CompileError
from tformer.training.following import follow, lead
from tformer.training.opening import Prepared, open_session
from tformer.training.settings import decide

CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watched() -> None:
    """Have a process leave in `told-RANK` what it changes in the run, and how many windows it scores."""
    told = open(f"told-{os.environ['RANK']}", "a", buffering=1)  # noqa: SIM115
    kept_ids.LONG = 10  # characters: any text is kept
    loss.TOKENS_AT_ONCE = 16  # a window at a time
    score = loss.cross_entropy

    def hook(event, args):
        if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, Path)) else ""
            if "run" in Path(path).parts:
                told.write(f"{event} {path}\n")

    def scored(logits, targets):
        told.write(f"scored {targets.numel()}\n")
        return score(logits, targets)

    sys.addaudithook(hook)
    loss.cross_entropy = scored


def test_they_write_nothing_and_score_their_share_of_an_evaluation(tmp_path):
    words = (*UNEVEN, "--steps", 6, "--set", "train.checkpoint_every=2", "--out", "run")
    code, _, err = side_by_side(tmp_path, 2, *words, prepare=watched)
    assert code == 0, err
    first, second = ((tmp_path / f"told-{rank}").read_text().splitlines() for rank in (0, 1))
    assert list((tmp_path / "run" / "checkpoints").glob("ids-*")), "the ids are kept, by the first one"
    assert any(line.startswith("os.rename") for line in first), "what is looked for would be seen"
    assert [line for line in second if not line.startswith("scored")] == []
    evaluations = sum("val_loss" in line for line in metrics(tmp_path / "run"))
    windows = [sum(line.startswith("scored") for line in lines) for lines in (first, second)]
    targets = sum(int(line.split()[1]) for line in first + second if line.startswith("scored"))
    held_out = len(TEXT) - round(len(TEXT) * 0.9)
    assert evaluations == 2 and targets / evaluations == pytest.approx(held_out - 1, abs=1)
    assert windows[0] - windows[1] in (0, evaluations), "shared out"


def prepared(folder: Path, rank: int, **train: object) -> Prepared:
    (folder / "text.txt").write_text(TEXT)
    wanted = config(**train)
    data = prepare_data(wanted, [str(folder / "text.txt")], None)
    wanted = decide(wanted, CPU, data.tokenizer.vocab_size)
    return Prepared(wanted, data, CPU, ranks=Told(rank, 2))


def of_others(data: Data, what: str) -> Data:
    if what == "tokenizer":
        return replace(data, tokenizer=Tokenizer.train("char", [TEXT + "ß"]))
    field = {"text": "sha256", "validation text": "val_sha256"}[what]
    return replace(data, facts=data.facts.model_copy(update={field: "0" * 64}))


def test_one_that_reads_something_else_than_the_first_says_what(tmp_path):
    with open_run(tmp_path / "run") as run:
        lead(open_session(run, prepared(tmp_path, 0)), CPU)
    other = prepared(tmp_path, 1)
    follow(other)
    for what in ("text", "validation text", "tokenizer"):
        with pytest.raises(TformerError, match=f"process 1 reads another {what} than the first one"):
            follow(replace(other, data=of_others(other.data, what)))


def test_one_that_cannot_compile_says_so_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "compile_forward", lambda model, *rest: model)
    with open_run(tmp_path / "run") as run:
        lead(open_session(run, prepared(tmp_path, 0, compile="on")), CPU)

    def refuse(*args):
        raise CompileError("there is no C++ compiler")

    monkeypatch.setattr(following, "compile_forward", refuse)
    with pytest.raises(TformerError, match=r"process 1 cannot compile .*C\+\+.*; train with --no-compile"):
        follow(prepared(tmp_path, 1, compile="on"))
