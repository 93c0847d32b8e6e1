"""Every byte of a small checkpoint and of the weights that a run keeps, changed: it is not taken.

Each bit of each byte on its own in the whole; one bit of some in the sample. What is read is compared with
what was written: a change that nothing notices, and that changes nothing, is told apart.
"""

import random
from pathlib import Path

import torch

from tests.faults.row import CLOCK, Outcome, Row
from tests.faults.tiny import checkpoints, made
from tformer.errors import TformerError
from tformer.model import Transformer
from tformer.run.huggingface import load_model
from tformer.run.loaded import load_run
from tformer.run.manifest import NOBODY, Checkpoint, read_checkpoint

SOME = 37  # of the sample: every so manyth byte


def measure(folder: Path, whole: bool) -> Outcome:
    """Flip, read, put it back."""
    here, _ = made(folder / "made")
    checkpoint, model = checkpoints(here / "run")[-1], load_model(here / "run", "cpu")
    right, draws, outcome = read_checkpoint(checkpoint, model, NOBODY), random.Random(7), Outcome()
    flips = n_bytes = 0
    kept = here / "run" / "model.safetensors"
    held = {path: path.read_bytes() for path in (*sorted(checkpoint.iterdir()), kept)}
    every = 1 if whole else SOME
    cases = [(path, place) for path in held for place in range(0, len(held[path]), every)]
    for path, place in CLOCK.mixed(cases):
        n_bytes, data = n_bytes + 1, held[path]
        for bit in range(8) if whole else [draws.randrange(8)]:
            flips += 1
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            problem = _kept(kept.parent, model) if path == kept else _taken(checkpoint, model, right)
            if problem:
                outcome.failures.append(f"{path.name}, byte {place}, bit {bit}: {problem}")
        path.write_bytes(data)
    outcome.found = f"{flips - len(outcome.failures):,} of {flips:,} flips of {n_bytes:,} bytes detected"
    return outcome


def _taken(checkpoint: Path, model: Transformer, right: Checkpoint) -> str:
    """How a checkpoint that was changed is taken; "" where it is not."""
    try:
        found = read_checkpoint(checkpoint, model, NOBODY)
    except TformerError:
        return ""
    same = all(
        read.keys() == wrote.keys() and all(read[name].equal(wrote[name]) for name in wrote)
        for read, wrote in ((found.model, right.model), (found.optimizer, right.optimizer))
    )
    same = same and found.manifest == right.manifest
    return "it is taken, and says the same" if same else "it is taken, and says something else"


def _kept(run: Path, model: Transformer) -> str:
    """How a run whose weights were changed is loaded; "" where it is not.

    In the name of the seal itself a change takes the seal away: then the weights are as they were, and it is
    said that another tool saved them.
    """
    try:
        found = load_run(run)
    except TformerError:
        return ""
    told = any("another tool saved it" in note for note in found.notes)
    same = all(map(torch.equal, found.model.parameters(), model.parameters()))
    return "" if told and same else f"it is taken, and the weights are {'the same' if same else 'others'}"


ROW = Row(
    "flips",
    "single flipped bits of a small checkpoint, in every byte of its three files, and of `model.safetensors`",
    "100 % detected",
    measure,
)
