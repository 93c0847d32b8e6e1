"""A run directory is a Hugging Face model directory: transformers is the oracle, both ways."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import FAMILIES, needs_nanochat, tiny_config, tiny_model
from tformer.config import Config
from tformer.errors import RequestError
from tformer.run.checkpoint import Run
from tformer.run.huggingface import from_hf, from_hf_config, load_model, to_hf, to_hf_config
from tformer.run.loaded import load
from tformer.text.tokenizer import Tokenizer

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
        vocab_size=61,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_inner=40,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
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
        (
            {"activation_function": "swish"},
            r"sets activation_function to 'swish' \(expected 'gelu_new', 'gelu', 'relu' or 'relu2'\)",
        ),
        ({"n_head": 3}, r"model that tformer has not \(n_head 3 must divide n_embd 16\)"),
        ({"n_layer": 10**9}, r"sets n_layer to 1000000000 \(expected less than or equal to 1000\)"),
        ({"num_hidden_layers": 10**9}, "sets n_layer to"),
        ({"n_inner": "wide"}, "sets n_inner to 'wide'"),
        ({"tformer": {"positions": "alibi"}}, "sets tformer.positions to 'alibi'"),
        ({"tformer": {"positions": "rotary"}}, r"\(tformer.positions 'rotary' has no place in the gpt2"),
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


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "activation_function",
        "hidden_act",
        "tformer",
        "head_dim",
        "num_attention_heads",
        "rope_parameters",
        "n_embd",
        "vocab_size",
        "is_causal",
        "tie_word_embeddings",
    ],
)
def test_a_setting_of_another_type_is_refused_or_read(family, key):
    """config.json may hold anything: whatever it is, no other exception comes out."""
    values = to_hf_config(tiny_config(family=family)) | {"head_dim": None}
    for value in ([], ["gelu"], {"a": 1}, "x", -1, 1e400, True, None):
        try:
            from_hf_config(values | {key: value}, "config.json")
        except RequestError as error:
            assert "config.json" in str(error)


@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_the_head_of_a_tied_model_is_its_embedding_or_refused(tmp_path, family):
    """transformers 5 keeps a head that differs, whatever config.json says; transformers 4 drops it."""
    model, _ = write_directory(tmp_path, family=family, tied=True)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["wte.weight" if family == "gpt2" else "model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path).unembed.weight, model.embed.weight)
    save_file(tensors | {"lm_head.weight": table + 1e-3}, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"lm_head\.weight .*tie_word_embeddings"):
        load_model(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    """Not at the first of its ids that the model has no row for."""
    write_directory(tmp_path, family="gpt2")
    (tmp_path / "tokenizer.json").write_text(Tokenizer.train("bpe", [TEXT], 300).to_json())
    with pytest.raises(RequestError, match=r"has 300 ids .*its model has"):
        load(tmp_path)


def test_eight_bit_floats_are_read(tmp_path):
    model, _ = write_directory(tmp_path, family="gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}, tmp_path / "model.safetensors")
    expected = model.embed.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(load_model(tmp_path).embed.weight, expected)


@pytest.mark.parametrize("weight_map", [None, [], ["a"], {"wte.weight": 1}, {"wte.weight": "../a"}])
def test_an_index_that_is_none_is_refused(tmp_path, weight_map):
    write_directory(tmp_path, family="gpt2")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(RequestError, match=r"weight_map|outside"):
        load_model(tmp_path)


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


def test_a_bias_that_the_configuration_denies_is_refused_in_a_checkpoint_and_a_bias_in_a_directory(tmp_path):
    model, _ = write_directory(tmp_path, family="gpt2", bias=False)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["h.0.attn.c_attn.bias"] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"c_attn\.bias has been changed"):
        from_hf(model.config, tensors, "a checkpoint")
    assert load_model(tmp_path).config == model.config.model_copy(update={"bias": True})


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
        "import sys, pathlib, tformer.run.huggingface as h\n"
        "h.load_model(pathlib.Path(sys.argv[1]))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("gpt2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("gpt2", {"per_layer_config": {"0": {"n_inner": 8}}}, "per_layer_config"),
        ("gpt2", {"is_causal": False}, "is_causal"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function to 'quick_gelu'"),
        ("nanochat", {"attention_bias": True}, "attention_bias"),
        ("nanochat", {"head_dim": 4}, "head_dim"),
        ("nanochat", {"hidden_act": "silu"}, "hidden_act to 'silu'"),
        ("nanochat", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("nanochat", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rotary"),
        ("nanochat", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary"),
        ("nanochat", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rotary"),
        ("nanochat", {"num_key_value_heads": 3}, "num_key_value_heads 3 must divide num_attention_heads"),
        ("nanochat", {"is_causal": False}, "is_causal"),
    ],
)
def test_every_setting_that_changes_the_mathematics_is_refused_by_name(family, change, named):
    with pytest.raises(RequestError, match=named):
        from_hf_config(to_hf_config(tiny_config(family=family)) | change, "config.json")


def test_no_field_of_transformers_configurations_has_been_forgotten():
    """Each field is read, refused, or of no account for logits; a new one makes this fail."""
    needs_nanochat()
    no_account = {
        "use_cache",
        "initializer_range",
        "embd_pdrop",
        "attn_pdrop",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    }
    gpt2 = {
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "add_cross_attention",
        "resid_pdrop",
    }
    common = {f for c in transformers.PretrainedConfig.__mro__ for f in getattr(c, "__annotations__", {})}
    for name, family, refused in (
        ("GPT2Config", "gpt2", gpt2),
        ("NanoChatConfig", "nanochat", {"attention_bias"}),
    ):
        fields = set(getattr(transformers, name).__annotations__)
        read = set(to_hf_config(tiny_config(family=family)))
        assert fields - common - read - refused - no_account == set()


def test_the_other_names_of_a_setting_are_read():
    values = to_hf_config(tiny_config())
    values = {k: v for k, v in values.items() if k not in ("n_embd", "n_layer")} | {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "activation_function": "gelu_python",
    }
    config = from_hf_config(values, "c")
    assert (config.d_model, config.n_layers, config.activation) == (32, 3, "gelu")
    theirs = transformers.GPT2Config(**values)
    assert (theirs.n_embd, theirs.n_layer) == (32, 3)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_gpt2_has_the_names_that_transformers_4_takes_with_a_head(tied):
    """It reads names without a prefix as a model without a head, and refuses lm_head.weight among them."""
    model = tiny_model(family="gpt2", tied=tied)
    names = set(to_hf(model.config, model.state_dict()))
    assert any(name.startswith("transformer.") for name in names) == ("lm_head.weight" in names) == (not tied)
