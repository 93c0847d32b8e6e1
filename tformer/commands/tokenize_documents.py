"""What `tformer tokenize --documents` needs: a text cut into documents, and documents as a text again."""

import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO

from tformer.errors import harmless

if TYPE_CHECKING:
    from tformer.text.corpus import Corpus
    from tformer.text.tokenizer import Tokenizer


def cut_texts(names: list[str], field: str, how: str) -> "tuple[Corpus, Iterator[str]]":
    """The text in memory, and its documents, with what was read of a folder said on stderr."""
    from tformer.text.corpus import CORPORA, load_corpus
    from tformer.text.documents import TextReading

    files = [f"./{name}" if name in CORPORA else name for name in names]
    corpus = load_corpus(files, reading=TextReading(field, how))
    for note in corpus.notes:
        print(harmless(note), file=sys.stderr)
    spans = pairwise([0, *corpus.ends.tolist()])
    return corpus, (corpus.text[start:stop] for start, stop in spans)


def write_documents(chunks: Iterable[list[int]], tokenizer: "Tokenizer", how: str, out: BinaryIO) -> None:
    """Documents with what separates them in a text; files and rows on lines of their own."""
    from tformer.text.documents import separator

    between, last, waits = separator(how).encode(), b"", False
    for ids in chunks:
        start = 0
        for place in [*(i for i, found in enumerate(ids) if found == tokenizer.end_id), len(ids)]:
            if raw := tokenizer.decode_bytes(ids[start:place]):
                if waits:
                    out.write(b"\n" if how == "file" and not last.endswith(b"\n") else between)
                out.write(raw)
                last, waits = raw, False
            waits = waits or (place < len(ids) and last != b"")
            start = place + 1
    if waits and between:
        out.write(b"\n")
