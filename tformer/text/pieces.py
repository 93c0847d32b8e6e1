"""Texts in pieces: cut anew where no token can span, and short ones put together."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

# A place where text can be cut with no change in the ids: no token of ours, and no pre-token of
# GPT-2's, reaches from a word character into the white space after it.
SAFE_CUT = re.compile(r"(?<=\w)(?=[ \t\r\n])")
CHUNK = 1 << 16  # characters encoded at a time
TOGETHER = 16 * CHUNK  # characters of short documents


def cut_safely(pieces: Iterable[str], size: int = CHUNK) -> Iterator[str]:
    """The same text in chunks of about `size` characters, cut where no token can span.

    Memory is bounded by `size` and the longest stretch without such a place.
    """
    held: list[str] = []
    n_held, enough = 0, size
    for piece in pieces:
        held.append(piece)
        n_held += len(piece)
        if n_held < enough:
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
        enough = 2 * n_held if n_held >= size else size
    if n_held:
        yield "".join(held)


@dataclass(frozen=True)
class Document:
    """A text in pieces, or a part of one; whether the token that ends one stands before it, and after it."""

    pieces: Iterable[str]
    begins: bool = False
    ends: bool = False


def short_together(documents: Iterable[Document]) -> Iterator[tuple[list[Document], list[str]]]:
    """The documents in their order, in groups: short ones with their texts, or a long one with no text.

    To encode texts one at a time takes several times as long.
    """
    group: list[Document] = []
    texts: list[str] = []
    size = 0
    for document in documents:
        pieces = iter(document.pieces)
        first = list(islice(pieces, 2))
        is_short = len(first) == 1 and len(first[0]) <= CHUNK
        if is_short:
            group.append(document)
            texts += first
            size += len(first[0])
        if group and (size > TOGETHER or not is_short):
            yield group, texts
            group, texts, size = [], [], 0
        if not is_short:
            yield [replace(document, pieces=chain(first, pieces))], []
    if group:
        yield group, texts
