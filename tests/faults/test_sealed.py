"""What lies at the top of a run is what the run wrote: damage is refused, and another tool's work is said."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.command import run
from tests.conftest import needs_nanochat
from tests.faults.tiny import EVAL, SAMPLE, TRAIN, made, no_pictures, sha256
from tformer.run.loaded import load_run
from tformer.run.manifest import manifest_hash

CPU = ["--device", "cpu"]
READERS = {
    "sample": SAMPLE,
    "eval loss": EVAL,
    "eval causality": ["eval", "causality", "--run", "run", "--positions", "2", *CPU],
    "answer": ["answer", "5", "--run", "run"],
    "train --init-from": ["train", "text.txt", "--init-from", "run", "--out", "new", "--steps", "1", *CPU],
}
OF_TOKENIZER = {
    "sample": SAMPLE,
    "eval loss": EVAL,
    "answer": READERS["answer"],
    "tokenize": ["tokenize", "text.txt", "--tokenizer", "run", "--stats"],
    "train --init-from": READERS["train --init-from"],
    "train --tokenizer": [*TRAIN[:3], "new", *TRAIN[4:], "--tokenizer", "run"],
}
WEIGHTS, BY_ANOTHER = Path("run/model.safetensors"), "is not what the run wrote: another tool saved it"


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A text and a run, of which the best weights are not the last: those of its fourth step."""
    folder = made(tmp_path_factory.mktemp("sealed") / "here")[0]
    shutil.rmtree(folder / "run")
    judged = iter([3.0, 1.0, 2.0])

    def prepare():
        from tformer.training.session import Session

        no_pictures()
        Session.validate = lambda self: (next(judged), 1.0)

    run(*TRAIN, cwd=folder, prepare=prepare, check=0)
    return folder


@pytest.fixture
def here(there, tmp_path, monkeypatch) -> Path:
    shutil.copytree(there, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def flip(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 2
    path.write_bytes(data)


def told(*arguments: str, check: int = 0, **how) -> str:
    """What a command says on standard error, as one line."""
    return " ".join(run(*arguments, cwd=Path.cwd(), check=check, prepare=no_pictures, **how).stderr.split())


def errors(said: str) -> int:
    return said.count("tformer: error: ")


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_in_the_weights_of_a_run_is_refused_and_the_copy_is_named(here, reader):
    right = sha256(WEIGHTS)
    flip(WEIGHTS)
    said = told(*READERS[reader], check=2)
    assert errors(said) == 1 and "run/model.safetensors is damaged (sha256 " in said
    _, _, command = said.partition("put it back: cp ")
    copy, place = command.split()
    shutil.copyfile(copy, place)
    assert sha256(WEIGHTS) == right
    if reader != "answer":  # which has a lot to measure
        assert "damaged" not in told(*READERS[reader])


def test_weights_of_which_there_is_no_copy_are_refused_as_well(here):
    shutil.rmtree("run/checkpoints")
    flip(WEIGHTS)
    assert "is damaged" in told(*SAMPLE, check=2)
    shutil.copytree("run", "copied")
    Path("copied/tformer.yaml").unlink()  # as files are that were fetched from the Hub
    assert "copied/model.safetensors is damaged" in told(*SAMPLE, "--run", "copied", check=2)


@pytest.mark.parametrize("damage", ["a bit", "gone"])
def test_a_run_that_goes_on_has_the_weights_back_that_it_kept(here, damage):
    right = sha256(WEIGHTS)
    flip(WEIGHTS) if damage == "a bit" else WEIGHTS.unlink()
    said = told(*TRAIN, "--resume")
    assert ("run/model.safetensors was damaged, and is written again" in said) == (damage == "a bit")
    assert sha256(WEIGHTS) == right != sha256(Path("run/checkpoints/step-00000006/model.safetensors"))


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_weights_that_another_tool_saved_in_a_run_are_taken_and_it_is_said(here, family):
    if family == "nanochat":
        needs_nanochat()
        shutil.rmtree("run")
        told(*TRAIN, "--set", "model.family=nanochat")
    assert BY_ANOTHER not in told(*SAMPLE)
    model = transformers.AutoModelForCausalLM.from_pretrained("run")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained("run")
    assert f"run: model.safetensors {BY_ANOTHER}" in told(*SAMPLE)
    ids = torch.arange(8)[None]
    assert torch.allclose(load_run(Path("run")).model(ids), model.eval()(ids).logits, atol=1e-4)


def test_the_same_tensors_written_by_hand_are_another_tools(here):
    tensors = load_file(WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, WEIGHTS, {"format": "pt"})
    for name in ("sample", "eval loss", "eval causality"):
        assert BY_ANOTHER in told(*READERS[name])


def test_a_run_of_an_older_version_has_no_seal_and_its_manifests_know_the_weights(here):
    for path in [*Path("run/checkpoints").glob("*/model.safetensors"), WEIGHTS]:
        save_file(load_file(path), path, {"format": "pt"})
    for path in Path("run/checkpoints").glob("*/manifest.json"):
        values = json.loads(path.read_text())
        values["files"]["model.safetensors"]["sha256"] = sha256(path.with_name("model.safetensors"))
        values["kept"]["sha256"] = sha256(WEIGHTS)
        path.write_text(json.dumps(values | {"sha256": manifest_hash(values)}))
    assert BY_ANOTHER not in told(*SAMPLE)
    flip(WEIGHTS)
    assert BY_ANOTHER in told(*SAMPLE)


# ---------------------------------------------------------------------------- what lies beside them


@pytest.mark.parametrize("reader", OF_TOKENIZER)
def test_a_tokenizer_that_was_changed_is_refused(here, reader):
    path = Path("run/tokenizer.json")
    path.write_bytes(path.read_bytes().replace(b'"T"', b'"U"'))
    said = told(*OF_TOKENIZER[reader], check=2)
    assert errors(said) == 1
    assert "run/tokenizer.json is not the one that this run was trained with (sha256 " in said


def test_a_tokenizer_that_another_tool_saved_is_taken_and_it_is_said(here):
    transformers.AutoTokenizer.from_pretrained("run").save_pretrained("run")
    assert "tokenizer.json is not the one that it was trained with" in told(*SAMPLE)
    assert "tokenizer.json is not the one that it was trained with" in told(*EVAL)
    told(*OF_TOKENIZER["tokenize"])


def test_another_architecture_than_was_trained_is_said(here):
    path = Path("run/config.json")
    path.write_text(path.read_text().replace('"n_head": 1', '"n_head": 2'))
    for name in ("sample", "eval loss", "eval causality"):
        said = told(*READERS[name])
        assert "run: config.json is not as the run was made (n_heads 2, recorded is 1" in said
