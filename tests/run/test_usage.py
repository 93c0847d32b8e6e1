"""Tokens that end documents and texts: what a directory says of them, in training, sampling, other tools."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from tokenizers import AddedToken

from tests.conftest import save_run, tiny_model
from tformer import load
from tformer.cli import app
from tformer.layers import merge, preset_layer, preset_names
from tformer.run.data import prepare_data
from tformer.run.kept_ids import text_ids
from tformer.run.loaded import load_run
from tformer.text.corpus import load_corpus
from tformer.text.data import documents
from tformer.text.tokenizer import KINDS, Tokenizer

POEM = "The sun and the moon,\nthe sea and the shore.\n"
SMALL = ["--steps", "4", "--batch-size", "2", "--device", "cpu", "--precision", "fp32"]
TINY = ["--set", "model.n_ctx=16", "--set", "model.n_layers=1", "--set", "model.d_model=16"]


def tformer(*arguments):
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFORMER_RUNS", raising=False)
    (tmp_path / "poems").mkdir()
    for i in range(20):
        (tmp_path / "poems" / f"{i:02}.txt").write_text(f"Poem {i}. {POEM}")
    (tmp_path / "one.txt").write_text(POEM * 20)
    return tmp_path


# ---------------------------------------------------------------------------- documents


def parts(ends, start, stop, text="abcdefghij"):
    """What the documents of a part are, E where the token that ends one stands."""
    found = documents(text, np.array(ends), start, stop)
    return "".join("E" * d.begins + "".join(d.pieces) + "E" * d.ends for d in found)


@pytest.mark.parametrize(
    "ends, start, stop, expected",
    [
        ((10,), 0, 10, "Eabcdefghij"),  # one text has no end to be learned
        ((10,), 0, 7, "Eabcdefg"),
        ((10,), 7, 10, "hij"),
        ((4, 10), 0, 10, "EabcdEefghijE"),
        ((4, 10), 0, 7, "EabcdEefg"),
        ((4, 10), 7, 10, "hijE"),
        ((4, 10), 0, 4, "EabcdE"),  # cut where one begins: the next part begins after a token, too
        ((4, 10), 4, 10, "EefghijE"),
        ((1, 2, 3, 10), 0, 9, "EaEbEcEdefghi"),
    ],
)
def test_a_token_stands_between_documents_and_at_both_ends(ends, start, stop, expected):
    assert parts(ends, start, stop) == expected


LIKE_FOR_LIKE = {"tinyshakespeare", "nanogpt-char-cpu", "nanogpt-char-gpu"}  # nanoGPT has no such row


@pytest.mark.parametrize("name", preset_names())
def test_every_vocabulary_has_the_token_but_those_that_are_compared_or_have_no_texts(name):
    wanted = name not in LIKE_FOR_LIKE | {"reversal"}
    assert merge([preset_layer(name)]).data.end_of_text is wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_trained_on_as_documents(place, kind):
    tformer(
        *("train", "poems", *SMALL, *TINY, "--tokenizer", kind, "--set", "data.vocab_size=300"),
        *("--set", "data.val_split=end", "--out", "run"),
    )
    tokenizer = Tokenizer.load(Path("run"))
    end = tokenizer.end_id
    assert (
        end == tokenizer.vocab_size - 1
        and json.loads(Path("run/config.json").read_text())["vocab_size"] == end + 1
    )
    corpus = load_corpus(["poems"])
    config = load_run(Path("run")).record
    facts = config.data
    assert facts.documents == 20
    cut = int(0.9 * len(corpus.text))
    ids = [end]
    for i in range(20):
        ids += [*tokenizer.encode(f"Poem {i}. {POEM}"), end]
    mine = text_ids(tokenizer, corpus, 0, len(corpus.text), True).tolist()
    assert mine == ids
    assert facts.train_tokens == len(text_ids(tokenizer, corpus, 0, cut, True))
    assert text_ids(tokenizer, corpus, 0, len(corpus.text), False).tolist() == tokenizer.encode(corpus.text)


def test_the_loss_of_a_run_is_that_of_the_ids_it_was_trained_on(place, capsys):
    tformer("train", "poems", *SMALL, *TINY, "--set", "data.val_split=end", "--out", "run", "--json")
    trained = json.loads(capsys.readouterr().out)
    tformer("eval", "loss", "--run", "run", "--json", "--device", "cpu")
    judged = json.loads(capsys.readouterr().out)
    assert judged["loss"] == pytest.approx(trained["val_loss"], abs=1e-5)
    assert judged["bits_per_byte"] == pytest.approx(trained["bits_per_byte"], abs=1e-5)
    tokenizer = load("run")[1]
    corpus = load_corpus(["poems"])
    ids = text_ids(tokenizer, corpus, int(0.9 * len(corpus.text)), len(corpus.text), True)
    assert judged["tokens"] == len(ids) - 1 and judged["bytes"] == tokenizer.n_bytes[ids[1:]].sum()
    assert (ids == tokenizer.end_id).sum() == 2


def test_a_run_of_before_the_setting_goes_on_without_it(place, capsys):
    tformer("train", "poems", *SMALL, *TINY, "--out", "run", "--set", "data.end_of_text=false")
    values = yaml.safe_load(Path("run/tformer.yaml").read_text())
    for name in ("end_of_text", "documents", "val_split"):
        del values["data"][name]
    Path("run/tformer.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    tformer("train", "poems", "--out", "run", "--resume", "--steps", "6", "--json", "--device", "cpu")
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert Tokenizer.load(Path("run")).end_id is None
    assert yaml.safe_load(Path("run/tformer.yaml").read_text())["data"]["end_of_text"] is False


def test_it_is_one_row_more_and_changes_nothing_else(place):
    def data(**changes):
        from tformer.config import Config

        config = Config().updated("data", val_fraction=0.0, **changes).updated("model", n_ctx=8)
        return prepare_data(config, ["one.txt"])

    with_row, without = data(end_of_text=True), data(end_of_text=False)
    assert with_row.tokenizer.vocab_size == without.tokenizer.vocab_size + 1
    assert with_row.batches.ids.tolist() == [with_row.tokenizer.end_id, *without.batches.ids.tolist()]


# ---------------------------------------------------------------------------- what a directory says


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "nanochat"])
def test_padding_batches_and_lengths_work_in_transformers(place, kind, family):
    if family == "nanochat" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("no nanochat in this version")
    arguments = [
        "--tokenizer",
        kind,
        "--set",
        "model.n_ctx=32",
        "--set",
        f"model.family={family}",
        "--set",
        "data.vocab_size=300",
    ]
    tformer("train", "poems", *SMALL, *TINY, "--out", "run", *arguments)
    tokenizer = transformers.AutoTokenizer.from_pretrained("run")
    model = transformers.AutoModelForCausalLM.from_pretrained("run")
    end = Tokenizer.load(Path("run")).end_id
    for config in (model.config, model.generation_config):
        assert config.bos_token_id == config.eos_token_id == config.pad_token_id == end
    assert model.generation_config.max_new_tokens == 16
    batch = tokenizer(["The sun", "The sea and the"], padding=True, return_tensors="pt")
    assert batch.input_ids.shape[0] == 2 and (batch.input_ids == end).any()
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert (collate([tokenizer("The sun"), tokenizer("The sea and")])["labels"] == -100).any()
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert pipe("The")[0]["generated_text"].startswith("The")
    assert len(pipe(["The", "The sun and"], batch_size=2)) == 2
    learned = tokenizer("The sun" + tokenizer.eos_token)["input_ids"]  # as TRL teaches an end
    assert learned == [*Tokenizer.load(Path("run")).encode("The sun"), end]
    for name in ("config.json", "generation_config.json"):
        assert json.loads(Path("run", name).read_text())["transformers_version"]


def gpt2_that_ends(folder, ends):
    """A directory of transformers whose next token is always the last of `ends`; with a template."""
    engine = Tokenizer.train("bpe", [POEM * 3], 300).engine
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PAD]"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=engine)
    extra = [AddedToken(token, special=True) for token in tokens[1:]]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.add_special_tokens({"eos_token": tokens[0], "bos_token": tokens[0], "pad_token": tokens[3]})
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    eos = [ids[i] for i in ends]
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=ids[0],
        eos_token_id=eos if len(eos) > 1 else eos[0],
        pad_token_id=ids[3],
        attn_pdrop=0.2,
        embd_pdrop=0.05,
        resid_pdrop=0.0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[eos[-1]] = 1.0  # one that is not the first
    model.generation_config.temperature = 0.7
    model.generation_config.top_k = 9
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return eos


@pytest.mark.parametrize("ends", [(0,), (0, 2)], ids=["a number", "a list"])
def test_a_sample_ends_where_transformers_ends_it(place, capsys, ends):
    eos = gpt2_that_ends(place / "theirs", ends)
    model = transformers.AutoModelForCausalLM.from_pretrained("theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained("theirs")
    ids = tokenizer("The sun", return_tensors="pt").input_ids
    new = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert new == [eos[-1]]
    tformer(
        "sample", "The sun", "--run", "theirs", "--greedy", "--max-tokens", "20", "--json", "--device", "cpu"
    )
    drawn = json.loads(capsys.readouterr().out)
    assert (drawn["ids"], drawn["text"], drawn["finish_reason"]) == (new, "", "eos")
    tformer("sample", "The sun", "--run", "theirs", "--greedy", "-n", "3", "--device", "cpu")
    assert capsys.readouterr().out == "The sun\n---\nThe sun\n---\nThe sun\n"
    mine, _ = load("theirs")
    assert mine.generate(ids, max_tokens=5, end_id=eos[-1]).shape[1] == ids.shape[1] + 1


@pytest.mark.parametrize("ends", [(0,), (0, 2)], ids=["a number", "a list"])
def test_samples_that_are_measured_end_there_too(place, capsys, ends):
    gpt2_that_ends(place / "theirs", ends)
    given = ("--run", "theirs", "--data", "one.txt", "--device", "cpu", "--json")
    drawn = ("-n", "2", "--max-tokens", "5", "--temperature", "0.001")
    tformer("eval", "generations", *given, *drawn)
    result = json.loads(capsys.readouterr().out)
    assert {sample["text"] for sample in result["samples"]} == {""}


@pytest.mark.parametrize("between", ["\n<|endoftext|>\n", " <|endoftext|>"], ids=["lines", "inside lines"])
def test_bits_per_byte_are_of_the_text_that_was_scored_in_every_column(place, capsys, between):
    """The token of another tool stands in the text as thirteen characters, and as that in one of ours."""
    gpt2_that_ends(place / "theirs", (0,))
    text = between.join(f"Poem {i}. {POEM.strip()}" for i in range(40))
    Path("poems.txt").write_text(text)
    new = ("train", "poems.txt", *SMALL, *TINY, "--tokenizer", "char", "--documents", "none")
    tformer(*new, "--set", "data.end_of_text=false", "--out", "ours")
    capsys.readouterr()
    given = ("--data", "poems.txt", "--device", "cpu", "--json")
    tformer("eval", "loss", "--run", "theirs", "--run", "ours", *given)
    found = {line["run"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    for name, values in found.items():
        first = load(name)[1].encode(text)[:1]
        assert values["bytes"] == len(text) - len(load(name)[1].decode(first)), name
        nats = values["loss"] * values["tokens"]
        assert values["bits_per_byte"] == pytest.approx(nats / np.log(2) / values["bytes"])
    best, other = found.values()
    gap = other["bits_per_byte"] - best["bits_per_byte"]
    assert gap > 0 and other["difference_to_best"] == pytest.approx(gap, rel=0.01)


@pytest.mark.parametrize("ends", [(0,), (0, 2)], ids=["a number", "a list"])
def test_a_line_that_a_training_samples_ends_there_too(place, ends):
    gpt2_that_ends(place / "theirs", ends)
    tformer("train", "one.txt", "--init-from", "theirs", *SMALL, "--lr", "1e-6", "--out", "run")
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert {line["sample"] for line in lines if "sample" in line} == {""}


def test_all_that_a_directory_says_is_carried_over(place, capsys):
    gpt2_that_ends(place / "theirs", (0, 2))
    tformer("train", "one.txt", "--init-from", "theirs", *SMALL, "--lr", "1e-6", "--out", "run")
    before, after = (transformers.AutoTokenizer.from_pretrained(name) for name in ("theirs", "run"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "all_special_tokens", "chat_template"):
        assert getattr(before, name) == getattr(after, name), name
    chat = [{"role": "user", "content": "hi"}]
    assert before.apply_chat_template(chat, tokenize=False) == after.apply_chat_template(chat, tokenize=False)
    theirs, mine = (transformers.AutoModelForCausalLM.from_pretrained(name) for name in ("theirs", "run"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "temperature", "top_k", "do_sample"):
        assert getattr(theirs.generation_config, name) == getattr(mine.generation_config, name), name
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
        assert getattr(theirs.config, name) == getattr(mine.config, name), name
    ids = before("The sun", return_tensors="pt").input_ids
    ended = [m.generate(ids, max_new_tokens=20, do_sample=False).tolist() for m in (theirs, mine)]
    assert ended[0] == ended[1] and len(ended[0][0]) == ids.shape[1] + 1


def test_roles_that_only_a_class_of_old_knew_are_named(place):
    """openai-community/gpt2 names no token in tokenizer_config.json: its class did."""
    gpt2_that_ends(place / "theirs", (0,))
    (place / "theirs" / "tokenizer_config.json").write_text('{"model_max_length": 32}')
    tformer("train", "one.txt", "--init-from", "theirs", *SMALL, "--out", "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained("run")
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.pad_token == "[PAD]"
    assert "task_specific_params" not in json.loads(Path("run/generation_config.json").read_text())


@pytest.mark.parametrize("says", [None, {"text-generation": {"max_length": 30}}], ids=["none", "its own"])
def test_a_length_for_a_task_is_kept_or_made(place, says):
    """The pipeline of transformers 4 takes a length from there alone."""
    gpt2_that_ends(place / "theirs", (0,))
    config = json.loads(Path("theirs/config.json").read_text())
    Path("theirs/config.json").write_text(
        json.dumps(config | ({"task_specific_params": says} if says else {}))
    )
    tformer("train", "one.txt", "--init-from", "theirs", *SMALL, "--out", "run")
    made = {"text-generation": {"do_sample": True, "max_new_tokens": 16}}
    assert json.loads(Path("run/config.json").read_text())["task_specific_params"] == (says or made)


# ---------------------------------------------------------------------------- beginnings


def test_an_empty_prompt_begins_a_document_only_where_documents_were_learned(tmp_path):
    from tformer.run.record import DataFacts, Record

    tokenizer = Tokenizer.train("char", [POEM], end_of_text=True)
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    for n, start in ((1, tokenizer.start_id), (2, tokenizer.end_id)):
        record = Record(data=DataFacts(documents=n))
        folder = save_run(tmp_path / str(n), model, tokenizer, record=record)
        assert load_run(folder).start_id == start
