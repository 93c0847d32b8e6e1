"""Directories that others made, as they are found: the tokenizer in two files, or what is not there."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests.text.test_merges import END, TEXT, two_files
from tformer import load
from tformer.cli import app
from tformer.errors import RequestError

STEPS = ("--steps", 2, "--batch-size", 2, "--device", "cpu", "--precision", "fp32")


def tformer(*args: object) -> int:
    """The command, in this process."""
    return app([str(arg) for arg in args], standalone_mode=False)


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working directory with a text and `old`: a small GPT-2 with vocab.json and merges.txt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    Path("day.txt").write_text(TEXT)
    folder = two_files(tmp_path / "old")
    torch.manual_seed(0)
    values = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, **ends)).save_pretrained(folder)
    yield folder
    torch.set_flush_denormal(False)  # the command sets it, for its process


def test_two_files_are_the_tokenizer_of_a_run_and_of_what_is_trained_further(old, capsys):
    theirs = transformers.GPT2TokenizerFast.from_pretrained(old)(TEXT + END)["input_ids"]
    assert load("old")[1].encode(TEXT + END) == theirs
    tformer("eval", "loss", "--run", "old", "--data", "day.txt", "--json", "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["tokens"] == len(theirs) - 2, "targets, without the end"
    tformer("train", "day.txt", "--init-from", "old", *STEPS, "--out", "tuned")
    back = transformers.AutoTokenizer.from_pretrained("tuned")
    assert back(TEXT + END)["input_ids"] == theirs and back.eos_token == END
    tformer("train", "day.txt", "--tokenizer", "old", *STEPS, "--set", "model.n_ctx=16", "--out", "mine")
    assert load("mine")[1].encode(TEXT) == theirs[:-1]


# ---------------------------------------------------------------------------- what is not there

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n"


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name, text="", instead_of=()):
    def change(folder):
        remove(*instead_of)(folder)
        (folder / name).write_text(text)

    return change


def shards(folder):
    """The weights in several files, one of which is not there."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    remove("model.safetensors")(folder)
    model.save_pretrained(folder, max_shard_size="10KB")
    sorted(folder.glob("model-*"))[1].unlink()


def adapter(*instead_of):
    return put(
        "adapter_config.json", '{"base_model_name_or_path": "openai-community/gpt2"}', instead_of=instead_of
    )


def trainer(folder):
    """What Trainer leaves: the model in a folder for each checkpoint."""
    (folder / "checkpoint-500").mkdir()
    (folder / "config.json").rename(folder / "checkpoint-500" / "config.json")
    remove("model.safetensors")(folder)


def all_shards(folder):
    shards(folder)
    remove(*(path.name for path in folder.glob("model-*")))(folder)


MERGED = r"AutoPeftModelForCausalLM.from_pretrained\(DIR\).merge_and_unload\(\)"
LACKING = {
    "pickled weights": (
        put("pytorch_model.bin", instead_of=["model.safetensors"]),
        r"no model.safetensors in old \(found pytorch_model.bin, which is pickle.*from_pretrained\('old'\)",
    ),
    "a checkpoint of nanoGPT": (
        put("ckpt.pt", instead_of=["model.safetensors", "config.json"]),
        r"no config.json in old \(found ckpt.pt, which is pickle",
    ),
    "an adapter": (
        adapter("model.safetensors", "config.json"),
        rf"old is an adapter, a change to the weights of openai-community/gpt2 .*{MERGED}",
    ),
    "an adapter with a config": (adapter("model.safetensors"), f"old is an adapter.*{MERGED}"),
    "a pointer for weights": (
        put("model.safetensors", POINTER),
        r"old/model.safetensors is a pointer of Git LFS .*git -C old lfs pull$",
    ),
    "a pointer for the config": (put("config.json", POINTER), "config.json is a pointer .*git -C old lfs"),
    "a shard that is missing": (shards, r"old lacks model-00002-of-\d+.safetensors \(.*names \d+ files\)"),
    "all of its shards": (all_shards, r"old lacks model-00001.*00003.* \(.*names 3 files\)"),
    "shards without their index": (
        lambda folder: (shards(folder), remove("model.safetensors.index.json")(folder)),
        "no model.safetensors.index.json in old",
    ),
    "weights without a config": (remove("config.json"), "no config.json in old .model.safetensors alone"),
    "a config alone": (remove("model.safetensors"), "no model.safetensors in old .config.json is there"),
    "another format": (
        put("model.gguf", instead_of=["model.safetensors"]),
        "no model.safetensors in old .found model.gguf",
    ),
    "folders of checkpoints": (
        trainer,
        "no model in old itself .found checkpoint-500 .*: old/checkpoint-500$",
    ),
    "nothing of the kind": (
        remove("model.safetensors", "config.json", "generation_config.json"),
        "no model in old .expected config.json and model.safetensors, found merges.txt, vocab.json",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_a_directory_lacks_is_said_by_what_is_there(old, case):
    change, said = LACKING[case]
    change(old)
    for command in (
        ("sample", "To", "--run", "old"),
        ("train", "day.txt", "--init-from", "old", *STEPS),
        ("eval", "loss", "--run", "old", "--data", "day.txt"),
    ):
        with pytest.raises(RequestError, match=said) as error:
            tformer(*command)
        assert len(str(error.value).splitlines()) == 1
    assert not Path("runs").exists()


def test_a_file_is_no_directory(old):
    with pytest.raises(RequestError, match=r"model.safetensors is a file .*name the folder"):
        tformer("sample", "To", "--run", "old/model.safetensors")


NO_TOKENIZER = {
    "none": (["vocab.json", "merges.txt"], None, "expected tokenizer.json, or vocab.json and merges.txt"),
    "half of one": (["merges.txt"], None, "found vocab.json without merges.txt"),
    "the other half": (["vocab.json"], None, "found merges.txt without vocab.json"),
    "of another kind": (
        ["vocab.json", "merges.txt"],
        "tokenizer.model",
        "found tokenizer.model, which is another",
    ),
}


@pytest.mark.parametrize("case", NO_TOKENIZER)
def test_trained_weights_without_a_tokenizer_are_never_told_to_make_one(old, case):
    gone, instead, said = NO_TOKENIZER[case]
    remove(*gone)(old)
    if instead:
        (old / instead).write_text("")
    for command in (("sample", "To", "--run", "old"), ("tokenize", "day.txt", "--tokenizer", "old")):
        with pytest.raises(RequestError, match=f"no tokenizer in old .{said}") as error:
            tformer(*command)
        assert "--train" not in str(error.value)
    with pytest.raises(RequestError, match=r"no tokenizer in old .*--tokenizer FILE"):
        tformer("train", "day.txt", "--init-from", "old", *STEPS)


def test_a_pointer_in_place_of_a_tokenizer_is_named(old):
    (old / "tokenizer.json").write_text(POINTER)
    with pytest.raises(RequestError, match=r"tokenizer.json is a pointer of Git LFS"):
        tformer("sample", "To", "--run", "old")
