"""Texts to be judged by: that of `--data`, or what was kept for validation of a run's own, found again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tformer.errors import RequestError
from tformer.progress import Progress, silent
from tformer.run.kept_ids import KeptIds, text_ids
from tformer.run.record import Record, check_hash
from tformer.run.swap import CHECKPOINTS
from tformer.run.token_folders import FolderIds, are_token_folders, open_folder_ids
from tformer.text.corpus import CORPORA, Corpus, load_corpus
from tformer.text.data import Split, documents, load_token_files, split_at, token_hash
from tformer.text.documents import TextReading, documents_in
from tformer.text.engines import MOST_IDS
from tformer.text.split import cut_of, ids_apart, kept_apart
from tformer.text.tokenizer import Tokenizer

ANOTHER_TEXT = "give --data FILE"


@dataclass(frozen=True)
class Source:
    """Where a text is, which part of it is scored, and the sha256 that it must have, if any."""

    names: list[str]
    fraction: float  # as a share of its characters or ids
    sha256: str | None
    on: str  # in words
    reading: TextReading
    trained: "Source | None" = None  # where it is a text of its own: that which was trained on
    kept: KeptIds | None = None  # of the run that it is of
    how: str = "end"  # that part is the end, or lines, documents or files: `data.val_split`

    @property
    def is_ids(self) -> bool:
        """Whether it is token files, or folders of them."""
        return are_token_folders(self.names) or all(name.endswith(".npy") for name in self.names)

    @property
    def is_here(self) -> bool:
        """Whether it can be read without a download."""
        return all((CORPORA[name].path if name in CORPORA else Path(name)).exists() for name in self.names)

    def all_ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """All ids of token files. Raises RequestError where they are not what was recorded."""
        if are_token_folders(self.names):
            return self._folders(tokenizer).all_ids()
        ids = load_token_files([Path(name) for name in self.names], tokenizer.vocab_size)
        check_hash(token_hash(ids), self.sha256, ANOTHER_TEXT)
        return ids

    def ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """Of token files, what is scored."""
        if are_token_folders(self.names) and self.fraction < 1:
            return self._folders(tokenizer).parts(self.how, self.fraction)[1]
        ids, cut = self._ids_and_cut(tokenizer)
        return ids[cut:]

    def _folders(self, tokenizer: Tokenizer) -> FolderIds:
        found = open_folder_ids(self.names)
        found.check_tokenizer(tokenizer)
        check_hash(found.sha256, self.sha256, ANOTHER_TEXT)
        return found

    def _ids_and_cut(self, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
        if are_token_folders(self.names) and self.fraction < 1:
            folders = self._folders(tokenizer)
            folders.check_size()
            train, val = folders.parts(self.how, self.fraction)
            return np.concatenate((train[: len(train)], val)), len(train)
        ids = self.all_ids(tokenizer)
        if self.how == "documents" and tokenizer.end_id is not None:
            return ids_apart(ids, tokenizer.end_id, self.fraction)
        return ids, split_at(len(ids), self.fraction)

    def corpus(self) -> Corpus:
        """All of a text, what is scored at its end. RequestError where it is not what was recorded."""
        corpus = load_corpus(self.names, reading=self.reading, must_be_separated=False)
        check_hash(corpus.sha256, self.sha256, ANOTHER_TEXT)
        # A text that is given, and has not the documents that a run has, is cut at its end.
        how = "end" if self.how == "documents" and corpus.n_documents < 2 else self.how
        return kept_apart(corpus, how, self.fraction)

    def text_ids(
        self, corpus: Corpus, tokenizer: Tokenizer, end_of_text: bool, tell: Progress = silent
    ) -> np.ndarray:
        """Of a text, the ids of what is scored, with the token between documents if that is wanted."""
        start, stop = cut_of(corpus, self.fraction), len(corpus.text)
        return text_ids(tokenizer, corpus, start, stop, end_of_text, self.kept, tell)

    def split(self, tokenizer: Tokenizer) -> Split:
        """Both parts, as text, each document on lines of its own; a token file is decoded."""
        if self.trained:
            train, val = self.trained.split(tokenizer), replace(self, trained=None).split(tokenizer)
            return Split(train.val, val.val, train.val_documents, val.val_documents)
        if not self.is_ids:
            corpus = self.corpus()
            cut, end = cut_of(corpus, self.fraction), len(corpus.text)
            if tokenizer.kind == "char":  # a character that it lacks is said with its place in a file
                text_ids(tokenizer, corpus, cut, end, False)
            if corpus.documents == "none" or corpus.n_documents < 2:
                return Split(corpus.text[:cut], corpus.text[cut:])
            train_texts, val_texts = (
                ["".join(document.pieces) for document in documents(corpus.text, corpus.ends, *part)]
                for part in ((0, cut), (cut, end))
            )
            return Split(_lines(train_texts), _lines(val_texts), train_texts, val_texts)
        ids, cut = self._ids_and_cut(tokenizer)
        if tokenizer.end_id is not None and (ids == tokenizer.end_id).any():
            train_texts, val_texts = (
                [tokenizer.decode(part.tolist()) for part in documents_in(some, tokenizer.end_id)]
                for some in (ids[:cut], ids[cut:])
            )
            return Split(_lines(train_texts), _lines(val_texts), train_texts, val_texts)
        return Split(tokenizer.decode(ids[:cut].tolist()), tokenizer.decode(ids[cut:].tolist()))


def sha256_of(names: Sequence[str], record: Record) -> str:
    """The hash by which the text of a run is known, of other sources as it would read them."""
    if are_token_folders(list(names)):
        return open_folder_ids(list(names)).sha256
    if all(name.endswith(".npy") for name in names):
        size = record.tokenizer.size if record.tokenizer else None
        return token_hash(load_token_files([Path(name) for name in names], size or MOST_IDS))
    return load_corpus(names, reading=record.reading, must_be_separated=False).sha256


def _lines(texts: Sequence[str]) -> str:
    return "".join(text if text.endswith("\n") else text + "\n" for text in texts)


def given_source(
    names: Sequence[str], fraction: float = 1.0, reading: TextReading | None = None, how: str = "end"
) -> Source:
    """The text of `--data`: all of it is scored, or a part, chosen as `data.val_split` has it."""
    return Source(list(names), fraction, None, " ".join(names), reading or TextReading(), how=how)


def recorded_source(folder: Path, record: Record) -> Source:
    """What a run was trained on; its validation part is scored.

    Raises RequestError where that cannot be read again. A run that kept nothing for validation has a
    fraction of 0.
    """
    sources = record.data.source
    if not sources:
        raise RequestError(f"{folder} does not say what it was trained on", "", ANOTHER_TEXT)
    if "-" in sources:
        raise RequestError(f"{folder} was trained on standard input", "", ANOTHER_TEXT)
    for source in (*sources, *record.data.val_source):
        if source not in CORPORA and not Path(source).exists():
            raise RequestError(
                f"{folder} was trained with {source}, which is not there any more", "", ANOTHER_TEXT
            )
    kept = KeptIds(folder / CHECKPOINTS)
    if not record.data.val_source:
        return Source(
            list(sources),
            record.val_fraction,
            record.data.sha256,
            "its validation part",
            record.reading,
            kept=kept,
            how=record.val_split,
        )
    trained = given_source(sources, reading=record.reading)
    own, sha256 = record.data.val_source, record.data.val_sha256
    trained = replace(trained, sha256=record.data.sha256)
    return Source(own, 1.0, sha256, "its validation text", record.reading, trained, kept)
