"""What `tformer tokenize --documents` needs: a text as ids of documents, and documents as a text again."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from tformer.errors import RequestError, harmless

if TYPE_CHECKING:
    import numpy as np

    from tformer.text.tokenizer import Tokenizer


class CutText:
    """A text as the ids of its documents, block after block, in memory that does not grow with it.

    Counts are those of what has been read; what was read of a folder is said on stderr at the end.
    """

    def __init__(self, names: list[str], field: str, how: str, tokenizer: "Tokenizer"):
        self.names, self.field, self.how, self.tokenizer = names, field, how, tokenizer
        self.n_documents = self.n_ids = self.longest = self._open = 0
        self.shortest = sys.maxsize

    def chunks(self) -> "Iterator[np.ndarray]":
        """Ids with the token that ends a document before the first and after each. RequestError for none."""
        import numpy as np

        from tformer.text.blocks import BigText, big_files
        from tformer.text.workers import encode_here

        files, folders = big_files(self.names)
        cuts = self.tokenizer.cuts_safely or self.tokenizer.kind == "char"
        text = BigText(files, self.field, self.how, cuts)
        for encoded in encode_here(self.tokenizer, text.blocks()):
            ids = encoded.ids
            if not self.n_ids:
                ids = np.concatenate([np.asarray([self.tokenizer.end_id], dtype=ids.dtype), ids])
            self._count(encoded.ends, len(encoded.ids))
            self.n_ids += len(ids)
            yield ids
        if not self.n_documents:
            read = " ".join("standard input" if name == "-" else name for name in self.names)
            raise RequestError(f"{read} is empty", "expected text")
        for note in text.notes(folders):
            print(harmless(note), file=sys.stderr)

    def _count(self, ends: "np.ndarray", n_ids: int) -> None:
        """Documents that end in a block, with what the blocks before had of the first one."""
        import numpy as np

        if len(ends):
            lengths = np.diff(ends, prepend=0) - 1
            lengths[0] += self._open
            self.n_documents += len(ends)
            self.shortest = min(self.shortest, int(lengths.min()))
            self.longest = max(self.longest, int(lengths.max()))
            self._open = 0
        self._open += n_ids - (int(ends[-1]) if len(ends) else 0)

    def documents(self) -> Iterator[list[int]]:
        """The ids of one document after another, without the token."""
        end_id, held = self.tokenizer.end_id, list[int]()
        is_first = True  # what ends at the first token is nothing
        for ids in self.chunks():
            stops = (ids == end_id).nonzero()[0].tolist()
            for i, stop in enumerate(stops):
                part = ids[stops[i - 1] + 1 if i else 0 : stop].tolist()
                if not is_first:
                    yield held + part
                held, is_first = [], False
            held = held + ids[stops[-1] + 1 if stops else 0 :].tolist()

    @property
    def mean(self) -> float:
        """Ids of a document, without the token, in the mean."""
        return (self.n_ids - 1) / self.n_documents - 1


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
