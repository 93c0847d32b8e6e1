"""The model card of a run: what the Hub reads, what a person reads, and whose it is."""

import hashlib
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from tformer.cli import app
from tformer.config import Config
from tformer.run.card import CARD, model_card
from tformer.run.record import Origin, Record, read_record

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely; naïve ☂ 12345\n" * 30
SHAPE = ("--set", "model.n_layers=1", "--set", "model.d_model=16", "--set", "model.n_heads=2")
SMALL = ("--tokenizer", "char", *SHAPE, "--set", "model.n_ctx=16", "--batch-size", 2)
STEPS = ("--steps", 4, "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    Path("day.txt").write_text(TEXT)
    yield tmp_path
    torch.set_flush_denormal(False)  # the command sets it, for its process


def train(*args: object) -> None:
    """The command, in this process."""
    app(["train", *[str(arg) for arg in args]], standalone_mode=False)


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_the_hub_reads_the_figures_of_the_run_from_its_card(place, family, capsys):
    train(place / "day.txt", *SMALL, *STEPS, "--set", f"model.family={family}", "--out", "poems", "--json")
    result = json.loads(capsys.readouterr().out)
    card = ModelCard.load("poems/README.md")
    card_data = card.data.to_dict()
    assert card_data["library_name"] == "transformers"
    assert card_data["pipeline_tag"] == "text-generation"
    assert card_data["tags"] == ["tformer", family]
    assert "license" not in card_data, "that is for whoever publishes"
    assert card.data.model_name == "poems"
    figures = {found.metric_type: found for found in card.data.eval_results}
    assert figures["loss"].metric_value == pytest.approx(result["val_loss"], abs=1e-4)
    assert figures["perplexity"].metric_value == pytest.approx(math.exp(result["val_loss"]), rel=1e-3)
    assert figures["bits_per_byte"].metric_value == pytest.approx(result["bits_per_byte"], abs=1e-4)
    assert figures["loss"].dataset_name == "day.txt" and figures["loss"].dataset_type == "text"
    assert f"{figures['loss'].metric_value:g}" in card.text
    assert f"of {result['parameters']:,} parameters" in card.text and "4, " in card.text
    written = Path("poems/README.md").read_bytes()
    assert read_record(Path("poems")).card == hashlib.sha256(written).hexdigest()


def test_no_path_of_the_machine_is_in_it(place):
    train(place / "day.txt", *SMALL, *STEPS, "--out", place / "first")
    train(place / "day.txt", "--init-from", place / "first", *STEPS, "--batch-size", 2, "--out", "second")
    for run in ("first", "second"):
        text = (place / run / CARD).read_text()
        assert str(place) not in text and str(place.parent) not in text and os.sep + "tmp" not in text
    assert "trained from the weights of `first` on `day.txt`" in text


def test_its_example_runs_as_it_stands(place, monkeypatch, capsys):
    train("day.txt", *SMALL, *STEPS, "--out", "poems")
    text = Path("poems/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(place / "poems")
    capsys.readouterr()
    exec(code.replace("PROMPT", "Shall"), {})
    assert capsys.readouterr().out.startswith("Shall")
    (command,) = re.findall(r"`tformer (sample .*?)`", text)
    words = command.replace('"PROMPT"', "Shall").split()
    app([*words, "--max-tokens", "2"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("Shall")


def test_a_card_that_nobody_edited_is_renewed_and_one_that_was_is_left(place):
    train("day.txt", *SMALL, *STEPS, "--out", "poems")
    card = Path("poems/README.md")
    first = card.read_text()
    train("day.txt", *SMALL, *STEPS[2:], "--steps", 6, "--out", "poems", "--resume")
    second = card.read_text()
    assert second != first and "| steps | 6, " in second
    card.write_text(second + "\nMy own words.\n")
    train("day.txt", *SMALL, *STEPS[2:], "--steps", 8, "--out", "poems", "--resume")
    assert card.read_text() == second + "\nMy own words.\n"
    train("day.txt", *SMALL, *STEPS, "--out", "poems", "--overwrite")
    assert card.read_text() == second + "\nMy own words.\n"
    card.unlink()
    train("day.txt", *SMALL, *STEPS[2:], "--steps", 5, "--out", "poems", "--resume")
    assert "| steps | 5, " in card.read_text(), "one that was removed comes back"
    train("day.txt", *SMALL, *STEPS, "--out", "poems", "--overwrite")
    assert "| steps | 4, " in card.read_text(), "the card of the run that gave way was ours"


def test_a_card_of_before_the_run_is_left(place):
    train("day.txt", *SMALL, *STEPS, "--out", "poems")
    Path("poems/README.md").write_text("mine")
    record = Path("poems/tformer.yaml")
    record.write_text(re.sub(r"\n  card: .*", "", record.read_text()))
    train("day.txt", *SMALL, *STEPS[2:], "--steps", 6, "--out", "poems", "--resume")
    assert Path("poems/README.md").read_text() == "mine"


def test_a_run_without_validation_has_a_card_without_figures(place):
    train("day.txt", *SMALL, *STEPS, "--set", "data.val_fraction=0", "--out", "poems")
    card = ModelCard.load("poems/README.md")
    assert card.data.eval_results is None and "## Loss" not in card.text


def test_names_of_others_do_no_harm_in_it():
    names = [
        "a\n---\nlicense: mit",
        "`x`|y<b>\x1b[1m",
        "C:\\Users\\me\\my poems.txt",
        "/home/me/secret/",
        "-",
    ]
    record = Record.model_validate(
        {
            "data": {"source": names},
            "result": {"val_loss": 2.0, "bits_per_byte": float("nan"), "steps": 1, "tokens": 2},
        }
    )
    text = model_card("na`me\n# x", Config(), record)
    front = yaml.safe_load(text.split("---\n")[1])
    assert "license" not in front and "\x1b" not in text
    assert [m["type"] for m in front["model-index"][0]["results"][0]["metrics"]] == ["loss", "perplexity"]
    assert "Users" not in text and "home" not in text and "`my poems.txt`, `secret`, `standard input`" in text
    assert text.split("\n---\n", 1)[1].lstrip().startswith("# na'me # x\n")


def test_what_began_on_the_hub_names_its_base_and_commit():
    origin = Origin(source="openai-community/gpt2", commit="1" * 40)
    text = model_card("tuned", Config(), Record(init_from=origin))
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "openai-community/gpt2"
    assert "from the weights of `openai-community/gpt2` at `111111111111`" in text


def test_what_the_guide_publishes_has_no_path_of_the_machine(place):
    guide = (Path(__file__).parents[2] / "examples/guide/questions.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^hf upload (.*)$", guide, re.MULTILINE)
    train(place / "day.txt", *SMALL, *STEPS, "--out", place / "first")
    train(place / "day.txt", "--init-from", place / "first", *STEPS, "--batch-size", 2, "--out", "poems")
    app(["eval", "loss", "--run", "poems", "--data", str(place / "day.txt")], standalone_mode=False)
    files = [path.relative_to("poems").as_posix() for path in Path("poems").rglob("*") if path.is_file()]
    left_out = re.findall(r'--exclude "?([^" ]+)', command)
    published = set(filter_repo_objects(files, ignore_patterns=left_out))
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= published
    assert not any(name.startswith("checkpoints") for name in published)
    for name in published:
        assert str(place).encode() not in (Path("poems") / name).read_bytes(), name
    for name in set(left_out) - {"checkpoints/*"}:
        assert name in files, "what is left out is there"
