"""Passages whose last word is to be predicted, a model of transformers for it, and the formula."""

import json
from functools import lru_cache

import numpy as np
import torch
import transformers

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


EDGES = ["a one", "two  spaces", "a line\n\nbreak", "then\n word", "the end \n", "é “ünder”"]


@lru_cache
def tokenizer_of(kind):
    text = "\n".join(TEXTS + EDGES)
    return Tokenizer.train(kind, [text if kind == "char" else text.replace("qq", "")], 300)


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


def save_theirs(folder):
    """A directory that transformers saved: GPT-2 of random weights, a BPE tokenizer, passages."""
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
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": N_CTX})
    )
    write_passages(folder / "passages.jsonl", TEXTS)
    return folder
