"""`train --init-from`: directories that transformers or tformer wrote, trained further and loaded back."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tformer.cli import app
from tformer.errors import RequestError
from tformer.run.huggingface import load_model
from tformer.run.loaded import load
from tformer.text.tokenizer import Tokenizer
from tformer.yaml_text import parse_yaml

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely, and more temperate; naïve ☂\n" * 60
VOCAB = 300
GPT2 = {"vocab_size": VOCAB, "n_positions": 24, "bos_token_id": 0, "eos_token_id": 0}
NANOCHAT = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
SHAPES = {
    "gpt2": ("GPT2", GPT2 | {"n_embd": 24, "n_layer": 2, "n_head": 3}, torch.float32, "1GB"),
    "gpt2-untied-sharded": (
        "GPT2",
        GPT2
        | {
            "n_embd": 20,
            "n_layer": 3,
            "n_head": 5,
            "n_inner": 37,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-3,
            "resid_pdrop": 0.0,
        },
        torch.float32,
        "20KB",
    ),
    "gpt2-fp16": (
        "GPT2",
        GPT2 | {"n_embd": 16, "n_layer": 1, "n_head": 1, "activation_function": "relu"},
        torch.float16,
        "1GB",
    ),
    "nanochat-bf16": (
        "NanoChat",
        NANOCHAT
        | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 50},
        torch.bfloat16,
        "1GB",
    ),
    "nanochat-gqa-tied-sharded": (
        "NanoChat",
        NANOCHAT
        | {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "final_logit_softcapping": None,
            "rms_norm_eps": 1e-3,
            "intermediate_size": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
        torch.float32,
        "20KB",
    ),
}


def foreign_tokenizer(folder: Path):
    """A byte-level BPE as others train it: merges, a post-processor, a special token, truncation."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    engine.train_from_iterator([TEXT], trainer)
    engine.enable_truncation(5)
    engine.enable_padding(length=9, pad_id=0, pad_token="<|endoftext|>")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=engine, clean_up_tokenization_spaces=False)
    theirs.save_pretrained(folder)
    return theirs


def foreign_directory(folder: Path, shape: str):
    """A directory that transformers saved, with random weights, and the model that it loads from it."""
    name, values, dtype, shards = SHAPES[shape]
    torch.manual_seed(0)
    kind = getattr(transformers, {"GPT2": "GPT2LMHeadModel", "NanoChat": "NanoChatForCausalLM"}[name])
    model = kind(getattr(transformers, f"{name}Config")(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return theirs, foreign_tokenizer(folder)


def tformer(*args: object) -> int:
    """The command, in this process."""
    return app([str(arg) for arg in args], standalone_mode=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day.txt").write_text(TEXT)
    yield tmp_path
    torch.set_flush_denormal(False)  # the command sets it, for its process


STEPS = ("--steps", 10, "--batch-size", 2, "--device", "cpu", "--precision", "fp32")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_directory_of_transformers_is_evaluated_trained_further_and_loaded_back(place, shape, capsys):
    theirs, their_tokenizer = foreign_directory(place / "theirs", shape)
    mine, tokenizer = load("theirs")
    text = TEXT + "<|endoftext|>" + TEXT
    ids = tokenizer.encode(text)
    assert ids == their_tokenizer(text)["input_ids"], "all of the text, and the special token is one token"
    window = torch.tensor([ids[:24]])
    assert torch.allclose(mine(window), theirs(window).logits, atol=1e-4, rtol=1e-4)

    tformer("eval", "loss", "--run", "theirs", "--data", "day.txt", "--json", "--device", "cpu")
    result = json.loads(capsys.readouterr().out)
    day = torch.tensor([tokenizer.encode(TEXT)[:25]])
    (place / "line.txt").write_text(tokenizer.decode(day[0].tolist()))
    expected = torch.nn.functional.cross_entropy(theirs(day[:, :-1]).logits[0], day[0, 1:]).item()
    tformer("eval", "loss", "--run", "theirs", "--data", "line.txt", "--json", "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(expected, rel=1e-4)

    tformer("train", "day.txt", "--init-from", "theirs", *STEPS, "--out", "tuned", "--lr", "1e-2", "--json")
    after = json.loads(capsys.readouterr().out)
    assert after["val_loss"] < result["loss"], "ten steps on this very text"
    back, info = transformers.AutoModelForCausalLM.from_pretrained(place / "tuned", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert transformers.AutoTokenizer.from_pretrained(place / "tuned")(text)["input_ids"] == ids
    tuned, _ = load("tuned")
    assert torch.allclose(back(window).logits, tuned(window), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tuned(window), mine(window), atol=1e-2), "it has learned"


def test_the_weights_begin_as_the_directorys_and_are_recorded(place, capsys):
    foreign_directory(place / "theirs", "gpt2")
    tformer(
        "train",
        "day.txt",
        "--init-from",
        "theirs",
        *STEPS,
        "--out",
        "tuned",
        "--lr",
        "1e-30",
        "--set",
        "train.weight_decay=0",
        "--set",
        "model.dropout=0.0",
    )
    before, after = load_model(place / "theirs"), load_model(place / "tuned")
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name
    assert after.config == before.config.model_copy(update={"dropout": 0.0})
    record = parse_yaml((place / "tuned" / "tformer.yaml").read_text(), "")["record"]["init_from"]
    digest = hashlib.sha256((place / "theirs" / "model.safetensors").read_bytes()).hexdigest()
    assert record == {"source": str(place / "theirs"), "sha256": {"model.safetensors": digest}}
    assert f"beginning from {place / 'theirs'}" in capsys.readouterr().err


def test_resuming_goes_on_from_the_checkpoint_and_is_the_uninterrupted_run(place):
    foreign_directory(place / "theirs", "gpt2")
    command = (
        "train",
        "day.txt",
        "--init-from",
        "theirs",
        "--batch-size",
        2,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--set",
        "train.decay_fraction=0",
    )
    tformer(*command, "--steps", 6, "--out", "whole")
    tformer(*command, "--steps", 3, "--out", "parts", "--resume")
    shutil.rmtree(place / "theirs")
    tformer(*command, "--steps", 6, "--out", "parts", "--resume")
    whole, parts = (load_file(place / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resuming_before_the_first_checkpoint_begins_again_from_the_same_weights(place):
    foreign_directory(place / "theirs", "gpt2")
    command = ("train", "day.txt", "--init-from", "theirs", *STEPS)
    tformer(*command, "--out", "whole")
    shutil.copytree(place / "whole", place / "killed")
    shutil.rmtree(place / "killed" / "checkpoints")
    tformer(*command, "--out", "killed", "--resume")
    whole, again = (load_file(place / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    shutil.rmtree(place / "killed" / "checkpoints")
    foreign_directory(place / "theirs", "gpt2-fp16")
    with pytest.raises(RequestError, match="have changed"):
        tformer(*command, "--out", "killed", "--resume")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--set", "model.n_layers=3"), "model.n_layers is 2"),
        (("--set", "model.n_ctx=8"), "model.n_ctx is 24"),
        (("--tokenizer", "char"), "the tokenizer of theirs is bpe"),
        (("--tokenizer", "other.json"), "other.json is another"),
        (("--out", "theirs", "--overwrite"), "is what --init-from reads|theirs exists"),
        (("--init-from", "nowhere"), "no run 'nowhere'"),
        (("--init-from", ""), "no run ''"),
    ],
)
def test_what_the_directory_settles_cannot_be_set(place, args, named):
    foreign_directory(place / "theirs", "gpt2")
    (place / "other.json").write_text(Tokenizer.train("bpe", [TEXT * 2], 290).to_json())
    with pytest.raises(RequestError, match=named):
        tformer("train", "day.txt", "--init-from", "theirs", *STEPS, *args)
    assert not (place / "runs").exists(), "refused before anything is written"


def test_a_preset_gives_its_recipe_and_not_its_architecture(place):
    foreign_directory(place / "theirs", "gpt2")
    tformer("train", "day.txt", "--init-from", "theirs", "--preset", "nanogpt-char-cpu", *STEPS, "--out", "a")
    values = parse_yaml((place / "a" / "tformer.yaml").read_text(), "")
    assert values["model"]["d_model"] == 24 and values["data"]["tokenizer"] == "bpe"
    assert values["train"]["warmup_steps"] == 100 and values["train"]["batch_size"] == 2


def test_a_directory_without_tokenizer_says_what_to_do(place):
    foreign_directory(place / "theirs", "gpt2")
    (place / "theirs" / "tokenizer.json").rename(place / "own.json")
    command = ("train", "day.txt", "--init-from", "theirs", *STEPS)
    with pytest.raises(RequestError, match="--tokenizer FILE"):
        tformer(*command)
    with pytest.raises(RequestError, match="--tokenizer FILE"):
        tformer(*command, "--tokenizer", "bpe")
    tformer(*command, "--tokenizer", "own.json", "--out", "tuned")
    assert Tokenizer.load(place / "tuned").vocab_size == VOCAB


def test_reversal_goes_on_with_the_same_task_alone(place):
    small = ("--set", "data.reversal_length=3", "--set", "data.reversal_symbols=4")
    shape = ("--set", "model.n_ctx=5", "--set", "model.d_model=16", "--set", "model.n_heads=2")
    code = 0
    try:
        tformer("train", "reversal", *small, *shape, "--steps", 60, "--lr", "1e-2", "--out", "first")
    except Exception as error:  # the verdict of so short a training is of no interest here
        code = getattr(error, "exit_code", None)
    assert code in (0, 1)
    with pytest.raises(RequestError, match="alphabet of 26"):
        tformer("train", "reversal", "--init-from", "first", "--steps", 5)
    with pytest.raises(RequestError, match="expected 7"):
        tformer(
            "train",
            "reversal",
            "--init-from",
            "first",
            "--steps",
            5,
            *small[2:],
            "--set",
            "data.reversal_length=4",
        )
    tformer("train", "reversal", "--init-from", "first", *small, "--steps", 200, "--lr", "1e-2", "--out", "b")
    foreign_directory(place / "theirs", "gpt2")
    with pytest.raises(RequestError, match="the model's tokenizer is another"):
        tformer("train", "reversal", "--init-from", "theirs", "--steps", 5)


def test_a_run_that_began_elsewhere_is_not_resumed(place):
    foreign_directory(place / "theirs", "gpt2")
    tformer("train", "day.txt", "--init-from", "theirs", *STEPS, "--out", "tuned")
    with pytest.raises(RequestError, match="did not begin from other"):
        tformer("train", "day.txt", "--init-from", "other", *STEPS, "--out", "tuned", "--resume")


# ---------------------------------------------------------------------------- foreign tokenizers


@pytest.mark.parametrize(
    "split",
    [
        None,  # no pre-tokenization: a token may span words
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",  # as GPT-4's
    ],
)
def test_a_tokenizer_of_another_pre_tokenization_has_the_same_ids_on_long_texts(split):
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if split:
        steps.insert(0, tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    engine.decoder = tokenizers.decoders.ByteLevel()
    text = "the cat_\n\nsat_ \non the mat_\r\n" * 5000
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    engine.train_from_iterator([text[:3000]], trainer)
    mine = Tokenizer(engine)
    ids = mine.encode(text)
    assert ids == engine.encode(text, add_special_tokens=False).ids
    assert mine.decode(ids) == text


def test_a_vocabulary_with_holes_counts_to_its_last_id():
    engine = Tokenizer.train("bpe", [TEXT], 280).engine
    values = json.loads(engine.to_str())
    values["added_tokens"] = [
        {
            "id": 310,
            "content": "<|end|>",
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    ]
    mine = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))
    last = mine.encode("day<|end|>")[-1]
    assert mine.vocab_size == last + 1
    assert mine.n_bytes[last] == len("<|end|>") and len(mine.token_bytes) == mine.vocab_size


def test_random_encodings_are_refused():
    values = json.loads(Tokenizer.train("bpe", [TEXT], 280).to_json())
    values["model"]["dropout"] = 0.1
    with pytest.raises(RequestError, match="dropout"):
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))
