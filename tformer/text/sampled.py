"""A part of a text of any size, drawn with a seed and in bounded memory, to learn a vocabulary from.

Each block has a random number, and those with the smallest are kept, as many as have room: a draw without
replacement of which nothing need be known beforehand ("bottom-k sampling": Cohen & Kaplan 2007).
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tformer.text.blocks import TextBlock
from tformer.text.data import SLICE, STREAM_VOCABULARY, rng, slices

SAMPLED = 1 << 27  # bytes of a text


class SampledText:
    """Documents, or stretches of them, of blocks that were drawn; how many bytes there were, and are."""

    def __init__(self, blocks: Iterable[TextBlock], seed: int = 0, most: int = SAMPLED):
        self.blocks, self.generator, self.most = blocks, rng(seed, STREAM_VOCABULARY, 0), most
        self.n_bytes = self.kept_bytes = 0

    def texts(self) -> Iterator[str]:
        """In the order of the text, when all of it has been read; each is forgotten when it is given."""
        kept: list[tuple[float, int, str, list[bytes]]] = []  # the largest number is the first to go
        for i, block in enumerate(self.blocks):
            raw = [text.encode() for text in block.texts]
            size = sum(map(len, raw))
            self.n_bytes += size
            self.kept_bytes += size
            heapq.heappush(kept, (-self.generator.random(), i, block.how, raw))
            while self.kept_bytes > self.most and len(kept) > 1:
                self.kept_bytes -= sum(map(len, heapq.heappop(kept)[3]))
        kept.sort(key=lambda entry: -entry[1])
        while kept:
            _, _, how, raw = kept.pop()
            yield from TextBlock(tuple(part.decode() for part in raw), how, False, "").pieces()


def stretches(text: str, ends: Sequence[int] | np.ndarray) -> Iterator[TextBlock]:
    """A text in memory, from its start to the last of `ends`, in blocks of some documents that end there.

    A document that is longer than a block is several.
    """
    begin, texts, held = 0, [], 0
    for end in ends:
        for part in slices(text, begin, int(end)):
            texts.append(part)
            held += len(part)
            if held >= SLICE:
                yield TextBlock(tuple(texts), "", False, "")
                texts, held = [], 0
        begin = int(end)
    if texts:
        yield TextBlock(tuple(texts), "", False, "")


def is_large(text: str, end: int, most: int = SAMPLED) -> bool:
    """Whether the part of a text before a character has more bytes than are learnt from."""
    return 4 * end > most and sum(len(part.encode()) for part in slices(text, 0, end)) > most
