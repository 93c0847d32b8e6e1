"""A run is interrupted at every one of its steps, each time anew, and resumed: to the bit.

At odd steps by SIGTERM, which saves, at even ones by SIGKILL, which does not. Compared are weights, the
newest checkpoint with its optimizer state, every line of metrics but its times, and the recorded result.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.faults.kill import run
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import no_pictures, place, state

STEPS = 100
SOME = (7, 64)  # of the sample
BASE = ["train", "text.txt", "--out", "run", "--resume", "--device", "cpu", "--no-compile"]
BASE += ["--tokenizer", "char", "--batch-size", "4"]
SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 8, "n_ctx": 8}
OFTEN = {"warmup_steps": 5, "log_every": 3, "eval_every": 25, "checkpoint_every": 7}
DROPOUT, PARTS = "model.dropout=0.1", "train.micro_batch_size=2"


def given(*settings: str) -> list[str]:
    """As `--set`."""
    return [word for setting in settings for word in ("--set", setting)]


SIZES = given(*(f"model.{k}={v}" for k, v in SMALL.items()))
OFTENS = given(*(f"train.{k}={v}" for k, v in OFTEN.items()))
ADAMW, MUON = "train.optimizer=adamw", "train.optimizer=muon"
NANOCHAT, LAST = "model.family=nanochat", "train.keep=last"
FP32, BF16 = ("--precision", "fp32"), ("--precision", "bf16")
SO_MANY = ("--steps", str(STEPS))
CONFIGURATIONS = {
    "gpt2, AdamW, dropout, accumulation": [*FP32, *SO_MANY, *SIZES, *given(ADAMW, DROPOUT, PARTS)],
    "nanochat, Muon, dropout, the last weights": [
        *(*FP32, *SO_MANY),
        *(*SIZES, *given(NANOCHAT, MUON, DROPOUT, LAST)),
    ],
    "gpt2, Muon, --patience": [
        *(*FP32, *SO_MANY, "--patience", "3"),
        *(*SIZES, *given(MUON, DROPOUT, "train.lr=0.03")),
    ],
    "nanochat, AdamW, bf16, accumulation": [
        *(*BF16, *SO_MANY),
        *(*SIZES, *given(NANOCHAT, ADAMW, PARTS, "model.n_kv_heads=1")),
    ],
    "gpt2, AdamW, --init-from": [*FP32, *SO_MANY, "--init-from", "older", *given(ADAMW, DROPOUT)],
    "nanochat, Muon, --minutes": [
        *(*FP32, "--minutes", "5"),
        *(*SIZES, *given(NANOCHAT, MUON, DROPOUT)),
    ],
}
OLDER = ["train", "text.txt", "--out", "older", "--device", "cpu", "--tokenizer", "char"]
OLDER += [*FP32, *SO_MANY, *SIZES, *OFTENS]


def measure(folder: Path, whole: bool) -> Outcome:
    """All configurations."""
    outcome, cases, equal = Outcome(), 0, 0
    ends = {}
    older = place(folder / "older")
    code, said = run(OLDER, older, prepare=no_pictures)
    assert code == 0, said
    for name, settings in CONFIGURATIONS.items():
        args = [*BASE, *settings, *OFTENS]
        there = folder / "whole"
        shutil.copytree(older, there)
        code, said = run(args, there, prepare=_prepared(0, 0))
        assert code == 0, f"{name}: {said}"
        ends[name] = args, _state(there / "run")
        shutil.rmtree(there)
    steps = range(1, STEPS + 1) if whole else SOME
    for name, step in CLOCK.mixed([(name, step) for name in ends for step in steps]):
        here = folder / "here"
        shutil.copytree(older, here)
        args, end = ends[name]
        problem = _resumed(args, here, step, end)
        shutil.rmtree(here)
        cases, equal = cases + 1, equal + (not problem)
        outcome.failures += [f"{name}, step {step}: {problem}"] if problem else []
    outcome.found = f"{equal} of {cases} bitwise ({'; '.join(CONFIGURATIONS)})"
    return outcome


def _resumed(args: list[str], here: Path, step: int, end: tuple[object, ...]) -> str:
    """What is wrong with a run that is interrupted at a step; "" if nothing."""
    number = signal.SIGTERM if step % 2 else signal.SIGKILL
    code, said = run(args, here, prepare=_prepared(step, number))
    if code == 0 and end[0][-1]["step"] < STEPS:  # type: ignore[index]
        return "" if _state(here / "run") == end else "it ended earlier, otherwise"
    if code != (143 if number == signal.SIGTERM else -9):
        return f"it was interrupted, and ended with {code}: {said[-300:]}"
    code, said = run(args, here, prepare=_prepared(0, 0))
    if code != 0:
        return f"resumed, it ended with {code}: {said[-300:]}"
    return "" if _state(here / "run") == end else "it came to another end"


def _state(run: Path) -> tuple[object, ...]:
    result = yaml.safe_load((run / "tformer.yaml").read_text())["record"]["result"]
    return *state(run), {key: value for key, value in result.items() if key != "seconds"}


def _prepared(step: int, number: int) -> Callable[[], None]:
    """A process that signals itself in a step, and has time for `STEPS` steps whatever the minutes."""

    def prepare() -> None:
        from tformer.training import budget, session

        no_pictures()
        budget.steps_within = lambda *rest: STEPS
        real = session.fit

        def fit(*rest):
            for done in real(*rest):
                if done.state.step == step:
                    os.kill(os.getpid(), number)
                yield done

        session.fit = fit

    return prepare


ROW = Row(
    "resume",
    "a run of 100 steps, interrupted at each of them and resumed, in six configurations",
    "600 of 600 bitwise",
    measure,
)
