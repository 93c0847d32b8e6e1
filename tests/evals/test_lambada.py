"""LAMBADA: the measure against its formula on transformers' own model, and the commands that use it."""

import json
import math
import re
import time
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SHARED, tiny_model
from tformer.cli import app
from tformer.errors import RequestError, TformerError
from tformer.evals import lambada as room
from tformer.evals.lambada import encode_passages, lambada, read_passages, split_last_word
from tformer.run.huggingface import load_model, tokenizer_config
from tformer.run.record import read_lines, read_record
from tformer.show.svg import loss_svg
from tformer.text.corpus import LAMBADA, download
from tformer.text.tokenizer import Tokenizer

WORDS = [
    "the",
    "sun",
    "and",
    "moon",
    "o'er",
    "a",
    "sea",
    "of",
    "stars;",
    '"so',
    "be",
    'it,"',
    "said",
    "Ann.",
    "night|day",
    "zz,",
    "zzz!",
    "to",
    "or",
    "not",
]
N_CTX = 24


def made_up(n, seed=0):
    """Passages of words drawn at random, many ending so that a tied model of random weights, which
    expects every token again, predicts the word (one twice) or its last token alone (qq, two bytes)."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(n):
        words = [str(word).replace("|", "\n\n") for word in rng.choice(WORDS, size=rng.integers(3, 30))]
        texts.append(" ".join([*words, *([], [words[-1]], ["qq"])[i % 3]]))
    return texts


TEXTS = made_up(200)
EDGES = ["one", " two", "two  spaces", "a line\n\nbreak", "then\n word", "end \n", "é “ünder”"]


@lru_cache
def tokenizer_of(kind):
    text = "\n".join(TEXTS + EDGES)
    return Tokenizer.train(kind, [text if kind == "char" else text.replace("qq", "")], 300)


# ---------------------------------------------------------------------------- the word


@given(st.text(st.sampled_from("ab \n\t.é\u00a0")).filter(str.strip))
def test_the_word_is_what_lm_eval_asks_for(text):
    text = text.rstrip()
    context, target = " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]  # lambada_openai.yaml
    spaces = len(context) - len(context.rstrip())  # _encode_pair moves them
    if spaces:
        context, target = context[:-spaces], context[-spaces:] + target
    assert split_last_word(text) == (context, target)


def test_white_space_at_the_end_is_no_word():
    assert (
        split_last_word("To be or\n not \n ") == split_last_word("To be or\n not") == ("To be or", "\n not")
    )


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
@pytest.mark.parametrize("text", [*TEXTS[:40], *EDGES])
def test_ids_are_the_text_and_the_targets_are_the_word(kind, text):
    tokenizer = tokenizer_of(kind)
    encoded = encode_passages([text], tokenizer, 1000)
    (ids,), (n,) = encoded.ids, encoded.n_targets
    context, word = split_last_word(text)
    given_bytes, asked = tokenizer.decode_bytes(ids[:-n]), tokenizer.decode_bytes(ids[-n:])
    if not context:
        assert ids[0] == tokenizer.start_id
        given_bytes = given_bytes.removeprefix(tokenizer.token_bytes[ids[0]])
    assert given_bytes + asked == (context + word).encode()
    if kind == "word" and not re.search(r"\w$", context):  # white space and what is before it: one token
        assert asked in (word.encode(), word.split()[-1].encode())
    else:
        assert asked == word.encode()
    assert ids[-len(tokenizer.encode(context + word)) :] == tokenizer.encode(context + word), "as in training"


def test_a_passage_past_the_context_keeps_its_end_and_its_whole_word():
    tokenizer = tokenizer_of("char")
    encoded = encode_passages(["the sun and moon", "sun moon"], tokenizer, 6)
    assert [tokenizer.decode(ids) for ids in encoded.ids] == ["nd moon", "un moon"], "6 inputs, 1 target more"
    assert encoded.n_targets == [5, 5] and encoded.cut == 2 and not encoded.skipped


def test_what_a_model_cannot_be_asked_is_passed_over_and_named():
    tokenizer = Tokenizer.train("char", ["the sun o"], 0)
    texts = ["the sun", "the moon", "the sun!", "to the hothouse"]
    encoded = encode_passages(texts, tokenizer, 4)
    assert [tokenizer.decode(ids) for ids in encoded.ids] == ["e sun"]
    assert list(encoded.skipped.values()) == [2, 1]
    lacking, long = encoded.skipped
    assert "'m'" in lacking and "'!'" in lacking and "context" in long
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    assert lambada(model, encoded).n == 1 and lambada(model, encoded).skipped == 3
    with pytest.raises(RequestError, match=r"no passage can be scored.*'m'"):
        encode_passages(texts[1:2], tokenizer, 4)


# ---------------------------------------------------------------------------- the measure


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A directory that transformers saved: GPT-2 of random weights, a BPE tokenizer, passages."""
    folder = tmp_path_factory.mktemp("theirs")
    tokenizer = tokenizer_of("bpe")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=N_CTX,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight *= 3
        model.transformer.ln_f.weight *= 2
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(N_CTX)))
    write_passages(folder / "passages.jsonl", TEXTS)
    return folder


def write_passages(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@torch.inference_mode()
def by_the_formula(folder, texts):
    """lm-eval's lambada_openai, a passage at a time: losses and hits of words, and of last tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    encode = transformers.AutoTokenizer.from_pretrained(folder).encode
    rows = []
    for text in texts:
        context, target = " ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]
        start, whole = encode(context), encode(context + target)
        word = whole[len(start) :]
        window = (start + word)[-(N_CTX + 1) :]
        logits = model(torch.tensor([window[:-1]])).logits[0, -len(word) :].double().log_softmax(-1)
        losses = [-float(row[i]) for row, i in zip(logits, word, strict=True)]
        hits = [int(row.argmax()) == i for row, i in zip(logits, word, strict=True)]
        rows.append((sum(losses), all(hits), losses[-1], hits[-1]))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_the_result_is_that_of_the_formula_on_transformers(theirs, monkeypatch):
    loss, right, last_loss, last_right = by_the_formula(theirs, TEXTS)
    assert 0.1 < right.mean() < last_right.mean() < 0.9, "or the comparison says nothing"
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 300)
    encoded = encode_passages(TEXTS, Tokenizer.load(theirs), N_CTX)
    result = lambada(load_model(theirs), encoded)
    assert result.n == len(TEXTS) and 0 < result.cut < len(TEXTS)
    assert result.accuracy == right.mean() and result.last_token_accuracy == last_right.mean()
    assert result.perplexity == pytest.approx(math.exp(loss.mean()), rel=1e-3)
    assert result.next_word_loss == pytest.approx(loss.mean(), abs=1e-5)
    assert result.last_token_perplexity == pytest.approx(math.exp(last_loss.mean()), rel=1e-3)
    assert result.tokens_per_word > 1.2


def test_standard_errors_are_the_binomial_and_the_delta_methods(theirs):
    loss, right, _, last_right = by_the_formula(theirs, TEXTS[:50])
    result = lambada(load_model(theirs), encode_passages(TEXTS[:50], Tokenizer.load(theirs), N_CTX))
    for p, error in (
        (right.mean(), result.accuracy_stderr),
        (last_right.mean(), result.last_token_accuracy_stderr),
    ):
        assert error == pytest.approx(math.sqrt(p * (1 - p) / 49))
    spread = math.sqrt(((loss - loss.mean()) ** 2).sum() / 49)
    assert result.perplexity_stderr == pytest.approx(result.perplexity * spread / math.sqrt(50), rel=1e-4)


def test_of_one_passage_no_error_is_claimed(theirs):
    result = lambada(load_model(theirs), encode_passages(TEXTS[:1], Tokenizer.load(theirs), N_CTX))
    assert result.n == 1 and result.accuracy_stderr is None and result.perplexity_stderr is None


def test_a_perplexity_past_what_a_float_holds_is_none(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 100
    model.config = model.config.model_copy(update={"logit_softcap": 0.0})
    result = lambada(model, room.Encoded([list(range(1, 17))] * 2, [15, 15]))
    assert result.perplexity is None and result.perplexity_stderr is None and result.next_word_loss > 700


def test_passages_scored_together_are_scored_as_alone(model, monkeypatch):
    rng = np.random.default_rng(1)
    ids = [rng.integers(23, size=n).tolist() for n in rng.integers(2, 18, size=40)]
    encoded = room.Encoded(ids, [int(rng.integers(1, len(i))) for i in ids])
    together = lambada(model, encoded)
    alone = [lambada(model, room.Encoded([i], [n])) for i, n in zip(ids, encoded.n_targets, strict=True)]
    assert together.next_word_loss == pytest.approx(np.mean([a.next_word_loss for a in alone]), rel=1e-5)
    assert together.accuracy == np.mean([a.accuracy for a in alone])
    monkeypatch.setattr(room, "TOKENS_AT_ONCE", 1)
    assert asdict(lambada(model, encoded)) == pytest.approx(asdict(together), rel=1e-4)


def test_only_targets_are_unembedded_and_progress_reaches_the_end():
    model, seen, done = tiny_model(), [], []
    model.unembed.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    encoded = room.Encoded([[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]], [1, 2, 1])
    lambada(model, encoded, progress=lambda some, of: done.append((some, of)))
    assert seen == [(4, 23)] and done == [(3, 3)]


# ---------------------------------------------------------------------------- files


def test_passages_are_read_from_lines_of_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\u2028 b", "more": 1}\n\n  \n{"text": "caf\\u00e9 x"}\r\n', encoding="utf-8")
    assert read_passages(str(path)) == ["a\u2028 b", "café x"]


@pytest.mark.parametrize(
    "line",
    [
        "word",
        "[1]",
        '"text"',
        "{}",
        '{"text": 3}',
        '{"text": " "}',
        '{"text": "\\ud800 a"}',
        '{"text": "a',
        "[" * 100_000,
        "null",
    ],
)
def test_a_line_that_is_no_passage_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b"}\n' + line)
    with pytest.raises(RequestError, match=r"a\.jsonl line 2 is no passage"):
        read_passages(str(path))


def test_a_file_without_passages_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(RequestError, match="is empty"):
        read_passages(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("broken", [False, True])
def test_a_download_is_the_one_file_or_refused(tmp_path, monkeypatch, broken):
    source = SHARED / "lambada_test.jsonl"
    if not source.exists():
        pytest.skip("the test set is not beside this checkout")
    monkeypatch.setenv("TFORMER_CACHE", str(tmp_path / "cache"))
    data = bytearray(source.read_bytes())
    data[1000] ^= broken
    (tmp_path / "served").write_bytes(data)
    served = replace(LAMBADA, urls=((tmp_path / "served").as_uri(),))
    if broken:
        with pytest.raises(TformerError, match=r"sha256 .*_test\.jsonl by hand, or name .*--data FILE"):
            download(served, attempts=1)
        assert not LAMBADA.path.exists()
    else:
        assert download(served) == LAMBADA.path == tmp_path / "cache" / "lambada_test.jsonl"
        assert len(read_passages(str(LAMBADA.path))) == 5153


# ---------------------------------------------------------------------------- the command


def tformer(*arguments):
    """The command, in this process."""
    app([*arguments, "--device", "cpu"], standalone_mode=False)


def result_of(capsys, *arguments):
    tformer("eval", "lambada", "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def test_a_directory_of_transformers_is_judged_by_the_command(theirs, capsys, monkeypatch, tmp_path):
    loss, right, *_ = by_the_formula(theirs, TEXTS)
    data = str(theirs / "passages.jsonl")
    result = result_of(capsys, "--run", str(theirs), "--data", data)
    assert (result["run"], result["n"], result["accuracy"]) == (str(theirs), 200, right.mean())
    assert result["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-3)
    few = result_of(capsys, "--run", str(theirs), "--data", data, "--limit", "7")
    assert few["n"] == 7 and few["next_word_loss"] == pytest.approx(loss[:7].mean(), abs=1e-5)
    monkeypatch.setenv("TFORMER_CACHE", str(tmp_path))  # the test set, were it so small
    write_passages(tmp_path / "lambada_test.jsonl", TEXTS[:9])
    assert result_of(capsys, "--run", str(theirs))["n"] == 9


def test_the_table_names_what_is_the_word_and_what_is_its_last_token(theirs, capsys, monkeypatch):
    monkeypatch.chdir(theirs)
    tformer("eval", "lambada", "--run", ".", "--data", "passages.jsonl")
    shown = " ".join(capsys.readouterr().out.split())
    result = lambada(load_model(theirs), encode_passages(TEXTS, Tokenizer.load(theirs), N_CTX))
    names = {"whole last word": result.accuracy, "last token only": result.last_token_accuracy}
    for name, p in names.items():
        assert re.search(rf"{name} {100 * p:.2f} % \d\.\d\d % \d", shown)
    assert f"200 of passages.jsonl, {result.cut} cut to their end" in shown


@pytest.mark.parametrize("arguments", [("loss", "--limit", "3"), ("lambada", "--limit", "0")])
def test_a_limit_that_means_nothing_is_refused(theirs, arguments):
    with pytest.raises(RequestError, match="--limit"):
        tformer("eval", *arguments, "--run", str(theirs))


# ---------------------------------------------------------------------------- while training

TINY = [
    "--set",
    "model.n_layers=1",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.d_model=16",
    "--set",
    "model.n_ctx=24",
    "--set",
    "train.eval_every=5",
    "--batch-size",
    "4",
    "--precision",
    "fp32",
    "--set",
    "train.keep=last",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text and passages."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    write_passages(tmp_path / "p.jsonl", TEXTS[:30])
    return tmp_path


def train(*arguments, data="a.txt"):
    tformer("train", data, "--tokenizer", "char", "--out", "run", *TINY, *arguments)


def logged(folder):
    return {
        m["step"]: m["next_word_loss"] for m in read_lines(folder / "metrics.jsonl") if "next_word_loss" in m
    }


def test_a_run_logs_the_loss_of_last_words_and_goes_on_with_it(place, capsys):
    train("--steps", "10", "--eval-data", "p.jsonl")
    first = logged(place / "run")
    assert list(first) == [5, 10]
    capsys.readouterr()
    judged = result_of(capsys, "--run", "run", "--data", "p.jsonl")
    assert first[10] == pytest.approx(judged["next_word_loss"], rel=1e-6)
    assert judged["perplexity"] == pytest.approx(math.exp(first[10]), rel=1e-6)
    assert [line["task"] for line in read_lines(place / "run" / "evals.jsonl")][-1] == "lambada"
    train("--steps", "20", "--resume")
    again = logged(place / "run")
    assert list(again) == [5, 10, 15, 20] and again | first == again
    kept = read_record(place / "run").eval_data
    assert kept.source == str(place / "p.jsonl") and kept.passages == 30


def test_a_run_goes_on_with_the_passages_that_it_has(place):
    train("--steps", "5", "--eval-data", "p.jsonl")
    (place / "p.jsonl").rename(place / "moved.jsonl")
    with pytest.raises(RequestError, match=r"no passages at .*p\.jsonl .*--eval-data FILE"):
        train("--steps", "10", "--resume")
    write_passages(place / "p.jsonl", TEXTS[30:50])
    with pytest.raises(RequestError, match="has changed"):
        train("--steps", "10", "--resume")
    train("--steps", "10", "--resume", "--eval-data", "moved.jsonl")
    assert list(logged(place / "run")) == [5, 10]


def test_a_run_without_passages_may_take_some_when_it_goes_on(place):
    train("--steps", "5")
    train("--steps", "10", "--resume", "--eval-data", "p.jsonl")
    assert list(logged(place / "run")) == [10]


def test_a_run_that_keeps_no_text_for_validation_is_judged_by_passages(place):
    train("--steps", "10", "--eval-data", "p.jsonl", "--set", "data.val_fraction=0")
    assert list(logged(place / "run")) == [5, 10]


@pytest.mark.parametrize("name", ["no.jsonl", "a.txt"])
def test_passages_that_cannot_be_used_are_refused_before_a_run_is_made(place, name):
    with pytest.raises(RequestError, match=re.escape(name)):
        train("--steps", "5", "--eval-data", name)
    with pytest.raises(RequestError, match="is on reversal"):
        tformer("train", "reversal", "--out", "run", "--eval-data", "p.jsonl")
    assert not (place / "run").exists()


def test_last_words_are_drawn_in_a_picture_of_their_own():
    metrics = [{"step": i, "loss": 3.0, "lr": 0.1, "val_loss": 3.0} for i in (1, 2, 3)]
    plain = loss_svg(metrics, "run")
    drawn = loss_svg([m | {"next_word_loss": 20.0 - m["step"]} for m in metrics], "run")
    assert "axes_3" not in plain and "axes_3" in drawn, "beside the losses and the learning rate"
    assert "nats per word" in drawn and "nats per word" not in plain


@pytest.mark.slow
def test_the_whole_test_set_takes_a_small_model_under_a_minute_of_one_thread():
    source = SHARED / "lambada_test.jsonl"
    if not source.exists():
        pytest.skip("the test set is not beside this checkout")
    texts = read_passages(str(source))
    tokenizer = Tokenizer.train("bpe", texts[:500], 2048)
    model = tiny_model(vocab_size=2048, n_ctx=128, n_layers=4, n_heads=4, d_model=128)
    began = time.process_time()
    result = lambada(model, encode_passages(texts, tokenizer, 128))
    assert result.n == 5153 and result.skipped == 0 and time.process_time() - began < 60


def test_the_characters_that_a_vocabulary_lacks_come_in_one_order_in_every_process():
    char = Tokenizer.train("char", ["ab "])
    encoded = encode_passages(["ab " + "zyxwvutsrq", "a b", "ab z"], char, 64)
    assert list(encoded.skipped) == ["characters that the vocabulary lacks: 'z' 'q' 'r' 's' 't' …"]
