"""The text of a run: read to train on it, and found again to judge by it.

Text → split → ids → windows, in one place for every command. Knows nothing of models or terminals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tformer.config import Config, Layer, merge
from tformer.errors import RequestError
from tformer.progress import DownloadProgress
from tformer.run.find import tokenizer_path
from tformer.run.record import DataFacts, Record, check_hash
from tformer.text.corpus import CORPORA, Corpus, find_character, load_corpus
from tformer.text.data import (
    Batches,
    Reversal,
    Split,
    Windows,
    load_token_file,
    slices,
    split_at,
    split_text,
    token_hash,
)
from tformer.text.tokenizer import KINDS, Tokenizer, UnknownCharacterError

ANOTHER_RUN = "leave --resume out to start another run"
ANOTHER_TEXT = "give --data FILE"

# ---------------------------------------------------------------------------- to be judged by


@dataclass(frozen=True)
class Source:
    """Where a text is, which part of it is scored, and the sha256 that it must have, if any."""

    names: list[str]
    fraction: float  # its end, as a share of its characters or ids
    sha256: str | None
    on: str  # in words

    @property
    def is_ids(self) -> bool:
        """Whether it is a token file."""
        return len(self.names) == 1 and self.names[0].endswith(".npy")

    @property
    def is_here(self) -> bool:
        """Whether it can be read without a download."""
        return all((CORPORA[name].path if name in CORPORA else Path(name)).exists() for name in self.names)

    def all_ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """All ids of a token file. Raises RequestError where it is not what was recorded."""
        ids = load_token_file(Path(self.names[0]), tokenizer.vocab_size)
        check_hash(token_hash(ids), self.sha256, ANOTHER_TEXT)
        return ids

    def ids(self, tokenizer: Tokenizer) -> np.ndarray:
        """Of a token file, what is scored."""
        ids = self.all_ids(tokenizer)
        return ids[split_at(len(ids), self.fraction) :]

    def corpus(self) -> Corpus:
        """All of a text. Raises RequestError where it is not what was recorded."""
        corpus = load_corpus(self.names)
        check_hash(corpus.sha256, self.sha256, ANOTHER_TEXT)
        return corpus

    def text(self, corpus: Corpus) -> str:
        """Of a text, what is scored."""
        return split_text(corpus.text, self.fraction).val

    def split(self, tokenizer: Tokenizer) -> Split:
        """Both parts, as text; a token file is decoded."""
        if not self.is_ids:
            return split_text(self.corpus().text, self.fraction)
        ids = self.all_ids(tokenizer)
        cut = split_at(len(ids), self.fraction)
        return Split(tokenizer.decode(ids[:cut].tolist()), tokenizer.decode(ids[cut:].tolist()))


def given_source(names: Sequence[str], fraction: float = 1.0) -> Source:
    """The text of `--data`: all of it is scored, or its end."""
    return Source(list(names), fraction, None, " ".join(names))


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
    for source in sources:
        if source not in CORPORA and not Path(source).exists():
            raise RequestError(
                f"{folder} was trained on {source}, which is not there any more", "", ANOTHER_TEXT
            )
    return Source(list(sources), record.val_fraction, record.data.sha256, "its validation part")


# ---------------------------------------------------------------------------- to train on


@dataclass
class Data:
    """What a run learns from and is judged by."""

    tokenizer: Tokenizer
    batches: Batches
    val_ids: np.ndarray | None  # None for the reversal task, or where nothing is kept for validation
    facts: DataFacts  # where it came from, its hash and sizes; into tformer.yaml
    reversal: Reversal | None = None


def reversal_task(config: Config) -> Reversal:
    """The task that the configuration describes."""
    return Reversal(config.data.reversal_length, config.data.reversal_symbols, config.train.seed)


def recorded_reversal(record: Record, source: str) -> Reversal | None:
    """The task of a run on reversal, from its `tformer.yaml` at `source`; None for one on text."""
    if record.task != "reversal":
        return None
    return reversal_task(merge([Layer(source, record.settings)]))


def prepare_data(
    config: Config,
    sources: Sequence[str],
    tokenizer: Tokenizer | None = None,
    expected_hash: str | None = None,
    progress: DownloadProgress = lambda done, total: None,
) -> Data:
    """Text → split → ids → windows, or the reversal task.

    `tokenizer` and `expected_hash` are those of a run that is resumed: it goes on with the same data or
    not at all (RequestError). A model that is trained further brings its `tokenizer` too.
    """
    if config.data.task == "reversal":
        task = reversal_task(config)
        alphabet = task.tokenizer()
        if tokenizer and tokenizer.engine.get_vocab() != alphabet.engine.get_vocab():
            raise RequestError(
                f"the reversal task has an alphabet of {alphabet.vocab_size}",
                f"the model's tokenizer is another, {tokenizer.kind} of {tokenizer.vocab_size:,}",
                "data.reversal_symbols and data.reversal_length must be those it was trained with",
            )
        if config.model.n_ctx != task.n_ctx:
            raise RequestError(
                f"model.n_ctx {config.model.n_ctx} for sequences of 2 · {task.length} tokens",
                f"expected {task.n_ctx}",
                "set model.n_ctx or data.reversal_length",
            )
        return Data(alphabet, task, None, DataFacts(source=["reversal"]), reversal=task)
    if len(sources) > 1 and any(source.endswith(".npy") for source in sources):
        raise RequestError(f"several DATA: {' '.join(sources)}", "a token file is given alone")
    if sources[0].endswith(".npy"):
        return _token_file_data(config, Path(sources[0]), tokenizer, expected_hash)
    corpus = load_corpus(sources, progress)
    check_hash(corpus.sha256, expected_hash, ANOTHER_RUN)
    text, cut = corpus.text, split_at(len(corpus.text), config.data.val_fraction)
    tokenizer = tokenizer or make_tokenizer(config, corpus)
    try:
        train_ids = tokenizer.encode_array(slices(text, 0, cut))
        val_ids = tokenizer.encode_array(slices(text, cut, len(text)))
    except UnknownCharacterError as error:
        raise error.at(find_character(error.character, sources, text)) from None
    facts = DataFacts(
        source=absolute(sources),
        sha256=corpus.sha256,
        characters=len(text),
        train_tokens=len(train_ids),
        val_tokens=len(val_ids),
    )
    return _windows_data(config, tokenizer, train_ids, val_ids, facts)


def absolute(sources: Sequence[str]) -> list[str]:
    """Sources that mean the same from any working directory."""
    return [s if s == "-" or s in CORPORA else str(Path(s).resolve()) for s in sources]


def make_tokenizer(config: Config, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the configuration names: a kind, trained here, or a file or run, loaded.

    Word and BPE vocabularies come from the training part; the alphabet from the whole text, since a
    character that it lacks could not be written at all.
    """
    wanted = config.data.tokenizer
    if wanted not in KINDS:
        return Tokenizer.load(tokenizer_path(wanted))
    n = len(corpus.text)
    end = n if wanted == "char" else split_at(n, config.data.val_fraction)
    return Tokenizer.train(wanted, slices(corpus.text, 0, end), config.data.vocab_size)


def _token_file_data(
    config: Config, path: Path, tokenizer: Tokenizer | None, expected_hash: str | None
) -> Data:
    if tokenizer is None:
        if config.data.tokenizer in KINDS:
            raise RequestError(
                f"{path} holds ids",
                "expected the tokenizer that they are of",
                "--tokenizer tokenizer.json",
            )
        tokenizer = Tokenizer.load(tokenizer_path(config.data.tokenizer))
    ids = load_token_file(path, tokenizer.vocab_size)
    cut = split_at(len(ids), config.data.val_fraction)
    digest = token_hash(ids)
    check_hash(digest, expected_hash, ANOTHER_RUN)
    facts = DataFacts(
        source=absolute([str(path)]),
        sha256=digest,
        train_tokens=cut,
        val_tokens=len(ids) - cut,
    )
    return _windows_data(config, tokenizer, ids[:cut], ids[cut:], facts)


def _windows_data(
    config: Config, tokenizer: Tokenizer, train_ids: np.ndarray, val_ids: np.ndarray, facts: DataFacts
) -> Data:
    windows = Windows(train_ids, config.model.n_ctx, config.train.seed, config.data.stride)
    return Data(tokenizer, windows, val_ids if len(val_ids) > 1 else None, facts)
