"""A GGUF file holds the run: read back with gguf, and by transformers' own reader, with the same logits."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_model
from tformer.config import Config
from tformer.errors import RequestError
from tformer.run.checkpoint import Run
from tformer.run.huggingface import to_hf
from tformer.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely, and more temperate; naïve ☂\n" * 3


@pytest.fixture(scope="module")
def example():
    """examples/export_gguf.py as a module."""
    path = Path(__file__).parents[2] / "examples" / "export_gguf.py"
    spec = importlib.util.spec_from_file_location("export_gguf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder, kind="bpe", end_of_text=False, **changes):
    """A run with random weights, whose vocabulary has five ids more than its tokenizer."""
    tokenizer = Tokenizer.train(kind, [TEXT], 290, end_of_text=end_of_text)
    model = tiny_model(vocab_size=tokenizer.vocab_size + 5, **changes)
    run = Run(folder)
    run.write_identity(Config().updated("model", **model.config.model_dump()), tokenizer)
    run.write_weights(model)
    run.close()
    return model, tokenizer


def text_of(reader, key):
    """A string, or a list of them, of the metadata."""
    return reader.fields[key].contents()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"tied": False, "positions": "sinusoidal", "bias": False, "d_mlp": 24}]
)
def test_the_file_holds_every_tensor_and_the_vocabulary(tmp_path, example, changes, half):
    model, tokenizer = write_run(tmp_path / "run", **changes)
    example.export(str(tmp_path / "run"), tmp_path / "m.gguf", half)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: torch.from_numpy(t.data.copy()).float() for t in reader.tensors}
    layout = to_hf(model.config, model.state_dict())
    assert len(tensors) == len(layout)
    for name, tensor in layout.items():
        found = tensors[example.gguf_name(name)]
        expected = tensor.T if ".h." in f".{name}" and tensor.ndim == 2 else tensor
        assert torch.allclose(found, expected, atol=1e-3 if half else 0), name
    c = model.config
    assert text_of(reader, "general.architecture") == "gpt2"
    assert text_of(reader, "gpt2.context_length") == c.n_ctx
    assert text_of(reader, "gpt2.feed_forward_length") == c.d_mlp
    assert text_of(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(c.norm_eps)
    assert (text_of(reader, "tokenizer.ggml.model"), text_of(reader, "tokenizer.ggml.pre")) == (
        "gpt2",
        "gpt-2",
    )
    tokens = text_of(reader, "tokenizer.ggml.tokens")
    assert tokens[: tokenizer.vocab_size] == [tokenizer.engine.id_to_token(i) for i in range(len(tokens) - 5)]
    assert len(tokens) == c.vocab_size and len(set(tokens)) == len(tokens)
    assert text_of(reader, "tokenizer.ggml.token_type")[-6:] == [1, 5, 5, 5, 5, 5]
    merges = [tuple(merge.split(" ")) for merge in text_of(reader, "tokenizer.ggml.merges")]
    assert merges == [tuple(m) for m in json.loads(tokenizer.to_json())["model"]["merges"]]


def test_the_end_is_the_token_that_ends_a_text(tmp_path, example):
    _, tokenizer = write_run(tmp_path / "run", end_of_text=True)
    example.export(str(tmp_path / "run"), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    end = text_of(reader, "tokenizer.ggml.eos_token_id")
    assert end == tokenizer.end_id
    assert text_of(reader, "tokenizer.ggml.tokens")[end] == "<|endoftext|>"
    assert text_of(reader, "tokenizer.ggml.token_type")[end] == gguf.TokenType.CONTROL


def test_without_such_a_token_the_end_is_one_that_no_text_holds(tmp_path, example):
    _, tokenizer = write_run(tmp_path / "run")
    example.export(str(tmp_path / "run"), tmp_path / "m.gguf")
    end = text_of(gguf.GGUFReader(tmp_path / "m.gguf"), "tokenizer.ggml.eos_token_id")
    assert tokenizer.token_bytes[end] == b"\xff"


def test_transformers_reads_the_file_with_the_same_logits(tmp_path, example):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # transformers' reader of GGUF wants it
    model, _ = write_run(tmp_path / "run", tied=False, n_ctx=1024)  # the only length that the reader knows
    example.export(str(tmp_path / "run"), tmp_path / "m.gguf")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="m.gguf")
    ids = torch.randint(290, (2, 16))
    assert torch.allclose(theirs(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("word", {}, "whole words"),
        ("char", {}, "single characters"),
        ("bpe", {"family": "nanochat"}, "nanochat"),
        ("bpe", {"activation": "gelu"}, "gelu_new alone"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_with_the_reason(tmp_path, example, kind, changes, named):
    write_run(tmp_path / "run", kind, **changes)
    with pytest.raises(RequestError, match=named):
        example.export(str(tmp_path / "run"), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_nothing_that_exists_is_overwritten(tmp_path, example):
    write_run(tmp_path / "run")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(RequestError, match="exists"):
        example.export(str(tmp_path / "run"), tmp_path / "m.gguf")
