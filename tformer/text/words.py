r"""Words, and words to ids without an engine: one regular expression, one table, and numpy for what is left.

The engine cuts a text and writes every token as the symbols of its bytes before it looks it up. Python's `re`
does the cutting of a word vocabulary by itself, so most of a text is one look-up for a word *and* the blank
after it. Words and ids are the engine's (tests/text/test_words.py): its tables of Unicode and Python's may
have different versions, and a text with a character of which the two do not agree goes to it.
"""

import json
import re
import sys
from functools import cache

import numpy as np
from tokenizers import Tokenizer as Engine

from tformer.text.engines import byte_symbols, word_engine

# The tokens of re.split(r"\b", text), but a word and a single blank before another word are one piece.
WORD_AND_BLANK = re.compile(r"\w+(?: (?=\w))?|\W+")


class Lookup(dict[str, int]):
    """The number of a piece: a token's id; that of a word and `pair`, for a word and a blank; or -1."""

    def __missing__(self, piece: str) -> int:
        return -1


UNASKED, ALIKE, UNLIKE = range(3)


class Boundaries:
    """Where a word begins and ends, of which Python is asked where it knows, and else the engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.asked = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
        self.asked[:128] = ALIKE

    def words(self, text: str) -> list[str]:
        """The tokens of a text: those of `re.split(r"\\b", text)`, where Python knows its characters."""
        if self.alike(text):
            return [token for token in re.split(r"\b", text) if token]
        return [text[start:stop] for start, stop in self._spans(text)]

    def alike(self, text: str) -> bool:
        """Whether Python and the engine agree of each character whether it belongs to a word."""
        if text.isascii():
            return True
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        known = self.asked[codes]
        if not known.all():
            for code in np.unique(codes[known == UNASKED]).tolist():
                self.asked[code] = ALIKE if self._agree(chr(code)) else UNLIKE
            known = self.asked[codes]
        return not (known == UNLIKE).any()

    def _agree(self, character: str) -> bool:
        text = f"a{character}."
        try:
            return self._spans(text) == [m.span() for m in re.finditer(r"\w+|\W+", text)]
        except (TypeError, UnicodeError):  # half of a pair of surrogates: what the engine says of it
            return False

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return [span for _, span in self.engine.pre_tokenizer.pre_tokenize_str(text)]


@cache
def boundaries() -> Boundaries:
    """Those of every word tokenizer that is made here."""
    return Boundaries(word_engine([], 256))


class WordIds:
    """Encodes pieces of text with a word vocabulary. `token_bytes` has the bytes of each id."""

    def __init__(self, token_bytes: list[bytes], byte_ids: list[int]):
        self.pair = len(token_bytes)
        self.byte_ids = np.array(byte_ids, dtype=np.int32)
        self.blank = byte_ids[ord(" ")]
        self.numbers = Lookup()
        for i, raw in enumerate(token_bytes):
            token = raw.decode(errors="replace")  # of a byte of a longer character: no piece of a text
            if re.fullmatch(r"\w+|\W+", token) and token.encode() == raw:
                self.numbers.setdefault(token, i)
            if re.fullmatch(r"\w+", token) and token.encode() == raw:
                self.numbers.setdefault(token + " ", i + self.pair)

    def encode(self, text: str) -> np.ndarray | None:
        """The ids of a text, of int32; a word that the vocabulary lacks is its bytes.

        None where Python and the engine do not agree which of its characters belong to words.
        """
        if not boundaries().alike(text):
            return None
        pieces = WORD_AND_BLANK.findall(text)
        found = np.fromiter(map(self.numbers.__getitem__, pieces), dtype=np.int32, count=len(pieces))
        unknown = found < 0
        raw = [pieces[i].encode() for i in np.flatnonzero(unknown).tolist()]
        pairs = found >= self.pair
        sizes = 1 + pairs.astype(np.int64)
        sizes[unknown] = [len(piece) for piece in raw]
        ids = np.repeat(np.where(pairs, found - self.pair, found), sizes)
        ids[np.cumsum(sizes)[pairs] - 1] = self.blank
        ids[np.repeat(unknown, sizes)] = self.byte_ids[np.frombuffer(b"".join(raw), dtype=np.uint8)]
        return ids


def word_ids(engine: Engine, token_bytes: list[bytes]) -> WordIds | None:
    """The same encoding as the engine's; None where that is not our own of words, or reads special tokens."""
    symbols, vocabulary = byte_symbols(), engine.get_vocab(with_added_tokens=True)
    if engine.get_added_tokens_decoder() or any(symbol not in vocabulary for symbol in symbols):
        return None
    theirs, ours = (json.loads(e.to_str()) for e in (engine, word_engine([], 256)))
    if any(theirs[part] != ours[part] for part in ("pre_tokenizer", "normalizer")):
        return None
    return WordIds(token_bytes, [vocabulary[symbol] for symbol in symbols])
