"""`tformer tokenize`: text to ids and back, and new tokenizers. Imports no torch."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.options import (
    Json,
    check_overwrite,
    check_range,
    print_json,
    refuse_existing,
    unasked,
)
from tformer.commands.tokenize_decode import decode as decode_ids
from tformer.commands.tokenize_decode import streams_of
from tformer.commands.tokenize_documents import CutText
from tformer.commands.tokenize_shards import is_folder, write_shards
from tformer.commands.tokenize_train import train_tokenizer
from tformer.counted import counted
from tformer.errors import RequestError, harmless

if TYPE_CHECKING:
    import numpy as np

    from tformer.text.plain import Trail
    from tformer.text.tokenizer import Tokenizer

SHOWN = 500  # rows of --show
MOST_PROCESSES = 1024

EXAMPLES = (
    "tformer tokenize --train my.txt --tokenizer bpe --out bpe.json",
    'echo "O God" | tformer tokenize --tokenizer bpe.json --show',
    "tformer tokenize my.txt --tokenizer bpe.json | tformer tokenize - --decode --tokenizer bpe.json",
)


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE…|-]",
            help="Text; with --decode ids, or a folder of token files. - is stdin.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="A tokenizer.json or a run (default: the newest run); with --train: word, char or bpe."
        ),
    ] = None,
    field: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Column or field that holds the text (.jsonl, .csv, .tsv, .parquet)."
        ),
    ] = "text",
    documents: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Split into documents, each followed by an end-of-text token: line, paragraph, file (in "
            "a table: row), the separator line, or auto; with --decode: restore the separators.",
        ),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Turn ids back into exactly the original bytes.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train a tokenizer on FILE and write it to --out.")
    ] = False,
    vocab_size: Annotated[
        int | None, typer.Option(help="With --train: vocabulary size of word and bpe.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="With --train: random seed for sampling a text larger than 128 MiB.")
    ] = None,
    end_of_text: Annotated[
        bool, typer.Option(help="With --train: add an end-of-text token as the last id.")
    ] = True,
    show: Annotated[bool, typer.Option("--show", help="Show tokens and their ids as a table.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts instead of ids.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Write a token file (.npy) for train, or a FOLDER/ of them for text of any size (resumed if "
            "interrupted); with --train: the tokenizer.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="With --out FOLDER/: number of encoding processes. Default: one per core."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")] = False,
    json: Json = False,
) -> None:
    """Encode text as token ids, decode ids, or train a tokenizer.

    Ids go to stdout, separated by spaces; --decode restores exactly the original bytes.
    """
    names = files or unasked("ids" if decode else "a text")
    if not names:
        raise RequestError("no FILE", "expected files, or - for standard input")
    chosen = [
        o for o, on in (("--decode", decode), ("--show", show), ("--stats", stats), ("--train", train)) if on
    ]
    if len(chosen) > 1:
        raise RequestError(f"{' and '.join(chosen)} at once", "expected one of them")
    into_folder = out is not None and not train and is_folder(out)
    file = None if out is None else Path(out)
    check_overwrite(overwrite, "--out", file)
    if processes is not None and not into_folder:
        raise RequestError("--processes without --out FOLDER/", "", "leave it out")
    check_range("--processes", processes, 1, MOST_PROCESSES)
    if vocab_size is not None and not train:
        raise RequestError("--vocab-size without --train", "", "a trained tokenizer has its size")
    if seed is not None and not train:
        raise RequestError("--seed without --train", "", "nothing else is drawn")
    check_range("--seed", seed, 0)
    if not (end_of_text or train):
        raise RequestError("--no-end-of-text without --train", "", "a trained tokenizer has its rows")
    from tformer.text.shards import is_token_folder

    if documents is not None:
        from tformer.text.documents import check_separator

        check_separator(documents, [])
    if not decode and (ids := [name for name in names if is_token_folder(name)]):
        advice = "train takes it as it is; tokenize --decode writes its text"
        raise RequestError(f"{ids[0]} is a folder of ids", "expected text", advice)
    if train:
        train_tokenizer(
            names, field, documents, tokenizer, vocab_size, end_of_text, file, overwrite, seed, json
        )
        return
    if json and (decode or show):
        raise RequestError(f"--json with {chosen[0]}", "it is for ids and for --stats")
    if out and chosen:
        raise RequestError(
            f"--out with {chosen[0]}", "it writes the ids of a text", "redirect stdout instead"
        )
    if file and not into_folder:
        refuse_existing(file, overwrite)
        if file.suffix != ".npy":
            advice = f"--out {file.with_suffix('.npy')}, or --out {file}/ for a folder of them"
            raise RequestError(f"--out {file}", "a token file ends in .npy", advice)
    if decode and tokenizer is None and is_token_folder(names[0]):
        tokenizer = names[0]
    loaded = _load(tokenizer)
    if documents not in (None, "none") and loaded.end_id is None:
        found = "the tokenizer has no token that ends a document"
        raise RequestError(f"--documents {documents}", found, "leave it out, or --documents none")
    if decode:
        decode_ids(names, loaded, documents)
        return
    if file and into_folder:
        write_shards(names, field, documents, loaded, file, overwrite, processes, json)
        return
    from tformer.text.plain import Trail
    from tformer.text.tokenizer import UnknownCharacterError

    trail = Trail()

    if documents is not None and documents != "none":
        _of_documents(names, field, documents, loaded, show, stats, file, json)
        return
    try:
        if show:
            _show(loaded.encode_stream(_pieces(names, field, trail)), loaded)
        elif stats:
            _stats(_pieces(names, field, trail), loaded, json)
        elif file:
            _write_npy(loaded.encode_stream(_pieces(names, field, trail)), loaded, file)
        else:
            _encode(_pieces(names, field, trail), loaded, json)
    except UnknownCharacterError as error:
        raise error.at(trail.at(error.position)) from None


def _load(name: str | None) -> "Tokenizer":
    from tformer.run.find import newest_run
    from tformer.run.own_tokenizer import run_tokenizer, tokenizer_of
    from tformer.run.record import read_record
    from tformer.text.tokenizer import KINDS

    if name in KINDS:
        raise RequestError(
            f"--tokenizer {name} is a kind", "expected a tokenizer.json or a run", "add --train to make one"
        )
    if name is None:
        folder = newest_run(lambda record: True, "a run with a tokenizer")
        print(harmless(f"using {folder}"), file=sys.stderr)
        return run_tokenizer(folder, read_record(folder))
    return tokenizer_of(name)


def _pieces(names: Iterable[str], field: str, trail: "Trail | None" = None) -> Iterator[str]:
    """The texts; `trail` follows them. What was read of a folder, and what not, is said on stderr."""
    from tformer.text.plain import Trail, existing, read_folder, read_text
    from tformer.text.rows import is_rows, read_rows

    trail = trail or Trail()
    for name in names:
        before = trail.characters
        folder = read_folder(Path(name)) if name != "-" and Path(name).is_dir() else None
        for label in map(str, folder.files) if folder else [name]:
            if is_rows(label):
                texts = (f"{row.text}\n" for row in read_rows(existing(Path(label)), field))
                yield from trail.of(texts, label)
                continue
            for stream, shown in streams_of([label]):
                yield from trail.of(read_text(stream, shown), shown)
        if folder:
            print(harmless(folder.note(trail.characters - before)), file=sys.stderr)


def _of_documents(
    names: list[str],
    field: str,
    how: str,
    tokenizer: "Tokenizer",
    show: bool,
    stats: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Ids with a token before the first document and after each; as JSON an object a document, without it."""
    text = CutText(names, field, how, tokenizer)
    if stats:
        for _ in text.chunks():
            pass
        counts = {"documents": text.n_documents, "tokens": text.n_ids, "shortest": text.shortest}
        _tell(counts | {"mean": text.mean, "longest": text.longest}, json)
    elif show:
        _show(text.chunks(), tokenizer)
    elif out:
        _write_npy(text.chunks(), tokenizer, out)
        said = f"{counted(text.n_documents, 'document')}, {text.n_ids:,} ids with a token that ends each"
        print(harmless(said), file=sys.stderr)
    elif json:
        for ids in text.documents():
            print_json({"ids": ids, "tokens": [tokenizer.text_of(i) for i in ids]})
    else:
        _write(text.chunks(), tokenizer)
        sys.stdout.write("\n")


def _encode(pieces: Iterable[str], tokenizer: "Tokenizer", json: bool) -> None:
    chunks = tokenizer.encode_stream(pieces)
    if not json:
        _write(chunks, tokenizer)
        sys.stdout.write("\n")
        return
    first = True
    for chunk in chunks:
        ids = chunk if isinstance(chunk, list) else chunk.tolist()
        first = False
        print_json({"ids": ids, "tokens": [tokenizer.text_of(i) for i in ids]})
    if first:
        print_json({"ids": [], "tokens": []})


def _write(chunks: "Iterable[np.ndarray | list[int]]", tokenizer: "Tokenizer") -> None:
    """Ids to stdout, separated by spaces."""
    first = True
    numbers = [str(i) for i in range(tokenizer.vocab_size)]
    for chunk in chunks:
        if ids := chunk if isinstance(chunk, list) else chunk.tolist():
            sys.stdout.write(("" if first else " ") + " ".join(map(numbers.__getitem__, ids)))
            first = False


def _show(chunks: "Iterable[np.ndarray | list[int]]", tokenizer: "Tokenizer") -> None:
    from tformer.show import terminal

    rows: list[tuple[int, str]] = []
    total = 0
    for chunk in chunks:
        rows += [(int(i), tokenizer.show(int(i))) for i in chunk[: SHOWN - len(rows)]]
        total += len(chunk)
    terminal.token_table(rows, terminal.out())
    if total > len(rows):
        terminal.say(f"the first {len(rows)} of {total:,} tokens")


def _stats(pieces: Iterable[str], tokenizer: "Tokenizer", json: bool) -> None:
    from tformer.text.pieces import cut_safely

    n_bytes = n_chars = unknown = 0

    def counted() -> Iterator[str]:
        nonlocal n_bytes, n_chars, unknown
        for chunk in cut_safely(pieces):
            n_chars += len(chunk)
            n_bytes += len(chunk.encode())
            unknown += tokenizer.count_unknown(chunk)
            yield chunk

    counts: Counter[int] = Counter()
    for chunk in tokenizer.encode_stream(counted()):
        counts.update(int(i) for i in chunk)
    total = sum(counts.values())
    values: dict[str, Any] = {
        "bytes": n_bytes,
        "characters": n_chars,
        "tokens": total,
        "distinct": len(counts),
        "vocabulary": tokenizer.vocab_size,
        "bytes_per_token": n_bytes / total if total else 0.0,
        "unknown": unknown,
    }
    _tell(values, json)


def _tell(values: dict[str, Any], json: bool) -> None:
    """Counts, as JSON or as a table."""
    from tformer.show import terminal

    if json:
        print_json(values)
        return
    facts = {
        name.replace("_", " "): f"{v:.3f}" if isinstance(v, float) else f"{v:,}" for name, v in values.items()
    }
    terminal.fact_table(terminal.out(), facts)


def _write_npy(chunks: "Iterable[np.ndarray | list[int]]", tokenizer: "Tokenizer", out: Path) -> None:
    from tformer.text.data import write_token_file

    n = write_token_file(out, chunks, tokenizer.vocab_size)
    print(harmless(f"{out}: {counted(n, 'id')}"), file=sys.stderr)
