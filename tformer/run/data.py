"""The text of a run, to train on: text → split → ids → windows. Knows nothing of models or terminals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tformer.config import Config
from tformer.counted import counted
from tformer.errors import RequestError
from tformer.files import refuse_address
from tformer.layers import Layer, merge
from tformer.progress import DownloadProgress, Progress, silent
from tformer.run.kept_ids import KeptIds, text_ids
from tformer.run.own_tokenizer import tokenizer_of
from tformer.run.record import ANOTHER_RUN, DataFacts, Record, check_hash
from tformer.run.source import given_source
from tformer.run.token_folders import are_token_folders, open_folder_ids
from tformer.text.corpus import CORPORA, Corpus, load_corpus
from tformer.text.data import (
    Batches,
    Reversal,
    Windows,
    documents,
    load_token_files,
    slices,
    split_at,
    token_hash,
)
from tformer.text.documents import AUTO, TextReading, lengths_in, sizes_of
from tformer.text.engines import END_OF_TEXT
from tformer.text.sampled import SampledText, is_large, stretches
from tformer.text.shards import IdView
from tformer.text.split import FOR_IDS, are_apart, cut_of, ids_apart, kept_apart, way_for
from tformer.text.tokenizer import KINDS, Tokenizer

# ---------------------------------------------------------------------------- to train on


@dataclass
class Data:
    """What a run learns from and is judged by; the configuration with what the text has settled of it."""

    config: Config
    tokenizer: Tokenizer
    batches: Batches
    val_ids: np.ndarray | None  # None for the reversal task, or where nothing is kept for validation
    facts: DataFacts  # where it came from, its hash and sizes; into tformer.yaml
    reversal: Reversal | None = None
    notes: tuple[str, ...] = ()  # for a person: what was read of a folder, and what not
    kept: KeptIds | None = None  # its ids, to be kept with the run

    @property
    def documents(self) -> str:
        """What a document is: `data.documents`, settled."""
        return self.config.data.documents

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Bytes of each id in the text, by which bits are divided; of the end token what it stands for."""
        return sizes_of(self.tokenizer, self.documents)


Complete = Callable[[Config, Tokenizer, int, int], Config]
"""From configuration, tokenizer and the tokens of the training and of the validation part: the configuration
with what follows from them."""


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
    complete: Complete | None = None,
    kept: KeptIds | None = None,
    encoding: Progress = silent,
) -> Data:
    """Text → split → ids → windows, or the reversal task.

    `tokenizer` and `recorded` are those of a run that is resumed: it goes on with the same data or
    not at all (RequestError). A model that is trained further brings its `tokenizer` too. With `val_sources`
    those are the validation text. `complete` settles what follows from the text's size before there are
    windows. What the run has `kept` is not encoded again. `progress` hears of a download, `encoding` of
    characters.
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
        config = config.updated("data", documents="none", val_split="end")
        return Data(config, alphabet, task, None, DataFacts(source=["reversal"]), reversal=task)
    if are_token_folders(sources):
        data = _token_folder_data(config, sources, tokenizer, recorded.sha256, complete)
        return _validated(data, val_sources, recorded, config, encoding) if val_sources else data
    are_ids = [source.endswith(".npy") for source in sources]
    if any(are_ids) and not all(are_ids):
        raise RequestError(f"token files and texts: {' '.join(sources)}", "expected one kind of them")
    if are_ids[0]:
        data = _token_file_data(config, [Path(s) for s in sources], tokenizer, recorded.sha256, complete)
        data = replace(data, kept=kept)
        return _validated(data, val_sources, recorded, config, encoding) if val_sources else data
    given = tokenizer or (None if config.data.tokenizer in KINDS else _named_tokenizer(config))
    can_end = config.data.end_of_text and (given is None or given.end_id is not None)
    corpus = load_corpus(sources, progress, TextReading(config.data.field, _documents(config, can_end)))
    check_hash(corpus.sha256, recorded.sha256, ANOTHER_RUN)
    if corpus.is_of_rows and config.data.documents not in (AUTO, "none", "file"):
        found = f"{corpus.source} is a table, of which a row is a document"
        raise RequestError(f"data.documents is {config.data.documents}", found, "leave it out")
    if recorded.documents not in (None, corpus.n_documents):
        found = f"{counted(corpus.n_documents, 'document')}, recorded are {recorded.documents:,}"
        raise RequestError("the data of this run is cut in another way", found, ANOTHER_RUN)
    how = config.data.val_split
    corpus = kept_apart(corpus, way_for(corpus, can_end) if how == AUTO else how, config.data.val_fraction)
    config = config.updated("data", documents=corpus.documents, val_split=corpus.how)
    text, cut = corpus.text, cut_of(corpus, config.data.val_fraction)
    tokenizer, learnt = (given, ()) if given else make_tokenizer(config, corpus)
    has_ends = can_end and corpus.documents != "none"
    train_ids = text_ids(tokenizer, corpus, 0, cut, has_ends, kept, encoding)
    val_ids = text_ids(tokenizer, corpus, cut, len(text), has_ends, kept, encoding)
    facts = DataFacts(
        source=absolute(sources),
        sha256=corpus.sha256,
        characters=len(text),
        documents=corpus.n_documents,
        train_tokens=len(train_ids),
        val_tokens=len(val_ids),
    )
    data = _windows_data(config, tokenizer, train_ids, val_ids, facts, complete)
    data = replace(
        data,
        notes=corpus.notes
        + learnt
        + _about_documents(corpus, data, train_ids)
        + _inside_lines(corpus, can_end),
        kept=kept,
    )
    return _validated(data, val_sources, recorded, config, encoding) if val_sources else data


def _documents(config: Config, can_end: bool) -> str:
    """What a document is; none where no token could stand after one."""
    wanted = config.data.documents
    if not can_end and wanted not in (AUTO, "none"):
        has = "data.end_of_text is off" if not config.data.end_of_text else "the tokenizer has no such token"
        found = f"a token stands after each document, and {has}"
        raise RequestError(f"data.documents is {wanted}", found, "--documents none")
    return wanted if can_end else "none"


def _about_documents(corpus: Corpus, data: Data, train_ids: np.ndarray) -> tuple[str, ...]:
    """For a person: how many documents there are, what one is, how long, how many fit a window."""
    end_id, windows = data.tokenizer.end_id, data.batches
    if corpus.n_documents < 2 or corpus.documents == "none" or end_id is None:
        return ()
    lengths = lengths_in(train_ids, end_id)
    if not len(lengths) or not isinstance(windows, Windows):
        return ()
    known = {"line": "lines", "paragraph": "paragraphs", "file": "files or rows"}
    what = known.get(corpus.documents, f"between lines {corpus.documents!r}")
    median = counted(float(np.median(lengths)), "token", spec=",.0f")
    return (
        f"{corpus.n_documents:,} documents ({what}), of {median} in the median; "
        f"{(lengths < windows.n_ctx).mean():.0%} fit a window of {windows.n_ctx:,}; "
        "if they are one text: --documents none",
    )


def _inside_lines(corpus: Corpus, can_end: bool) -> tuple[str, ...]:
    """For a person whose documents end with the token's text inside lines, as files for other tools do."""
    n = corpus.text.count(END_OF_TEXT) if can_end else 0
    if not n:
        return ()
    found = f"{END_OF_TEXT} stands {counted(n, 'time')} beside other text, and is thirteen characters there"
    return (f"{found}; where it is to end a document, put it on a line of its own",)


def _validated(
    data: Data, sources: Sequence[str], recorded: DataFacts, config: Config, encoding: Progress
) -> Data:
    """The same with a validation text of its own. RequestError where that is not what was recorded."""
    if "-" in sources:  # `eval loss` and --resume read it again
        raise RequestError("--val-data -", "expected files or folders", "save it as a file first")
    for name in sources:
        refuse_address(name)
    missing = [s for s in sources if s not in CORPORA and not Path(s).exists()]
    if missing:
        advice = "say where the validation text is: --val-data FILE"
        raise RequestError(f"no data at {missing[0]}", "expected a file or a folder", advice)
    reading = TextReading(config.data.field, data.documents)
    source, notes = replace(given_source(sources, reading=reading), kept=data.kept), data.notes
    if source.is_ids:
        ids = source.all_ids(data.tokenizer)
        sha256 = token_hash(ids)
    else:
        corpus = source.corpus()
        sha256, notes = corpus.sha256, data.notes + corpus.notes
        ids = source.text_ids(corpus, data.tokenizer, data.documents != "none", encoding)
    check_hash(sha256, recorded.val_sha256, ANOTHER_RUN)
    if len(ids) < 2:
        raise RequestError(f"{source.on} has {len(ids)} tokens", "expected at least 2 to validate on")
    facts = data.facts.model_copy(
        update={"val_source": absolute(sources), "val_sha256": sha256, "val_tokens": len(ids)}
    )
    return replace(data, val_ids=ids, facts=facts, notes=notes)


def absolute(sources: Sequence[str]) -> list[str]:
    """Sources that mean the same from any working directory."""
    return [s if s == "-" or s in CORPORA else str(Path(s).resolve()) for s in sources]


def make_tokenizer(config: Config, corpus: Corpus) -> tuple[Tokenizer, tuple[str, ...]]:
    """A tokenizer of the kind that the configuration names, trained here, and what a person should know.

    Word and BPE vocabularies come from the training part, of a large one from a part that is drawn, the same
    whatever the seed of the training is; the alphabet from the whole text, since a character that it lacks
    could not be written at all.
    """
    kind, data, text = config.data.tokenizer, config.data, corpus.text
    assert kind in KINDS
    end = len(text) if kind == "char" else cut_of(corpus, data.val_fraction)
    if kind != "char" and is_large(text, end):
        inner = corpus.ends[corpus.ends < end] if corpus.documents != "none" else ()
        part = SampledText(stretches(text, [*inner, end]))
        made = Tokenizer.train(kind, part.texts(), data.vocab_size, data.end_of_text, are_documents=True)
        return made, (f"the vocabulary is learnt from {part.kept_bytes:,} of {part.n_bytes:,} bytes, drawn",)
    if corpus.documents == "none":
        return Tokenizer.train(kind, slices(text, 0, end), data.vocab_size, data.end_of_text), ()
    texts = ("".join(document.pieces) for document in documents(text, corpus.ends, 0, end))
    return Tokenizer.train(kind, texts, data.vocab_size, data.end_of_text, are_documents=True), ()


def _named_tokenizer(config: Config) -> Tokenizer:
    return tokenizer_of(config.data.tokenizer)


def _token_file_data(
    config: Config,
    paths: Sequence[Path],
    tokenizer: Tokenizer | None,
    expected_hash: str | None,
    complete: Complete | None,
) -> Data:
    how = config.data.val_split
    if how not in (AUTO, "end", "documents") and config.data.val_fraction:
        raise RequestError(f"data.val_split is {how}", f"{paths[0]} holds ids", FOR_IDS)
    if tokenizer is None:
        if config.data.tokenizer in KINDS:
            raise RequestError(
                f"{paths[0]} holds ids",
                "expected the tokenizer that they are of",
                "--tokenizer tokenizer.json",
            )
        tokenizer = _named_tokenizer(config)
    ids = load_token_files(paths, tokenizer.vocab_size)
    digest = token_hash(ids)
    check_hash(digest, expected_hash, ANOTHER_RUN)
    has_ends = config.data.end_of_text and config.data.documents != "none"
    if how == AUTO:
        how = "documents" if has_ends and are_apart(ids, tokenizer.end_id) else "end"
    if how == "documents":
        if tokenizer.end_id is None or not (ids == tokenizer.end_id).any():
            found = f"{paths[0]} has no token that ends one"
            raise RequestError("data.val_split is documents", found, "data.val_split=end")
        ids, cut = ids_apart(ids, tokenizer.end_id, config.data.val_fraction)
    else:
        cut = split_at(len(ids), config.data.val_fraction)
    facts = DataFacts(
        source=absolute([str(path) for path in paths]),
        sha256=digest,
        train_tokens=cut,
        val_tokens=len(ids) - cut,
    )
    one = config.data.documents
    if one == AUTO:
        one = "file" if has_ends else "none"
    config = config.updated("data", documents=one, val_split=how)
    return _windows_data(config, tokenizer, ids[:cut], ids[cut:], facts, complete)


def _token_folder_data(
    config: Config,
    names: Sequence[str],
    tokenizer: Tokenizer | None,
    expected_hash: str | None,
    complete: Complete | None,
) -> Data:
    given = open_folder_ids(names)
    check_hash(given.sha256, expected_hash, ANOTHER_RUN)
    if tokenizer is None and config.data.tokenizer not in KINDS:
        tokenizer = _named_tokenizer(config)
    if tokenizer is not None:
        given.check_tokenizer(tokenizer)
    if config.data.documents not in (AUTO, given.documents):
        what, found = f"data.documents is {config.data.documents}", f"{given.name} has: {given.documents}"
        raise RequestError(what, found, "leave it out, or tokenize the text again")
    how = given.way(config.data.val_split, config.data.end_of_text)
    train_ids, val_ids = given.parts(how, config.data.val_fraction)
    facts = DataFacts(
        source=absolute(names),
        sha256=given.sha256,
        characters=sum(folder.index.read.characters for folder in given.folders),
        documents=given.n_documents or None,
        train_tokens=len(train_ids),
        val_tokens=len(val_ids),
    )
    config = config.updated("data", documents=given.documents, val_split=how)
    if config.data.tokenizer in KINDS:
        config = config.updated("data", tokenizer=given.tokenizer.kind)
    data = _windows_data(config, given.tokenizer, train_ids, val_ids, facts, complete)
    return replace(data, notes=(given.note(config.data.val_fraction, len(val_ids)),))


def _windows_data(
    config: Config,
    tokenizer: Tokenizer,
    train_ids: np.ndarray | IdView,
    val_ids: np.ndarray,
    facts: DataFacts,
    complete: Complete | None,
) -> Data:
    found = len(train_ids)
    if complete:
        if found < 2:
            what = f"the training text has {counted(found, 'token')}"
            raise RequestError(what, "expected at least 2", "give more")
        config = complete(config, tokenizer, found, len(val_ids))
    window = config.data.window
    name, length = ("data.window", window) if window else ("model.n_ctx", config.model.n_ctx)
    if found <= length:
        raise RequestError(
            f"the training text has {counted(found, 'token')}",
            f"expected at least {name.rpartition('.')[2]} + 1 = {length + 1:,}",
            f"give more text or set a smaller {name}",
        )
    windows = Windows(train_ids, length, config.train.seed, config.data.stride)
    return Data(config, tokenizer, windows, val_ids if len(val_ids) > 1 else None, facts)
