"""An evaluation is recorded under the weights that were judged, and a run that is finished is judged once."""

import hashlib
import json
from pathlib import Path

from tests.faults.tiny import TRAIN
from tformer.cli import app
from tformer.evals.reversal import reversal
from tformer.training.session import Session

REVERSAL = ["train", "reversal", "--out", "run", "--device", "cpu", "--precision", "fp32", "--no-compile"]
REVERSAL += ["--steps", "4", "--set", "train.eval_every=2", "--set", "model.d_model=16", "--batch-size", "2"]


def lines() -> list[dict]:
    return [json.loads(line) for line in Path("run/evals.jsonl").read_text().splitlines()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_weights_that_are_replaced_meanwhile_are_not_those_that_were_judged(here, monkeypatch):
    app(TRAIN, standalone_mode=False)
    judged = Path("run/model.safetensors").read_bytes()
    from tformer.commands import eval_loss

    whole = eval_loss.keep

    def keep(*args):
        Path("run/new").write_bytes(Path("run/checkpoints/step-00000004/model.safetensors").read_bytes())
        Path("run/new").replace("run/model.safetensors")  # as a trainer does
        return whole(*args)

    monkeypatch.setattr(eval_loss, "keep", keep)
    app(["eval", "loss", "--run", "run", "--device", "cpu"], standalone_mode=False)
    assert sha256(Path("run/model.safetensors").read_bytes()) != sha256(judged), "they were replaced"
    assert lines()[-1]["weights"] == sha256(judged)


def test_weights_that_are_replaced_while_they_are_read_are_read_again(here, monkeypatch):
    app(TRAIN, standalone_mode=False)
    other = Path("run/checkpoints/step-00000004/model.safetensors").read_bytes()
    from tformer.run import loaded

    whole, times = loaded.load_model, []

    def load(folder, device="cpu"):
        model = whole(folder, device)
        if not times:
            Path("run/new").write_bytes(other)
            Path("run/new").replace("run/model.safetensors")
        times.append(1)
        return model

    monkeypatch.setattr(loaded, "load_model", load)
    app(["eval", "loss", "--run", "run", "--device", "cpu"], standalone_mode=False)
    assert lines()[-1]["weights"] == sha256(other) and len(times) == 2


def test_a_verdict_is_on_the_weights_that_are_kept(here, monkeypatch):
    losses = iter([(1.0, 1.0), (2.0, 1.0)])
    monkeypatch.setattr(Session, "validate", lambda self: next(losses))
    judged = []
    monkeypatch.setattr(
        "tformer.evals.reversal.reversal", lambda model, *rest: judged.append(model) or reversal(model, *rest)
    )
    app(REVERSAL, standalone_mode=False)
    from tformer.run.huggingface import load_model

    kept = load_model(Path("run"))
    assert all(a.equal(b) for a, b in zip(judged[0].parameters(), kept.parameters(), strict=True))
    assert lines()[0]["weights"] == sha256(Path("run/model.safetensors").read_bytes())


def test_a_finished_run_is_not_judged_again(here, capsys):
    tables = []
    for option in ("--overwrite", "--resume", "--resume"):
        app([*REVERSAL, option], standalone_mode=False)
        tables.append(capsys.readouterr().err.partition("position")[2].partition("run ")[0])
    assert len(lines()) == 1
    assert tables[0] and tables[0] == tables[1] == tables[2], "and says how it was judged all the same"
