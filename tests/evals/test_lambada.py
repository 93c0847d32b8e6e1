"""LAMBADA: the measure against its formula on transformers' own model, and what cannot be asked."""

import math
import re
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SHARED, tiny_model
from tests.passages import EDGES, N_CTX, TEXTS, by_the_formula, tokenizer_of
from tformer.errors import RequestError, TformerError
from tformer.evals import lambada as room
from tformer.evals.lambada import encode_passages, lambada, read_passages, split_last_word
from tformer.run.huggingface import load_model
from tformer.text.corpus import LAMBADA, download
from tformer.text.tokenizer import Tokenizer

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


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_a_passage_without_a_blank_is_passed_over_and_counted(kind):
    tokenizer = tokenizer_of(kind)
    texts = ["moon", "the moon", " moon ", "the\nmoon", "moon,moon"]
    encoded = encode_passages(texts, tokenizer, 100)
    assert [tokenizer.decode(ids) for ids in encoded.ids] == ["the moon"]
    assert encoded.skipped == {"no blank, after which a last word would stand": 4}
    with pytest.raises(RequestError, match=r"no blank.*; give passages whose words have blanks between them"):
        encode_passages(texts[:1], tokenizer, 100)


# ---------------------------------------------------------------------------- the measure


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


# ---------------------------------------------------------------------------- while training


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
