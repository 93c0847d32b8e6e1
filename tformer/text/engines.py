"""The three engines: their vocabularies, how one learns merges, which kind a tokenizer.json holds.

Knows nothing of ids of a text: that is `tokenizer.py`.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, Literal

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from tformer.errors import RequestError

Kind = Literal["word", "char", "bpe"]
KINDS: tuple[Kind, ...] = ("word", "char", "bpe")
END_OF_TEXT = "<|endoftext|>"  # the one special token of a vocabulary made here

# Python's \w is a letter, a number or the underscore; the engine's own \w has combining marks too.
WORD_OR_GAP = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_]+"
ANY_CHARACTER = r"[\s\S]"
LONG_STRETCH = re.compile(r"(?<!\S)\S{1000}|(?<!\s)\s{1000}")  # looked for where a stretch begins: linear
MOST_IDS = 1 << 24  # of any vocabulary; and ten times as many as it has tokens: every id costs memory


def byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte, indexed by byte.

    >>> byte_symbols()[ord("A")], byte_symbols()[ord(" ")]
    ('A', 'Ġ')

    Printable Latin-1 stands for itself, the rest for U+0100 onwards in order (Radford et al. 2019).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    table = {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def word_engine(words: list[str], vocab_size: int) -> Engine:
    """256 bytes, then whole words; a BPE without merges, so that an unseen word falls to bytes."""
    symbols = byte_symbols()
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    for word in words:
        if len(vocabulary) >= vocab_size:
            break
        vocabulary.setdefault("".join(symbols[b] for b in word.encode()), len(vocabulary))
    engine = Engine(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_OR_GAP), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


def char_engine(alphabet: list[str]) -> Engine:
    """One id a character, in the order given."""
    engine = Engine(models.WordLevel({char: i for i, char in enumerate(alphabet)}, unk_token=""))
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    engine.decoder = decoders.Fuse()
    return engine


def bpe_engine() -> Engine:
    """GPT-2's byte-level BPE, untrained."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    return engine


def with_end_of_text(engine: Engine) -> Engine:
    """The same with one more row, the last: the token that stands between documents.

    It is a word of the model and no added token, so no text is ever cut into it by this file: each of the
    three pre-tokenizers breaks its thirteen characters apart, in every implementation of the format. Other
    tools know it by the names in `tokenizer_config.json`; transformers adds what is named there.
    """
    values = json.loads(engine.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary.setdefault(END_OF_TEXT, len(vocabulary))
    return Engine.from_str(json.dumps(values))


def cuts_safely(engine: Engine) -> bool:
    """Whether `pieces.SAFE_CUT` holds: for our own pre-tokenizers and GPT-2's. Others get a text whole."""
    model = json.loads(engine.to_str())
    theirs = model["pre_tokenizer"] or {}
    gpt2 = theirs.get("type") == "ByteLevel" and theirs.get("use_regex", True)
    ours = WORD_OR_GAP in json.dumps(theirs, ensure_ascii=False).replace("\\\\", "\\")
    reaching = any(
        token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"])
        for token in model["added_tokens"]
    )
    return (gpt2 or ours) and not model["normalizer"] and not reaching


def has_pattern_of_others(engine: Engine) -> bool:
    """Whether it cuts a text by a pattern that is none of ours: on some texts such a one may give up."""
    if engine.pre_tokenizer is None:
        return False
    state: Any = engine.pre_tokenizer.__getstate__()  # JSON
    theirs = re.findall(r'"Regex":"((?:[^"\\]|\\.)*)"', state.decode())
    return any(json.loads(f'"{pattern}"') not in (WORD_OR_GAP, ANY_CHARACTER) for pattern in theirs)


def kind_of(engine: Engine) -> Kind:
    """Which of the kinds it is. Raises RequestError for ids that make no vocabulary, and for another kind."""
    vocabulary = engine.get_vocab()
    ids = set(vocabulary.values())
    if len(ids) < len(vocabulary):
        raise RequestError("the tokenizer has an id for two tokens", f"{len(vocabulary) - len(ids)} of them")
    if ids and max(ids) >= min(MOST_IDS, 10 * len(ids)):
        raise RequestError("the tokenizer's ids", f"{len(ids):,} tokens, and an id of {max(ids):,}")
    model = json.loads(engine.to_str())  # which takes time for every id up to the largest
    kind = model["model"]["type"]
    if model["model"].get("dropout"):
        raise RequestError("the tokenizer has BPE dropout", "its ids would be random", "set it to null")
    if kind == "WordLevel" and ids != set(range(len(vocabulary))):
        raise RequestError("the tokenizer's ids", "expected 0 to its size - 1, each once")
    if (
        kind == "BPE"
        and "ByteLevel" in json.dumps(model["pre_tokenizer"])
        and (n := sum(symbol not in vocabulary for symbol in byte_symbols()))
    ):
        raise RequestError("the tokenizer's vocabulary", f"{n} of the 256 bytes are missing")
    if model["normalizer"] or '"add_prefix_space": true' in json.dumps(model["pre_tokenizer"]):
        raise RequestError("the tokenizer changes text before it cuts it", "decoding would not give it back")
    added = {token["content"] for token in model["added_tokens"]} | {END_OF_TEXT}
    if kind == "WordLevel" and all(len(token) == 1 for token in vocabulary if token not in added):
        return "char"
    if kind == "BPE" and "ByteLevel" in json.dumps(model["pre_tokenizer"]):
        return "word" if model["model"].get("ignore_merges") and not model["model"]["merges"] else "bpe"
    raise RequestError(
        f"the tokenizer's model is {kind}", "expected word, char or byte-level BPE as tformer writes them"
    )


# ---------------------------------------------------------------------------- learning


def cut_long_stretches(text: str) -> list[str]:
    """Learning merges takes time quadratic in the longest stretch of one kind, text or white space: 1,000."""
    if not LONG_STRETCH.search(text):
        return [text]
    return re.findall(r"\s{1000}(?=\s)|\s*\S{1,1000}|\s+", text)


def _groups(chunks: Iterable[str], size: int = 1 << 14) -> Iterator[list[str]]:
    """Short chunks by several, of about so many characters: to hand one over takes a while."""
    group: list[str] = []
    n = 0
    for chunk in chunks:
        group.append(chunk)
        n += len(chunk)
        if n >= size:
            yield group
            group, n = [], 0
    if group:
        yield group


def learn_merges(engine: Engine, chunks: Iterable[str], trainer: trainers.Trainer) -> None:
    """Train in a thread beside this one, which reads and takes signals: the engine looks at none."""
    waiting: Queue[list[str]] = Queue(maxsize=16)
    over = threading.Event()
    errors: list[BaseException] = []

    def pieces() -> Iterator[str]:
        while not (over.is_set() and waiting.empty()):
            with suppress(Empty):
                for chunk in waiting.get(timeout=0.05):
                    yield from cut_long_stretches(chunk)

    def work() -> None:
        try:
            engine.train_from_iterator(pieces(), trainer)
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for group in _groups(chunks):
            while thread.is_alive():
                with suppress(Full):
                    waiting.put(group, timeout=0.2)
                    break
        over.set()
        while thread.is_alive():
            thread.join(0.2)
    finally:  # where it is interrupted as well; a thread that waits for the interpreter must not outlive it
        over.set()
        thread.join(1)
    if errors:
        raise errors[0]
