"""A text in pieces, put together and cut anew where no token can span."""

import re
from collections.abc import Iterable, Iterator

# A place where text can be cut with no change in the ids: no token of ours, and no pre-token of
# GPT-2's, reaches from a word character into the white space after it.
SAFE_CUT = re.compile(r"(?<=\w)(?=[ \t\r\n])")
CHUNK = 1 << 16  # characters encoded at a time


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
