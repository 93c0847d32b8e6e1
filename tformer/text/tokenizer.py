r"""Text to ids and back: word, char and bpe, one class over the `tokenizers` engine.

- word: the tokens are exactly `[t for t in re.split(r"\b", text) if t]`; one outside the vocabulary
  becomes its UTF-8 bytes, so that nothing is ever lost.
- char: exactly the characters of the text; one that is not in the vocabulary is an error.
- bpe: byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's pre-tokenizer).

Every token stands for a fixed string of bytes (`token_bytes`), so decoding is joining them, and bits
per byte can be counted for any slice of ids. There are no special tokens: the text "<|endoftext|>" is
thirteen characters like any others. Files are Hugging Face's `tokenizer.json`.
"""

import codecs
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Literal

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from tformer.errors import RequestError

Kind = Literal["word", "char", "bpe"]
KINDS: tuple[Kind, ...] = ("word", "char", "bpe")

# Python's \w is a letter, a number or the underscore; the engine's own \w has combining marks too.
WORD_OR_GAP = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_]+"
# A place where text can be cut with no change in the ids: no token of ours, and no pre-token of
# GPT-2's, reaches from a word character into the white space after it.
SAFE_CUT = re.compile(r"(?<=\w)(?=[ \t\r\n])")
LONG_STRETCH = re.compile(r"(?<!\S)\S{1000}|(?<!\s)\s{1000}")  # looked for where a stretch begins: linear
CHUNK = 1 << 16  # characters encoded at a time
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


def cut_safely(pieces: Iterable[str], size: int = CHUNK) -> Iterator[str]:
    """The same text in chunks of about `size` characters, cut where no token can span.

    Memory is bounded by `size` and the longest stretch without such a place.
    """
    held: list[str] = []
    n_held = 0
    for piece in pieces:
        held.append(piece)
        n_held += len(piece)
        if n_held < size:
            continue
        text, start = "".join(held), 0
        while len(text) - start >= size:
            cut = SAFE_CUT.search(text, start + max(size - 1, 1))
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        held, n_held = [text[start:]], len(text) - start
        # Text without a place to cut is searched again only once it has doubled.
        size = max(CHUNK, 2 * n_held) if n_held >= size else min(size, CHUNK)
    if n_held:
        yield "".join(held)


def _cut_long_stretches(text: str) -> list[str]:
    """Learning merges takes time quadratic in the longest stretch of one kind, text or white space: 1,000."""
    if not LONG_STRETCH.search(text):
        return [text]
    return re.findall(r"\s{1000}(?=\s)|\s*\S{1,1000}|\s+", text)


def _learn(engine: Engine, chunks: Iterable[str], trainer: trainers.Trainer) -> None:
    """Train in a thread beside this one, which reads and can be interrupted: the engine looks at no signal."""
    waiting: Queue[str] = Queue(maxsize=16)
    over = threading.Event()
    errors: list[BaseException] = []

    def pieces() -> Iterator[str]:
        while not (over.is_set() and waiting.empty()):
            with suppress(Empty):
                yield from _cut_long_stretches(waiting.get(timeout=0.05))

    def work() -> None:
        try:
            engine.train_from_iterator(pieces(), trainer)
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for chunk in chunks:
            while thread.is_alive():
                with suppress(Full):
                    waiting.put(chunk, timeout=0.2)
                    break
        over.set()
        while thread.is_alive():
            thread.join(0.2)
    finally:  # where it is interrupted as well; a thread that waits for the interpreter must not outlive it
        over.set()
        thread.join(1)
    if errors:
        raise errors[0]


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class Tokenizer:
    """Encodes text to ids and decodes ids to the same bytes. `kind` is word, char or bpe."""

    def __init__(self, engine: Engine):
        engine.no_truncation()  # all of a text, and nothing but the text
        engine.no_padding()
        self.engine = engine
        self.kind = _kind_of(engine)
        self.cuts_safely = _cuts_safely(engine)

    # ------------------------------------------------------------------ make

    @classmethod
    def train(cls, kind: Kind, texts: Iterable[str], vocab_size: int = 4096) -> "Tokenizer":
        """Learn a vocabulary; `vocab_size` is for word and bpe, and includes the 256 bytes.

        word keeps the most frequent tokens, earlier ones first among equals; char takes every
        character, in code point order. Raises RequestError for an empty text.
        """
        if kind in ("word", "bpe") and vocab_size < 257:
            raise RequestError(f"a {kind} vocabulary of {vocab_size}", "expected more than its 256 bytes")
        chunks = cut_safely(texts)
        if kind == "char":
            alphabet: set[str] = set()
            for chunk in chunks:
                alphabet.update(chunk)
            _refuse_empty(alphabet)
            return cls(char_engine(sorted(alphabet)))
        if kind == "word":
            counts: Counter[str] = Counter()
            for chunk in chunks:
                counts.update(token for token in re.split(r"\b", chunk) if token)
            _refuse_empty(counts)
            return cls(word_engine([word for word, _ in counts.most_common()], vocab_size))
        engine = bpe_engine()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=byte_symbols(),
            show_progress=False,
            min_frequency=2,
        )
        first = next(chunks, "")
        _refuse_empty(first)
        _learn(engine, chain([first], chunks), trainer)
        return cls(engine)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or the one in a run directory. Raises RequestError if it is not one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(Engine.from_str(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise RequestError(
                f"no tokenizer at {file}",
                error.strerror or "unreadable",
                "make one with: tformer tokenize --train FILE --tokenizer word --out tokenizer.json",
            ) from None
        except RequestError:
            raise
        except BaseException as error:  # the engine panics on some malformed files, past Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise RequestError(f"{file} is not a tokenizer.json", why) from None

    def to_json(self) -> str:
        """The text of a `tokenizer.json`."""
        return self.engine.to_str(pretty=True) + "\n"

    # ------------------------------------------------------------------ use

    @cached_property
    def vocab_size(self) -> int:
        """Ids are 0 … vocab_size - 1; a foreign vocabulary may leave some of them without a token."""
        return max(self.engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for."""
        if self.kind == "char":
            return [(self.engine.id_to_token(i) or "").encode() for i in range(self.vocab_size)]
        to_byte = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        added = self.engine.get_added_tokens_decoder()
        table = []
        for i in range(self.vocab_size):
            token = self.engine.id_to_token(i) or ""
            if i in added or any(symbol not in to_byte for symbol in token):
                table.append(token.encode())  # a special token is written as it is
            else:
                table.append(bytes(to_byte[symbol] for symbol in token))
        return table

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Bytes of each id, as an array to index with ids; special tokens count none."""
        added = self.engine.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        sizes = [0 if i in special else len(token) for i, token in enumerate(self.token_bytes)]
        return np.array(sizes, dtype=np.int64)

    @cached_property
    def _char_table(self) -> np.ndarray:
        table = np.full(sys.maxunicode + 1, -1, dtype=np.int32)
        for token, i in self.engine.get_vocab().items():
            table[ord(token)] = i
        return table

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises RequestError for a character that a char vocabulary has not."""
        return self.encode_array([text]).tolist()

    def encode_array(self, pieces: Iterable[str]) -> np.ndarray:
        """The ids of a text given in pieces, in the smallest of uint16 and uint32 that holds them."""
        dtype = id_dtype(self.vocab_size)
        parts = [np.asarray(ids, dtype=dtype) for ids in self.encode_stream(pieces)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[np.ndarray | list[int]]:
        """Ids, chunk after chunk, in memory that does not grow with the text."""
        if self.kind == "char":
            position = 0
            for piece in pieces:
                if piece:
                    yield self._encode_chars(piece, position)
                position += len(piece)
            return
        batch: list[str] = []
        for chunk in cut_safely(pieces) if self.cuts_safely else ["".join(pieces)]:
            batch.append(chunk)
            if len(batch) == 16:
                yield from self._encode_batch(batch)
                batch = []
        yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[str]) -> Iterator[list[int]]:
        for encoding in self.engine.encode_batch(batch, add_special_tokens=False):
            yield encoding.ids

    def _encode_chars(self, text: str, position: int) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = self._char_table[code_points]
        if (unknown := np.flatnonzero(ids < 0)).size:
            at = int(unknown[0])
            raise RequestError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {position + at} is not in "
                f"the vocabulary of {self.vocab_size} characters",
                "",
                "leave it out, or train a word or bpe tokenizer, which take any text",
            )
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Exactly the bytes that the ids came from. Raises RequestError for an id outside the vocabulary."""
        table = self.token_bytes
        out = []
        for i in ids:
            if not 0 <= i < len(table):
                raise RequestError(f"id {i} is not in the vocabulary", f"expected 0 to {len(table) - 1}")
            out.append(table[i])
        return b"".join(out)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 (a sequence cut inside a character) as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decoder(self) -> codecs.IncrementalDecoder:
        """Turns the bytes of token after token into text, holding back half characters."""
        return codecs.getincrementaldecoder("utf-8")(errors="replace")

    @cached_property
    def _known(self) -> set[bytes]:
        return set(self.token_bytes)

    @cached_property
    def start_id(self) -> int:
        """Where an empty prompt starts: a line end where the vocabulary has one, else id 0."""
        return self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0

    def count_unknown(self, text: str) -> int:
        """How many words fall to bytes because the vocabulary has not got them; 0 for char and bpe."""
        if self.kind != "word":
            return 0
        words = Counter(token for token in re.split(r"\b", text) if token)
        return sum(count for word, count in words.items() if word.encode() not in self._known)

    def text_of(self, i: int) -> str:
        """One token as text; bytes that are no text on their own as U+FFFD."""
        return self.token_bytes[i].decode("utf-8", errors="replace")

    def show(self, i: int) -> str:
        """A token as a person reads it: its text, or its bytes where they are no text."""
        raw = self.token_bytes[i]
        try:
            text = raw.decode()
            return json.dumps(text, ensure_ascii=not text.isprintable())
        except UnicodeDecodeError:
            return "bytes " + raw.hex(" ")


# ---------------------------------------------------------------------------- the three engines


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
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    return engine


def bpe_engine() -> Engine:
    """GPT-2's byte-level BPE, untrained."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    return engine


def _cuts_safely(engine: Engine) -> bool:
    """Whether SAFE_CUT holds: for our own pre-tokenizers and GPT-2's. Others get a text in one piece."""
    model = json.loads(engine.to_str())
    theirs = model["pre_tokenizer"] or {}
    gpt2 = theirs.get("type") == "ByteLevel" and theirs.get("use_regex", True)
    ours = WORD_OR_GAP in json.dumps(theirs, ensure_ascii=False).replace("\\\\", "\\")
    reaching = any(
        token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"])
        for token in model["added_tokens"]
    )
    return (gpt2 or ours) and not model["normalizer"] and not reaching


def _kind_of(engine: Engine) -> Kind:
    model = json.loads(engine.to_str())
    kind = model["model"]["type"]
    if model["model"].get("dropout"):
        raise RequestError("the tokenizer has BPE dropout", "its ids would be random", "set it to null")
    vocabulary = engine.get_vocab()
    ids = set(vocabulary.values())
    if len(ids) < len(vocabulary):
        raise RequestError("the tokenizer has an id for two tokens", f"{len(vocabulary) - len(ids)} of them")
    if ids and max(ids) >= min(MOST_IDS, 10 * len(ids)):
        raise RequestError("the tokenizer's ids", f"{len(ids):,} tokens, and an id of {max(ids):,}")
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
    if kind == "WordLevel" and all(len(token) == 1 for token in engine.get_vocab()):
        return "char"
    if kind == "BPE" and "ByteLevel" in json.dumps(model["pre_tokenizer"]):
        return "word" if model["model"].get("ignore_merges") and not model["model"]["merges"] else "bpe"
    raise RequestError(
        f"the tokenizer's model is {kind}", "expected word, char or byte-level BPE as tformer writes them"
    )


def _refuse_empty(vocabulary: object) -> None:
    if not vocabulary:
        raise RequestError("the text is empty", "expected at least one character to learn a vocabulary from")
