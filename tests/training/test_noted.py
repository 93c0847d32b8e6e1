"""What is measured at an evaluation: it moves no weight and no number, and comes back on resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tformer.config import Config
from tformer.evals.loss import octaves
from tformer.layers import Layer, merge, preset_layer
from tformer.run.checkpoint import open_run
from tformer.run.data import prepare_data
from tformer.text.tokenizer import Tokenizer
from tformer.training.fit import State
from tformer.training.noted import CHARACTERS, loss_by_position, sampled_line
from tformer.training.opening import Prepared, open_session
from tformer.training.settings import decide

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 10
HOOKS = (sampled_line, loss_by_position)


def config(**sections) -> Config:
    small = {"n_ctx": 8, "n_layers": 1, "n_heads": 2, "d_model": 8, "dropout": 0.2}
    steps = {
        "steps": 8,
        "batch_size": 2,
        "eval_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "fp32",
        "compile": "off",
    }
    return Config.model_validate(
        {"model": small, "data": sections.pop("data", {}), "train": steps | sections}
    )


def trained(folder: Path, wanted: Config, hooks, until: int = 0, source="text"):
    """Train, or go on, to the end or until a step."""
    (folder.parent / "text.txt").write_text(TEXT)
    sources = [str(folder.parent / "text.txt")] if source == "text" else [source]
    with open_run(folder) as run:
        own = Tokenizer.load(folder) if (folder / "tokenizer.json").exists() else None
        data = prepare_data(wanted, sources, own, run.record().data)
        wanted = decide(wanted, CPU, data.tokenizer.vocab_size)
        session = open_session(run, Prepared(wanted, data, CPU, at_evaluation=hooks))
        for _ in session.train(stop=lambda: session.state.step == until):
            pass
    return session


def lines(folder: Path, *without: str):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", *without)} for line in found]


# ---------------------------------------------------------------------------- at an evaluation


def test_a_sampled_line_moves_no_weight_and_no_number(tmp_path):
    for name, hooks in (("with", HOOKS), ("without", ())):
        (tmp_path / name).mkdir()
        trained(tmp_path / name / "run", config(), hooks)
    one, other = (tmp_path / name / "run" for name in ("with", "without"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [line["step"] for line in lines(one) if "sample" in line] == [3, 6, 8]
    assert lines(one, "sample", "by_position") == lines(other)


def test_a_resumed_run_samples_the_very_same_lines(tmp_path):
    trained(tmp_path / "whole", config(), HOOKS)
    trained(tmp_path / "parts", config(), HOOKS, until=5)
    torch.rand(9)
    trained(tmp_path / "parts", config(), HOOKS)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_sampling_leaves_torchs_random_numbers_alone_and_depends_on_seed_and_step(tmp_path):
    session = trained(tmp_path / "run", config(), ())
    before = torch.random.get_rng_state()
    first = sampled_line(session)["sample"]
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert sampled_line(session)["sample"] == first
    assert 0 < len(first) <= CHARACTERS
    assert sampled_line(replace(session, state=State(step=7)))["sample"] != first
    other = session.config.updated("train", seed=1)
    assert sampled_line(replace(session, state=State(step=8), config=other))["sample"] != first


def test_on_reversal_the_line_is_a_sequence_and_how_the_model_goes_on(tmp_path):
    wanted = merge(
        [
            preset_layer("reversal"),
            Layer(
                "",
                {
                    "data": {"reversal_length": 4},
                    "model": {"n_ctx": 7},
                    "train": {"steps": 1, "batch_size": 2},
                },
            ),
        ]
    )
    session = trained(tmp_path / "run", wanted, HOOKS, source="reversal")
    half, arrow, rest = lines(tmp_path / "run")[-1]["sample"].split(" ")
    assert (len(half), arrow, len(rest)) == (4, "→", 4)
    ids = session.data.tokenizer.encode(half)
    for letter in rest:  # the oracle: a loop over whole forward passes
        with torch.inference_mode():
            ids.append(int(session.model(torch.tensor([ids]))[0, -1].argmax()))
        assert session.data.tokenizer.text_of(ids[-1]) == letter


def test_without_a_validation_part_lines_are_sampled_all_the_same(tmp_path):
    trained(tmp_path / "run", config(data={"val_fraction": 0.0}, log_every=5), HOOKS)
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found if "sample" in line] == [3, 6, 8]
    assert not any("val_loss" in line or "by_position" in line for line in found)


def test_the_loss_by_position_adds_up_to_the_validation_loss(tmp_path):
    session = trained(tmp_path / "run", config(), HOOKS)
    spans = octaves(session.last_validation.by_position)
    assert [(a, b) for a, b, _ in spans] == [(1, 1), (2, 2), (3, 4), (5, 8)]
    n = len(session.data.val_ids) - 1
    counts = [sum(n // 8 + (i < n % 8) for i in range(a - 1, b)) for a, b, _ in spans]
    whole = [session.last_validation.by_position[i] * (n // 8 + (i < n % 8)) for i in range(8)]
    assert sum(whole) / n == pytest.approx(session.last_validation.loss)
    assert sum(counts) == n
    assert lines(tmp_path / "run")[-1]["by_position"] == [[b, round(mean, 4)] for _, b, mean in spans]
