"""A run on documents in transformers, of either major version: samples end where tformer's end."""

import io
import json
import shlex

import pytest
import torch
import transformers

from tformer.cli import app
from tformer.text.engines import END_OF_TEXT
from tformer.text.tokenizer import Tokenizer

TOKENS = ("bos_token", "eos_token", "unk_token")

NAMES = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "rst"]
QUICK = """--steps 120 --batch-size 16 --lr 0.01 --device cpu --tokenizer char --set model.n_layers=1
    --set model.n_heads=2 --set model.d_model=32 --set model.n_ctx=32 --set train.precision=fp32
    --set model.dropout=0 --set train.eval_every=0"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of GPT-2's layout on a list."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    app(shlex.split(f"train {folder}/names.txt {QUICK} --out {folder}/run"), standalone_mode=False)
    return folder / "run"


@pytest.fixture(scope="module")
def theirs(run):
    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    return transformers.AutoModelForCausalLM.from_pretrained(run).eval(), tokenizer


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A run by BPE on a table of stories."""
    folder = tmp_path_factory.mktemp("stories")
    rows = (
        json.dumps({"text": f"Once there was a {name}.\n\nIt ran <|endoftext|>."}) + "\n" for name in NAMES
    )
    (folder / "s.jsonl").write_text("".join(rows))
    line = f"train {folder}/s.jsonl {QUICK} --out {folder}/run --set data.vocab_size=300"
    app(shlex.split(line.replace("--tokenizer char", "--tokenizer bpe")), standalone_mode=False)
    return folder / "run"


@pytest.fixture(autouse=True)
def nothing_piped(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))


def ours(run, capsys, *prompts):
    capsys.readouterr()
    app(["sample", *prompts, "--run", str(run), "--greedy", "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("prompt", ["", "b", "ce"])
def test_generate_writes_the_same_ids_and_ends_at_the_same_token(run, theirs, capsys, prompt):
    model, tokenizer = theirs
    sample = ours(run, capsys, *([prompt] if prompt else []))
    start = tokenizer(prompt or tokenizer.bos_token, return_tensors="pt")
    assert set(start) == {"input_ids", "attention_mask"}, "GPT-2 would add embeddings of token types"
    found = model.generate(**start, do_sample=False, max_new_tokens=30)[0]
    new = found[start["input_ids"].shape[1] :]
    assert new.tolist() == sample["ids"] and sample["finish_reason"] == "eos"
    assert new[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.decode(new, skip_special_tokens=True) == sample["text"]


def test_stories_by_bpe_begin_and_end_as_stories_do_here_and_there(stories, capsys):
    sample = ours(stories, capsys)
    assert sample["finish_reason"] == "eos"
    assert sample["text"].startswith("Once there was a ") and sample["text"].endswith(
        ".\n\nIt ran <|endoftext|>."
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    model = transformers.AutoModelForCausalLM.from_pretrained(stories)
    start = tokenizer(tokenizer.bos_token, return_tensors="pt")
    found = model.generate(**start, do_sample=False, max_new_tokens=200)[0, 1:].tolist()
    assert found == sample["ids"] and found.index(tokenizer.eos_token_id) == len(found) - 1


def test_samples_of_the_pipeline_end_by_themselves(run, theirs):
    model, tokenizer = theirs
    transformers.set_seed(0)
    write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    said = write(tokenizer.bos_token, num_return_sequences=40, do_sample=True, max_new_tokens=20)
    texts = [one["generated_text"].replace(tokenizer.bos_token, "") for one in said]
    assert sum(len(text) == 3 for text in texts) >= 36, texts


def test_a_batch_of_prompts_is_padded_and_each_ends(run, theirs, capsys):
    model, tokenizer = theirs
    tokenizer.padding_side = "left"
    batch = tokenizer(["b", "ce"], return_tensors="pt", padding=True)
    found = model.generate(**batch, do_sample=False, max_new_tokens=30)
    texts = [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]
    expected = [prompt + ours(run, capsys, prompt)["text"] for prompt in ("b", "ce")]
    assert texts == expected


def test_a_directory_of_elsewhere_learns_to_end_and_its_pipeline_ends_with_the_text(tmp_path, capsys):
    """GPT-2's shape, saved by transformers: its random weights never end, and learn to from names."""
    (tmp_path / "names.jsonl").write_text("".join(json.dumps({"text": name}) + "\n" for name in NAMES))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.train("bpe", NAMES, 280).engine, **dict.fromkeys(TOKENS, END_OF_TEXT)
    )
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    before = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)
    )
    before.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    how = "--steps 150 --batch-size 16 --lr 0.01 --device cpu --precision fp32 --set train.eval_every=0"
    line = f"train {tmp_path}/names.jsonl --init-from {tmp_path}/theirs {how} --out {tmp_path}/tuned"
    app(shlex.split(line), standalone_mode=False)
    write = {
        name: transformers.pipeline("text-generation", str(tmp_path / name)) for name in ("theirs", "tuned")
    }
    asked = {"max_new_tokens": 20, "do_sample": False, "return_tensors": True}
    ids = {name: pipe("ba", **asked)[0]["generated_token_ids"] for name, pipe in write.items()}
    n_prompt = len(tokenizer("ba")["input_ids"])
    assert end not in ids["theirs"] and len(ids["theirs"]) == n_prompt + 20
    assert ids["tuned"][-1] == end and len(ids["tuned"]) < n_prompt + 20
    sample = ours(tmp_path / "tuned", capsys, "ba")
    assert sample["ids"] == ids["tuned"][n_prompt:] and sample["finish_reason"] == "eos"
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        theirs, tuned = (getattr(write[name].model.generation_config, role) for name in ("theirs", "tuned"))
        assert theirs == tuned, role
