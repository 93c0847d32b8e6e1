"""A reader in a loop beside a trainer that saves every step, and now and then begins again over its run.

Whatever moment it reads at, the weights are whole ones that the trainer wrote, and a sample is written.
"""

import hashlib
import os
import signal
import time
from pathlib import Path

from safetensors.torch import save as save_tensors

from tests.faults.kill import run, start
from tests.faults.mutated import call
from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import SAMPLE, TRAIN, no_pictures, place
from tformer.errors import TformerError
from tformer.run.find import find_run
from tformer.run.huggingface import to_hf
from tformer.run.loaded import load_run
from tformer.run.record import read_metrics

READS, SOME = 10_000, 200
BY_COMMAND = 20  # every so manyth read is `tformer sample`
STEPS = 300  # of the trainer, before it begins again with --overwrite
SAVES = {"keep": "last", "checkpoint_every": 1, "eval_every": 100, "steps": STEPS}
SAVING = [*TRAIN[: TRAIN.index("--steps")], *TRAIN[TRAIN.index("--steps") + 2 :]]
SAVING += [word for key, value in SAVES.items() for word in ("--set", f"train.{key}={value}")]


def measure(folder: Path, whole: bool) -> Outcome:
    """Read so often, while it trains."""
    here, log = place(folder / "here"), folder / "written"
    code, said = run([*SAVING, "--set", "train.steps=2"], here, prepare=lambda: _tells(log))
    assert code == 0, said
    outcome, seen, reads, runs = Outcome(), list[tuple[int, str]](), 0, 0
    trainer, stream = _trainer(here, log)
    before = os.getcwd()
    os.chdir(here)
    try:
        while reads < (READS if whole else SOME) and CLOCK.has_time():
            if os.waitpid(trainer, os.WNOHANG)[0]:
                os.close(stream)
                runs += 1
                trainer, stream = _trainer(here, log)
            reads += 1
            try:
                if reads % BY_COMMAND == 0:
                    code, said = call(SAMPLE)
                    outcome.failures += [f"read {reads}: sample ended with {code}: {said}"] * (code != 0)
                else:
                    seen.append((reads, _read(here)))
            except TformerError as error:
                outcome.failures.append(f"read {reads}: {error}")
    finally:
        os.chdir(before)
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
        os.close(stream)
    written = set(log.read_text().split())
    outcome.failures += [
        f"read {n}: weights that were never written" for n, sha in seen if sha not in written
    ]
    different = len({sha for _, sha in seen})
    outcome.found = f"{reads:,} reads of {different:,} different states, {runs + 1} trainings"
    outcome.found += f", {len(outcome.failures)} torn"
    return outcome


def _trainer(here: Path, log: Path) -> tuple[int, int]:
    return start([*SAVING, "--overwrite"], here, prepare=lambda: _tells(log))


def _tells(log: Path) -> None:
    """Have the trainer say which weights it is about to write."""
    from tformer.run import checkpoint

    no_pictures()
    real = checkpoint.Run.write_weights

    def write_weights(self, model):
        data = save_tensors(to_hf(model.config, model.state_dict()), {"format": "pt"})
        with log.open("a") as file:
            file.write(hashlib.sha256(data).hexdigest() + "\n")
        time.sleep(0.002)  # so that a reader comes in between as well
        return real(self, model)

    checkpoint.Run.write_weights = write_weights  # type: ignore[method-assign]


def _read(here: Path) -> str:
    """Which weights a reader has got, by the tensors that it holds."""
    loaded = load_run(find_run(str(here / "run")))
    assert loaded.tokenizer.vocab_size == loaded.model.config.vocab_size
    read_metrics(loaded.folder / "metrics.jsonl")
    data = save_tensors(to_hf(loaded.model.config, loaded.model.state_dict()), {"format": "pt"})
    return hashlib.sha256(data).hexdigest()


ROW = Row(
    "reader",
    "a reader in a loop beside a trainer that saves every step, and begins again over its run",
    "10,000 reads, none torn",
    measure,
)
