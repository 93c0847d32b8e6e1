r"""Text to ids and back: word, char and bpe, one class over the `tokenizers` engine.

- word: the tokens are exactly `[t for t in re.split(r"\b", text) if t]`, of letters that are newer than
  Python as the engine knows them; one outside the vocabulary becomes its UTF-8 bytes: nothing is ever lost.
- char: exactly the characters of the text; one that is not in the vocabulary is an error.
- bpe: byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's pre-tokenizer).

Every token stands for a fixed string of bytes (`token_bytes`), so decoding is joining them, and bits
per byte can be counted for any slice of ids. A vocabulary may have one more row, the token that ends a
document (`end_id`); no text is cut into it: "<|endoftext|>" is thirteen characters like any others. What
a tokenizer made elsewhere says of its own special tokens holds. Files are Hugging Face's `tokenizer.json`.
"""

import codecs
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import trainers

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.files import read_json, read_whole
from tformer.text.engines import (
    END_OF_TEXT,
    Kind,
    bpe_engine,
    byte_symbols,
    char_engine,
    cuts_safely,
    has_pattern_of_others,
    kind_of,
    learn_merges,
    with_end_of_text,
    word_engine,
)
from tformer.text.engines import KINDS as KINDS
from tformer.text.merges import has_merges, in_place_of_tokenizer, merges_engine
from tformer.text.panics import panics_unprinted
from tformer.text.pieces import CHUNK, Document, cut_safely, short_together
from tformer.text.plain import place_in
from tformer.text.words import WordIds, boundaries, word_ids

LARGEST_FILE = 1 << 28  # of a tokenizer.json; those of a quarter of a million tokens have 30 MB
LEAST_COUNT = 2  # of a word, or a pair to merge, in the text that a vocabulary is learnt from


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class UnknownCharacterError(RequestError):
    """A char vocabulary lacks a character of a text; `position` counts from the start of what was encoded."""

    def __init__(self, character: str, position: int, size: int, place: str = ""):
        where = place or f"position {position}"
        super().__init__(
            f"character {character!r} (U+{ord(character):04X}) at {where} is not in "
            f"the vocabulary of {counted(size, 'character')}",
            "",
            "leave it out, or train a word or bpe tokenizer, which take any text",
        )
        self.character, self.position, self.size = character, position, size

    def at(self, place: str) -> "UnknownCharacterError":
        """The same, with the place as a person looks for it; nothing known of that, nothing changed."""
        return UnknownCharacterError(self.character, self.position, self.size, place)


class Tokenizer:
    """Encodes text to ids and decodes ids to the same bytes. `kind` is word, char or bpe.

    `end` is the token that ends a document, as a directory names it; left out, "<|endoftext|>".
    """

    def __init__(self, engine: Engine, end: str = END_OF_TEXT):
        engine.no_truncation()  # all of a text, and nothing but the text
        engine.no_padding()
        self.engine = engine
        self.kind = kind_of(engine)
        self.cuts_safely = cuts_safely(engine)
        self.end_id: int | None = engine.token_to_id(end)  # None where the vocabulary has none

    # ------------------------------------------------------------------ make

    @classmethod
    def train(
        cls,
        kind: Kind,
        texts: Iterable[str],
        vocab_size: int = 4096,
        end_of_text: bool = False,
        are_documents: bool = False,
    ) -> "Tokenizer":
        """Learn a vocabulary; `vocab_size` is for word and bpe, and includes the 256 bytes.

        `texts` are the pieces of one, or documents of their own: no token reaches from one into the next.

        word keeps the most frequent tokens, earlier ones first among equals, and like bpe none that comes
        once: from those a model learns the bytes that unseen words fall to. char takes every character, in
        code point order. With `end_of_text` the last row is the token that ends a document;
        `vocab_size` includes it. Raises RequestError for an empty text.
        """
        if kind in ("word", "bpe") and vocab_size < 257 + end_of_text:
            least = "its 256 bytes and the end of text" if end_of_text else "its 256 bytes"
            raise RequestError(f"a {kind} vocabulary of {vocab_size}", f"expected more than {least}")
        chunks = chain.from_iterable(cut_safely([t]) for t in texts) if are_documents else cut_safely(texts)
        engine = cls._trained(kind, chunks, vocab_size - end_of_text)
        return cls(with_end_of_text(engine) if end_of_text else engine)

    @staticmethod
    def _trained(kind: Kind, chunks: Iterator[str], vocab_size: int) -> Engine:
        if kind == "char":
            alphabet: set[str] = set()
            for chunk in chunks:
                alphabet.update(chunk)
            _refuse_empty(alphabet)
            return char_engine(sorted(alphabet))
        if kind == "word":
            counts: Counter[str] = Counter()
            for chunk in chunks:
                counts.update(boundaries().words(chunk))
            _refuse_empty(counts)
            often = [word for word, count in counts.most_common() if count >= LEAST_COUNT]
            return word_engine(often, vocab_size)
        engine = bpe_engine()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=byte_symbols(),
            show_progress=False,
            min_frequency=LEAST_COUNT,
        )
        first = next(chunks, "")
        _refuse_empty(first)
        learn_merges(engine, chain([first], chunks), trainer)
        return engine

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or what a directory has: that, or `vocab.json` and `merges.txt`.

        A directory's tokenizer_config.json is heard. Raises RequestError if it is not one.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        config = path / "tokenizer_config.json"
        says = read_json(config) if path.is_dir() and config.exists() else {}
        try:
            text = None
            if file.exists() or not has_merges(path):
                text = read_whole(file, LARGEST_FILE, may_be_pipe=file == path)
            with panics_unprinted():
                engine = merges_engine(path) if text is None else Engine.from_str(text)
                engine.encode_special_tokens = says.get("split_special_tokens") is True
                return cls(engine, token_text(says.get("eos_token")) or END_OF_TEXT)
        except OSError as error:
            if path.is_dir():
                raise RequestError(
                    f"no tokenizer in {path}",
                    in_place_of_tokenizer(path) or "expected tokenizer.json, or vocab.json and merges.txt",
                    "put there the one that its model was trained with: without it, ids mean nothing",
                ) from None
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
        """Bytes of each id in a text, as an array to index with ids, for bits per byte.

        A special token that is read from a text counts its own; one that no text is cut into counts none.
        """
        added = self.engine.get_added_tokens_decoder()
        unread = {i for i, token in added.items() if token.special and self.engine.encode_special_tokens}
        if self.end_id is not None and self.end_id not in added:
            unread.add(self.end_id)
        sizes = [0 if i in unread else len(token) for i, token in enumerate(self.token_bytes)]
        return np.array(sizes, dtype=np.int64)

    @cached_property
    def _char_table(self) -> np.ndarray:
        table = np.full(sys.maxunicode + 1, -1, dtype=np.int32)
        for token, i in self.engine.get_vocab().items():
            if len(token) == 1:
                table[ord(token)] = i
        return table

    @cached_property
    def _word_ids(self) -> WordIds | None:
        return word_ids(self.engine, self.token_bytes) if self.kind == "word" else None

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises RequestError for a character that a char vocabulary has not."""
        return self.encode_array([text]).tolist()

    def encode_array(self, pieces: Iterable[str]) -> np.ndarray:
        """The ids of a text given in pieces, in the smallest of uint16 and uint32 that holds them."""
        return self.encode_documents([Document(pieces)])

    def encode_documents(self, documents: Iterable[Document]) -> np.ndarray:
        """The ids of one document after another, with the token that ends one where each says so."""
        dtype = id_dtype(self.vocab_size)
        end = np.asarray([] if self.end_id is None else [self.end_id], dtype=dtype)
        found = bytearray()  # grows where it is: parts that are joined at the end would be there twice
        for group, texts in short_together(documents):
            short: Iterable[Iterable[np.ndarray | list[int]]] = ([ids] for ids in self._encode_texts(texts))
            parts_of = short if texts else [self.encode_stream(group[0].pieces)]
            for document, parts in zip(group, parts_of, strict=True):
                found += end.data if document.begins else b""
                for ids in parts:
                    found += np.asarray(ids, dtype=dtype).data
                found += end.data if document.ends else b""
        return np.frombuffer(found, dtype=dtype)

    def _encode_texts(self, texts: list[str]) -> Iterator[np.ndarray | list[int]]:
        """The ids of each of several short texts."""
        if self.kind == "char":
            ids, at = self._encode_chars("".join(texts), 0), 0
            for text in texts:
                yield ids[at : at + len(text)]
                at += len(text)
            return
        if self._word_ids is None:
            yield from self._encode_batch(texts)
            return
        for text in texts:
            found = self._word_ids.encode(text)
            yield from self._encode_batch([text]) if found is None else [found]

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[np.ndarray | list[int]]:
        """Ids, chunk after chunk, in memory that does not grow with the text."""
        if self.kind == "char":
            position = 0
            for piece in pieces:
                for start in range(0, len(piece), CHUNK):
                    part = piece[start : start + CHUNK]
                    yield self._encode_chars(part, position)
                    position += len(part)
            return
        batch: list[str] = []
        for chunk in cut_safely(pieces) if self.cuts_safely else ["".join(pieces)]:
            if self._word_ids and (ids := self._word_ids.encode(chunk)) is not None:
                yield from self._encode_batch(batch)
                batch = []
                yield ids
                continue
            batch.append(chunk)
            if len(batch) == 16:
                yield from self._encode_batch(batch)
                batch = []
        yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[str]) -> Iterator[list[int]]:
        try:
            with panics_unprinted() if self._may_give_up else nullcontext():
                encodings = self.engine.encode_batch_fast(batch, add_special_tokens=False)
        except BaseException as error:  # a pattern that takes too long on a text ends in a panic
            if type(error).__name__ != "PanicException":
                raise
            why = str(error).splitlines()[0][:200]
            raise RequestError("the tokenizer cannot cut this text", f"its pattern: {why}") from None
        for encoding in encodings:
            yield encoding.ids

    @cached_property
    def _may_give_up(self) -> bool:
        return has_pattern_of_others(self.engine)

    def _encode_chars(self, text: str, position: int) -> np.ndarray:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = self._char_table[code_points]
        if (unknown := np.flatnonzero(ids < 0)).size:
            at = int(unknown[0])
            size = int((self._char_table >= 0).sum())
            raise UnknownCharacterError(text[at], position + at, size)
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
        words = Counter(boundaries().words(text))
        return sum(count for word, count in words.items() if word.encode() not in self._known)

    def text_of(self, i: int) -> str:
        """One token as text; bytes that are no text on their own as U+FFFD."""
        return self.token_bytes[i].decode("utf-8", errors="replace")

    def show(self, i: int) -> str:
        """A token as a person reads it."""
        return quoted(self.token_bytes[i])


def encode_prompt(tokenizer: Tokenizer, text: str, label: str = "the prompt", line: int = 1) -> list[int]:
    """The ids of a prompt. RequestError, with line and column, for a character that the vocabulary lacks."""
    try:
        return tokenizer.encode(text)
    except UnknownCharacterError as error:
        raise error.at(place_in(text, error.position, label, line)) from None


def token_text(token: object) -> str | None:
    """A token as `tokenizer_config.json` names one: its text, or an object that has it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def quoted(raw: bytes) -> str:
    r"""A token in quotes, or its bytes where they are no text.

    >>> quoted("café".encode()), quoted(b"\n"), quoted(b"\xc3")
    ('"café"', '"\\n"', 'bytes c3')
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "bytes " + raw.hex(" ")
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _refuse_empty(vocabulary: object) -> None:
    if not vocabulary:
        raise RequestError("the text is empty", "expected at least one character to learn a vocabulary from")
