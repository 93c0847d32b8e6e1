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


ADDED = {
    "a pad token": {"pad_token": "[PAD]"},
    "of a chat": {"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("end", ["true", "false"])
@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_run_to_whose_tokens_others_added_some_comes_back(place, kind, end, added, capsys):
    """As padding makes people do: the tokens are added, the embeddings resized, and both saved."""
    sizes = () if kind == "char" else ("--set", "data.vocab_size=300")
    settings = (*SHAPE, *sizes, "--set", f"data.end_of_text={end}")
    tformer("train", "day.txt", "--tokenizer", kind, *settings, *STEPS, "--out", "own")
    own = load("own")[1]
    theirs = transformers.AutoTokenizer.from_pretrained("own")
    assert theirs.add_special_tokens(ADDED[added]) > 0
    model = transformers.AutoModelForCausalLM.from_pretrained("own")
    model.resize_token_embeddings(len(theirs))
    model.config.pad_token_id = theirs.pad_token_id
    model.save_pretrained("back")
    theirs.save_pretrained("back")

    mine, tokenizer = load("back")
    assert tokenizer.kind == kind and tokenizer.vocab_size == len(theirs) > own.vocab_size
    ids = own.encode(TEXT)
    assert tokenizer.encode(TEXT) == ids == theirs(TEXT)["input_ids"] and tokenizer.decode(ids) == TEXT
    window = torch.tensor([ids[:16]])
    assert torch.allclose(mine(window), model.eval()(window).logits, atol=1e-5)
    capsys.readouterr()
    tformer("tokenize", "day.txt", "--tokenizer", "back")
    assert capsys.readouterr().out.split() == [str(i) for i in own.encode(Path("day.txt").read_text())]
    tformer("sample", "Shall", "--run", "back", "--max-tokens", 3)
    tformer("eval", "loss", "--run", "back", "--data", "day.txt", "--device", "cpu")
    tformer("train", "day.txt", "--init-from", "back", *STEPS, "--out", "tuned")
    again = transformers.AutoTokenizer.from_pretrained("tuned")
    assert again.pad_token == "[PAD]" and again.pad_token_id == theirs.pad_token_id
    assert len(again) == len(theirs) == load("tuned")[1].vocab_size


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
