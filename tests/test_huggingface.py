"""A run directory is a Hugging Face model directory: transformers is the oracle, both ways."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import FAMILIES, tiny_config, tiny_model
from safetensors.torch import load_file, save_file

from tformer.checkpoint import Run
from tformer.config import Config
from tformer.errors import RequestError
from tformer.huggingface import from_hf_config, load, load_model, to_hf, to_hf_config
from tformer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEXT = "Shall I compare thee to a summer's day?\nThou art more lovely, and more temperate; naïve ☂\n" * 3


def write_directory(folder, kind="char", **changes):
    """A directory as `train` leaves it, with random weights."""
    tokenizer = Tokenizer.train(kind, [TEXT], 300)
    model = tiny_model(vocab_size=tokenizer.vocab_size, **changes)
    run = Run(folder)
    run.write_identity(Config().updated("model", **model.config.model_dump()), tokenizer)
    run.write_weights(model)
    run.close()
    return model, tokenizer


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
@pytest.mark.parametrize("changes", FAMILIES, ids=["gpt2", "gpt2-sinusoidal", "nanochat", "nanochat-gqa"])
def test_transformers_loads_a_run_with_the_same_logits_ids_and_greedy_text(tmp_path, kind, changes):
    model, tokenizer = write_directory(tmp_path, kind, **changes)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode(TEXT)
    assert their_tokenizer(TEXT)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == TEXT
    inputs = torch.tensor([ids[:16], ids[16:32]])
    assert torch.allclose(theirs(inputs).logits, model(inputs), atol=1e-5, rtol=1e-5)
    mine = model.generate(inputs[:, :5], 10)
    generated = theirs.generate(inputs[:, :5], max_new_tokens=10, do_sample=False)
    assert torch.equal(generated, mine)


@pytest.mark.parametrize("changes", FAMILIES, ids=["gpt2", "gpt2-sinusoidal", "nanochat", "nanochat-gqa"])
def test_gradients_equal_transformers(tmp_path, changes):
    model, _ = write_directory(tmp_path, **changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(20, (2, 16))
    loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    theirs(ids, labels=ids).loss.backward()
    mine = to_hf(model.config, {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)})
    implied = {"wpe.weight"} if model.config.positions == "sinusoidal" else set()
    if model.config.family == "gpt2" and not model.config.bias:
        implied |= {name for name in mine if name.endswith(".bias")}
    compared = 0
    for name, parameter in theirs.named_parameters():
        if (name := name.removeprefix("transformer.")) not in implied:
            assert torch.allclose(mine[name], parameter.grad, atol=1e-5, rtol=1e-4), name
            compared += 1
    assert compared == len(mine) - len(implied)


@pytest.mark.parametrize("changes", FAMILIES, ids=["gpt2", "gpt2-sinusoidal", "nanochat", "nanochat-gqa"])
def test_a_run_loads_back_to_the_same_bits(tmp_path, changes):
    model, _ = write_directory(tmp_path, **changes)
    loaded, tokenizer = load(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    if loaded.config.tied:
        assert loaded.unembed.weight is loaded.embed.weight
    ids = torch.tensor([tokenizer.encode(TEXT)[:16]])
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_a_directory_that_transformers_saved_loads(tmp_path, dtype, shards):
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=3, n_inner=40,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    mine = load_model(tmp_path)
    ids = torch.randint(61, (2, 32))
    expected = theirs.float().eval()(ids).logits
    assert torch.allclose(mine(ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"activation_function": "swish"}, "activation"),
        ({"n_head": 3}, "n_heads"),
        ({"n_layer": 10**9}, "n_layers"),
    ],
)
def test_other_mathematics_is_refused_by_name(change, named):
    values = to_hf_config(tiny_config()) | change
    with pytest.raises(RequestError, match=named):
        from_hf_config(values, "config.json")


def test_rotary_parameters_are_read_in_both_forms_and_others_refused():
    values = to_hf_config(tiny_config(family="nanochat", rope_theta=500.0))
    assert from_hf_config(values, "c").rope_theta == 500.0
    old = {k: v for k, v in values.items() if k != "rope_parameters"} | {"rope_theta": 77.0}
    assert from_hf_config(old, "c").rope_theta == 77.0
    scaled = values | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    with pytest.raises(RequestError, match="rotary"):
        from_hf_config(scaled, "c")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.pop("h.1.mlp.c_fc.weight"), "missing h.1.mlp.c_fc.weight"),
        (lambda t: t.update({"h.9.ln_1.weight": torch.ones(16)}), "unexpected h.9.ln_1.weight"),
        (lambda t: t.update({"wte.weight": torch.ones(3, 3)}), "wte.weight is"),
        (lambda t: t.update({"ln_f.weight": torch.ones(16, dtype=torch.int64)}), "floating"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, spoil, named):
    write_directory(tmp_path, family="gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=named):
        load_model(tmp_path)


def test_a_bias_that_the_configuration_denies_is_refused(tmp_path):
    write_directory(tmp_path, family="gpt2", bias=False)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["h.0.attn.c_attn.bias"] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"c_attn\.bias"):
        load_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(tiny_config())))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RequestError, match="pickle"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 8 + b"{}"])
def test_a_broken_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(tiny_config())))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(RequestError, match="cannot read"):
        load_model(tmp_path)


def test_loading_does_not_import_the_compiler(tmp_path):
    """Drawing weights on the meta device, only to replace them, would: more than a second at each start."""
    write_directory(tmp_path)
    code = (
        "import sys, pathlib, tformer.huggingface as h\n"
        "h.load_model(pathlib.Path(sys.argv[1]))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
