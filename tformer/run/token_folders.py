"""Folders of ids as the data of a run: which part of them is trained on, which is kept for validation.

What is trained on stays on the disk; what it is judged by is in memory, and so is bounded.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.text.data import STREAM_SPLIT, rng, split_at
from tformer.text.documents import AUTO
from tformer.text.permutation import Permutation
from tformer.text.shards import (
    IdView,
    TokenFolder,
    is_token_folder,
    open_token_folder,
    read_index,
)
from tformer.text.split import FOR_A_SPLIT, FOR_IDS, chosen_among
from tformer.text.tokenizer import KINDS, Tokenizer

MOST_TO_VALIDATE = 1 << 22  # ids: a loss is known to a thousandth by a tenth of them
MOST_TO_SCORE = 1 << 26  # ids of --data: each has its loss in memory
MOST_SHUFFLED = 1 << 20  # documents: where each begins and ends is in memory then
DRAWN_AT_ONCE = 1 << 12  # documents looked at, of a draw


def are_token_folders(names: Sequence[str]) -> bool:
    """Whether all are folders of ids. Raises RequestError where some are and others are not."""
    found = [is_token_folder(name) for name in names]
    if any(found) and not all(found):
        raise RequestError(f"token folders and others: {' '.join(names)}", "expected one kind of them")
    return all(found)


def check_kind(names: Sequence[str], kinds: Sequence[object]) -> None:
    """Raises RequestError where a kind of tokenizer is asked for that ids in folders are not of."""
    own = read_index(Path(names[0])).tokenizer.kind if are_token_folders(names) else None
    for kind in kinds:
        if own and kind in KINDS and kind != own:
            raise RequestError(f"data.tokenizer is {kind}", f"{names[0]} holds ids of {own}", "leave it out")


@dataclass(frozen=True)
class FolderIds:
    """Folders of ids as one, which have a tokenizer and a kind of documents in common."""

    folders: tuple[TokenFolder, ...]

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return " ".join(str(folder.path) for folder in self.folders)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the ids."""
        return self.folders[0].tokenizer

    @property
    def documents(self) -> str:
        """What a document is: `data.documents`."""
        return self.folders[0].index.documents

    @property
    def n_documents(self) -> int:
        """That end in them."""
        return sum(folder.index.n_documents for folder in self.folders)

    @property
    def sha256(self) -> str:
        """Of the ids of one folder, as their index has it; of several, of theirs."""
        first, *others = [str(folder.index.sha256) for folder in self.folders]
        return hashlib.sha256(" ".join([first, *others]).encode()).hexdigest() if others else first

    @cached_property
    def ids(self) -> IdView:
        """All of them."""
        if len(self.folders) == 1:
            return self.folders[0].ids
        files = [file for folder in self.folders for file in folder.ids.files]
        every = np.array([0]), np.array([sum(map(len, files))])
        return IdView(files, self.folders[0].ids.vocab_size, self.name, *every)

    def note(self, fraction: float, n_val: int) -> str:
        """For a person: how much there is, and whether less is kept for validation than was asked for."""
        n, files = len(self.ids), len(self.ids.files)
        said = f"{counted(n, 'id')} in {counted(files, 'file')}, "
        said += f"{counted(self.n_documents, 'document')} that end{'s' * (self.n_documents == 1)}"
        return said + f"; {n_val:,} are enough to validate on" * (fraction * n > MOST_TO_VALIDATE)

    def check_tokenizer(
        self, tokenizer: Tokenizer, advice: str = "tokenize the text again with --tokenizer RUN"
    ) -> None:
        """Raises RequestError unless the ids mean the same to a tokenizer."""
        own = self.tokenizer
        if own.token_bytes != tokenizer.token_bytes or own.end_id != tokenizer.end_id:
            raise RequestError(
                f"{self.name} holds ids of another tokenizer",
                f"{own.kind} of {own.vocab_size:,}, and that one is {tokenizer.kind} of "
                f"{tokenizer.vocab_size:,}",
                advice,
            )

    def way(self, how: str, has_ends: bool) -> str:
        """`data.val_split`, settled. Raises RequestError for one that ids do not have."""
        has_ends = has_ends and self.documents != "none"
        if how == AUTO:
            return "documents" if has_ends and self.n_documents >= FOR_A_SPLIT else "end"
        if how in ("lines", "files"):
            raise RequestError(f"data.val_split is {how}", f"{self.name} holds ids", FOR_IDS)
        if how == "documents" and self.n_documents < 2:
            found = f"{self.name} has {self.n_documents} that end"
            raise RequestError("data.val_split is documents", found, "data.val_split=end")
        return how

    def parts(self, how: str, fraction: float) -> tuple[IdView, np.ndarray]:
        """What is trained on, mapped, and what is kept for validation, at most `MOST_TO_VALIDATE` ids.

        The end of the ids, or documents that are drawn whatever the seed is. Up to `MOST_SHUFFLED` documents
        are in the order of the draw, as those of a text in memory are (`kept_apart`); more keep their own.
        """
        n = len(self.ids)
        if how == "documents" and self.n_documents <= MOST_SHUFFLED:
            return self._shuffled(fraction)
        if how != "documents" or not fraction:
            cut = max(split_at(n, fraction), n - MOST_TO_VALIDATE) if fraction else n
            return self.ids.part(0, cut), self.ids[cut:n]
        starts, stops = self._drawn(min(int(fraction * n), MOST_TO_VALIDATE))
        val = self.ids.of(starts, stops)
        end = np.array([self.tokenizer.end_id], dtype=val.dtype)
        in_order = np.argsort(starts)
        before, after = np.append(0, stops[in_order]), np.append(starts[in_order], n)
        return self.ids.of(before, after), np.concatenate((end, val[: len(val)]))

    def _shuffled(self, fraction: float) -> tuple[IdView, np.ndarray]:
        """Both parts in the order of the draw, each after a token; what no document has comes at the end."""
        spans = self._spans(np.arange(self.n_documents))
        sizes, order = spans[:, 1] - spans[:, 0], rng(0, STREAM_SPLIT, 0).permutation(len(spans))
        chosen = np.zeros(len(spans), dtype=bool)
        if fraction:
            chosen = chosen_among(sizes, min(fraction, MOST_TO_VALIDATE / int(sizes.sum())), order)
        train, val = spans[order[~chosen[order]]], self.ids.of(*spans[order[chosen[order]]].T)
        left, n_ids, n_documents = [], 0, 0
        for folder in self.folders:
            n_documents += folder.index.n_documents
            last = spans[n_documents - 1, 1] if n_documents else 0
            left.append((max(n_ids + 1, last), n_ids + len(folder.ids)))
            n_ids += len(folder.ids)
        end = np.array([self.tokenizer.end_id], dtype=val.dtype)[: len(val)]
        return self.ids.of(*np.concatenate(([(0, 1)], train, left)).T), np.concatenate((end, val[: len(val)]))

    def _drawn(self, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """Where documents begin and end that are drawn and come to at most so many ids, in their order.

        Each that still fits is taken until one of some thousands does not; the smallest of these where none
        does.
        """
        order = Permutation(self.n_documents, rng(0, STREAM_SPLIT, 0))
        chosen: list[tuple[int, int]] = []
        for first in range(0, self.n_documents, DRAWN_AT_ONCE):
            places = np.arange(first, min(first + DRAWN_AT_ONCE, self.n_documents))
            spans = self._spans(order[places]).tolist()
            left = budget - sum(stop - start for start, stop in chosen)
            for start, stop in spans:
                if stop - start <= left and len(chosen) < self.n_documents - 1:
                    chosen.append((start, stop))
                    left -= stop - start
            if not chosen:
                chosen.append(min(spans, key=lambda span: span[1] - span[0]))
            if len(chosen) < first + len(places):
                break
        starts, stops = np.array(chosen, dtype=np.int64).T
        return starts, stops

    def _spans(self, documents: np.ndarray) -> np.ndarray:
        """Where some documents begin and end in all ids, shape (documents, 2), with the token after each."""
        found = np.empty((len(documents), 2), dtype=np.int64)
        n_ids = n_documents = 0
        for folder in self.folders:
            own = documents - n_documents
            here = (own >= 0) & (own < folder.index.n_documents)
            found[here, 0] = folder.ends(own[here] - 1) + n_ids
            found[here, 1] = folder.ends(own[here]) + n_ids
            n_ids, n_documents = n_ids + folder.index.n_ids, n_documents + folder.index.n_documents
        if (found[:, 0] >= found[:, 1]).any():
            raise RequestError(
                f"{self.name} has documents that end before they begin", "", "tokenize it again"
            )
        return found

    def check_size(self) -> None:
        """Raises RequestError for more ids than are to be in memory at once."""
        if len(self.ids) > MOST_TO_SCORE:
            found = f"at most {MOST_TO_SCORE:,} are scored"
            advice = f"give one of its files: --data {self.folders[0].path}/ids-00000.npy"
            raise RequestError(f"{self.name} has {len(self.ids):,} ids", found, advice)

    def all_ids(self) -> np.ndarray:
        """In memory, to be scored. Raises RequestError for more than that is meant for."""
        self.check_size()
        return self.ids[: len(self.ids)]


def open_folder_ids(names: Sequence[str | Path]) -> FolderIds:
    """Folders of ids as one. Raises RequestError where their ids do not mean the same."""
    folders = tuple(open_token_folder(Path(name)) for name in names)
    first = folders[0]
    for other in folders[1:]:
        if other.index.tokenizer != first.index.tokenizer:
            raise RequestError(f"{other.path} and {first.path} are of different tokenizers")
        if other.index.documents != first.index.documents:
            found = f"{other.index.documents!r} and {first.index.documents!r}"
            raise RequestError(f"{other.path} and {first.path} have different documents", found)
    return FolderIds(folders)
