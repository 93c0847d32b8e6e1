"""A run of ours that transformers trained further comes back: what was fixed in it is taken as learned."""

from pathlib import Path

import pytest
import torch
import transformers

from tests.text.test_merges import TEXT
from tformer import load
from tformer.cli import app
from tformer.run.huggingface import notes_of

SMALL = ("--set", "model.family=gpt2", "--set", "model.n_layers=2", "--set", "model.d_model=16")
SHAPE = (*SMALL, "--set", "model.n_heads=2", "--set", "model.n_ctx=16")
STEPS = ("--steps", 3, "--batch-size", 2, "--device", "cpu", "--precision", "fp32")
POSITIONS = "its positions are no longer {}, as trained elsewhere: taken as learned"
BIASES = "its biases are no longer zero, as trained elsewhere: taken as biases"
KINDS = {
    "sinusoidal": (("model.positions=sinusoidal",), [POSITIONS.format("sinusoids")]),
    "none": (("model.positions=none",), [POSITIONS.format("zeros")]),
    "without biases": (("model.bias=false",), [BIASES]),
    "neither, untied": (
        ("model.positions=sinusoidal", "model.bias=false", "model.tied=false"),
        [POSITIONS.format("sinusoids"), BIASES],
    ),
}


def tformer(*args: object) -> int:
    """The command, in this process."""
    return app([str(arg) for arg in args], standalone_mode=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    Path("day.txt").write_text(TEXT)
    yield tmp_path
    torch.set_flush_denormal(False)  # the command sets it, for its process


def trained_elsewhere(kind: str, steps: int = 3, dtype: torch.dtype = torch.float32):
    """`runs/own`, a run of ours, trained further by transformers and saved as `back`."""
    settings = [part for setting in KINDS[kind][0] for part in ("--set", setting)]
    tformer("train", "day.txt", "--tokenizer", "char", *SHAPE, *settings, *STEPS, "--out", "own")
    model = transformers.AutoModelForCausalLM.from_pretrained("own")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([load("own")[1].encode(TEXT)[:16]])
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(dtype).save_pretrained("back")
    transformers.AutoTokenizer.from_pretrained("own").save_pretrained("back")
    return model.float().eval(), ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_transformers_trained_comes_back_and_it_is_said(place, kind, capsys):
    theirs, ids = trained_elsewhere(kind)
    said = KINDS[kind][1]
    mine, _ = load("back")
    assert torch.allclose(mine(ids), theirs(ids).logits, atol=1e-5)
    capsys.readouterr()
    for command in (
        ("sample", "Shall", "--run", "back", "--max-tokens", 3),
        ("eval", "loss", "--run", "back", "--data", "day.txt", "--device", "cpu"),
        ("eval", "causality", "--run", "back", "--device", "cpu"),
        ("train", "day.txt", "--init-from", "back", *STEPS, "--out", "tuned"),
    ):
        tformer(*command)
        err = capsys.readouterr().err
        for note in said:
            assert f"back: {note}" in " ".join(err.split()), command[:2]
    tuned, _ = load("tuned")
    assert tuned.config == mine.config.model_copy(update={"dropout": tuned.config.dropout})
    again = transformers.AutoModelForCausalLM.from_pretrained("tuned").eval()
    assert torch.allclose(tuned(ids), again(ids).logits, atol=1e-5)
    assert not notes_of(Path("tuned"), tuned.config), "what it began from has been taken up"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_only_saved_again_is_as_it_was(place, kind):
    trained_elsewhere(kind, steps=0)
    mine, own = load("back")[0], load("own")[0]
    assert mine.config == own.config and not notes_of(Path("back"), mine.config)


def test_sinusoids_that_were_rounded_are_taken_as_they_are(place):
    theirs, ids = trained_elsewhere("sinusoidal", steps=0, dtype=torch.bfloat16)
    mine, _ = load("back")
    assert mine.config.positions == "learned"
    assert torch.allclose(mine(ids), theirs(ids).logits, atol=1e-5)
