"""The text of a run: read to train on it, and found again to judge by it.

Text → split → ids → windows, in one place for every command. Knows nothing of models or terminals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tformer.config import Config
from tformer.errors import RequestError
from tformer.files import refuse_address
from tformer.layers import Layer, merge
from tformer.progress import DownloadProgress
from tformer.run.find import tokenizer_path
from tformer.run.kept_ids import LONG, KeptIds, key_of
from tformer.run.record import FIELD, DataFacts, Record, check_hash
from tformer.run.swap import CHECKPOINTS
from tformer.text.corpus import CORPORA, Corpus, load_corpus
from tformer.text.data import (
    Batches,
    Reversal,
    Split,
    Windows,
    documents,
    load_token_file,
    slices,
    split_at,
    token_hash,
)
from tformer.text.split import cut_of, kept_apart
from tformer.text.tokenizer import KINDS, Tokenizer, UnknownCharacterError

ANOTHER_RUN = "leave --resume out to start another run"
ANOTHER_TEXT = "give --data FILE"

# ---------------------------------------------------------------------------- to be judged by


@dataclass(frozen=True)
class Source:
    """Where a text is, which part of it is scored, and the sha256 that it must have, if any."""

    names: list[str]
    fraction: float  # as a share of its characters or ids
    sha256: str | None
    on: str  # in words
    field: str = FIELD  # of a table
    trained: "Source | None" = None  # where it is a text of its own: that which was trained on
    kept: KeptIds | None = None  # of the run that it is of
    how: str = "end"  # that part is the end, or lines or files: `data.val_split`

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
        """All of a text, what is scored at its end. RequestError where it is not what was recorded."""
        corpus = load_corpus(self.names, field=self.field)
        check_hash(corpus.sha256, self.sha256, ANOTHER_TEXT)
        return kept_apart(corpus, self.how, self.fraction)

    def text(self, corpus: Corpus) -> str:
        """Of a text, what is scored."""
        return corpus.text[cut_of(corpus, self.fraction) :]

    def text_ids(self, corpus: Corpus, tokenizer: Tokenizer, end_of_text: bool) -> np.ndarray:
        """Of a text, the ids of what is scored, with the token between documents if that is wanted."""
        stop = len(corpus.text)
        return text_ids(tokenizer, corpus, cut_of(corpus, self.fraction), stop, end_of_text, self.kept)

    def split(self, tokenizer: Tokenizer) -> Split:
        """Both parts, as text; a token file is decoded."""
        if self.trained:
            return Split(self.trained.split(tokenizer).val, replace(self, trained=None).split(tokenizer).val)
        if not self.is_ids:
            corpus = self.corpus()
            cut = cut_of(corpus, self.fraction)
            return Split(corpus.text[:cut], corpus.text[cut:])
        ids = self.all_ids(tokenizer)
        cut = split_at(len(ids), self.fraction)
        return Split(tokenizer.decode(ids[:cut].tolist()), tokenizer.decode(ids[cut:].tolist()))


def given_source(names: Sequence[str], fraction: float = 1.0, field: str = FIELD) -> Source:
    """The text of `--data`: all of it is scored, or its end."""
    return Source(list(names), fraction, None, " ".join(names), field)


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
            record.field,
            kept=kept,
            how=record.val_split,
        )
    trained = given_source(sources, field=record.field)
    own, sha256 = record.data.val_source, record.data.val_sha256
    trained = replace(trained, sha256=record.data.sha256)
    return Source(own, 1.0, sha256, "its validation text", record.field, trained, kept)


# ---------------------------------------------------------------------------- to train on


@dataclass
class Data:
    """What a run learns from and is judged by."""

    tokenizer: Tokenizer
    batches: Batches
    val_ids: np.ndarray | None  # None for the reversal task, or where nothing is kept for validation
    facts: DataFacts  # where it came from, its hash and sizes; into tformer.yaml
    reversal: Reversal | None = None
    notes: tuple[str, ...] = ()  # for a person: what was read of a folder, and what not
    kept: KeptIds | None = None  # its ids, to be kept with the run


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
    recorded: DataFacts | None = None,
    progress: DownloadProgress = lambda done, total: None,
    val_sources: Sequence[str] = (),
    window_for: Callable[[int], int] | None = None,
    kept: KeptIds | None = None,
) -> Data:
    """Text → split → ids → windows, or the reversal task.

    `tokenizer` and `recorded` are those of a run that is resumed: it goes on with the same data or
    not at all (RequestError). A model that is trained further brings its `tokenizer` too. With `val_sources`
    those are the validation text. `window_for(training tokens)` is how many inputs a window has where
    `data.window` leaves it open. What the run has `kept` is not encoded again.
    """
    recorded = recorded or DataFacts()
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
        data = _token_file_data(config, Path(sources[0]), tokenizer, recorded.sha256, window_for)
        data = replace(data, kept=kept)
        return _validated(data, val_sources, recorded, config) if val_sources else data
    corpus = load_corpus(sources, progress, config.data.field)
    check_hash(corpus.sha256, recorded.sha256, ANOTHER_RUN)
    corpus = kept_apart(corpus, config.data.val_split, config.data.val_fraction)
    text, cut = corpus.text, cut_of(corpus, config.data.val_fraction)
    tokenizer = tokenizer or make_tokenizer(config, corpus)
    end_of_text = config.data.end_of_text
    train_ids = text_ids(tokenizer, corpus, 0, cut, end_of_text, kept)
    val_ids = text_ids(tokenizer, corpus, cut, len(text), end_of_text, kept)
    facts = DataFacts(
        source=absolute(sources),
        sha256=corpus.sha256,
        characters=len(text),
        documents=corpus.n_documents,
        train_tokens=len(train_ids),
        val_tokens=len(val_ids),
    )
    data = _windows_data(config, tokenizer, train_ids, val_ids, facts, window_for)
    data = replace(data, notes=corpus.notes, kept=kept)
    return _validated(data, val_sources, recorded, config) if val_sources else data


def _validated(data: Data, sources: Sequence[str], recorded: DataFacts, config: Config) -> Data:
    """The same with a validation text of its own. RequestError where that is not what was recorded."""
    if "-" in sources:  # `eval loss` and --resume read it again
        raise RequestError("--val-data -", "expected files or folders", "save it as a file first")
    for name in sources:
        refuse_address(name)
    missing = [s for s in sources if s not in CORPORA and not Path(s).exists()]
    if missing:
        advice = "say where the validation text is: --val-data FILE"
        raise RequestError(f"no data at {missing[0]}", "expected a file or a folder", advice)
    source, notes = replace(given_source(sources, field=config.data.field), kept=data.kept), data.notes
    if source.is_ids:
        ids = source.all_ids(data.tokenizer)
        sha256 = token_hash(ids)
    else:
        corpus = source.corpus()
        sha256, notes = corpus.sha256, data.notes + corpus.notes
        ids = source.text_ids(corpus, data.tokenizer, config.data.end_of_text)
    check_hash(sha256, recorded.val_sha256, ANOTHER_RUN)
    if len(ids) < 2:
        raise RequestError(f"{source.on} has {len(ids)} tokens", "expected at least 2 to validate on")
    facts = data.facts.model_copy(
        update={"val_source": absolute(sources), "val_sha256": sha256, "val_tokens": len(ids)}
    )
    return replace(data, val_ids=ids, facts=facts, notes=notes)


def text_ids(
    tokenizer: Tokenizer,
    corpus: Corpus,
    start: int,
    stop: int,
    end_of_text: bool,
    kept: KeptIds | None = None,
) -> np.ndarray:
    """The ids of a text from one character to another, with the token between its documents if wanted.

    Those that are `kept` are taken, and those of a long part are to be. Raises RequestError, with file, line
    and column, for a character that the vocabulary lacks.
    """
    if kept and stop - start >= LONG:
        key = key_of(tokenizer, corpus, start, stop, end_of_text)
        part = (tokenizer, corpus, start, stop, end_of_text)
        return kept.ids(key, tokenizer.vocab_size, lambda: text_ids(*part))
    try:
        if not end_of_text or tokenizer.end_id is None:
            return tokenizer.encode_array(slices(corpus.text, start, stop))
        return tokenizer.encode_documents(documents(corpus.text, corpus.ends, start, stop))
    except UnknownCharacterError as error:
        raise error.at(corpus.place(error.character)) from None


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
    end = n if wanted == "char" else cut_of(corpus, config.data.val_fraction)
    data = config.data
    return Tokenizer.train(wanted, slices(corpus.text, 0, end), data.vocab_size, data.end_of_text)


def _token_file_data(
    config: Config,
    path: Path,
    tokenizer: Tokenizer | None,
    expected_hash: str | None,
    window_for: Callable[[int], int] | None,
) -> Data:
    if config.data.val_split != "end" and config.data.val_fraction:
        raise RequestError(
            f"data.val_split is {config.data.val_split}",
            f"{path} holds ids",
            "data.val_split=end, or --val-data FILE",
        )
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
    return _windows_data(config, tokenizer, ids[:cut], ids[cut:], facts, window_for)


def _windows_data(
    config: Config,
    tokenizer: Tokenizer,
    train_ids: np.ndarray,
    val_ids: np.ndarray,
    facts: DataFacts,
    window_for: Callable[[int], int] | None,
) -> Data:
    found, window = len(train_ids), config.data.window
    if window_for and not window:
        if found < 2:
            raise RequestError(f"the training text has {found} tokens", "expected at least 2", "give more")
        window = max(window_for(found), config.data.stride)
    name, length = ("data.window", window) if window else ("model.n_ctx", config.model.n_ctx)
    if found <= length:
        raise RequestError(
            f"the training text has {found:,} tokens",
            f"expected at least {name.rpartition('.')[2]} + 1 = {length + 1:,}",
            f"give more text or set a smaller {name}",
        )
    windows = Windows(train_ids, length, config.train.seed, config.data.stride)
    return Data(tokenizer, windows, val_ids if len(val_ids) > 1 else None, facts)
