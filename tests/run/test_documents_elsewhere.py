"""A run on documents in transformers, of either major version: samples end where tformer's end."""

import io
import json
import shlex

import pytest
import transformers

from tformer.cli import app

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
