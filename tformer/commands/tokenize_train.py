"""`tformer tokenize --train`: a tokenizer from a text of any size, of which a part is drawn."""

import sys
from itertools import chain
from pathlib import Path

from tformer.commands.options import check_range, print_json, refuse_existing
from tformer.errors import RequestError, harmless
from tformer.files import write_file


def train_tokenizer(
    names: list[str],
    field: str,
    documents: str | None,
    kind: str | None,
    vocab_size: int | None,
    end_of_text: bool,
    out: Path | None,
    overwrite: bool,
    seed: int | None,
    json: bool,
) -> None:
    """Learn a vocabulary from the texts and write it to a file."""
    from tformer.text.engines import MOST_IDS
    from tformer.text.tokenizer import KINDS, Tokenizer

    if kind not in KINDS:
        given = "--train without --tokenizer" if kind is None else f"--tokenizer {kind}"
        raise RequestError(given, f"with --train, expected {', '.join(KINDS)}")
    if kind == "char" and vocab_size is not None:
        raise RequestError("--vocab-size with char", "a char vocabulary is every character of the text")
    if out is None:
        raise RequestError(
            "--train without --out", "expected where to write the tokenizer", "--out tokenizer.json"
        )
    check_range("--vocab-size", vocab_size, 257, MOST_IDS)
    refuse_existing(out, overwrite)
    from tformer.show.progress import bytes_progress
    from tformer.text.blocks import BigText, big_files, text_size
    from tformer.text.sampled import SampledText

    files, folders = big_files(names)
    size = 4096 if vocab_size is None else vocab_size
    with bytes_progress("reading", text_size(files)) as tell:
        text = BigText(files, field, documents or "none", tell=tell)
        sampled = None
        if kind == "char":  # a character that it lacks could not be written: it is learnt from all of a text
            texts = chain.from_iterable(block.pieces() for block in text.blocks())
        else:
            sampled = SampledText(text.blocks(), seed or 0)
            texts = chain(sampled.texts())
        trained = Tokenizer.train(kind, texts, size, end_of_text, are_documents=True)
    for note in text.notes(folders):
        print(harmless(note), file=sys.stderr)
    if sampled and sampled.kept_bytes < sampled.n_bytes:
        part = f"{sampled.kept_bytes:,} of {sampled.n_bytes:,} bytes, drawn with the seed {seed or 0}"
        print(f"the vocabulary is learnt from {part}", file=sys.stderr)
    write_file(out, trained.to_json().encode())
    if json:
        print_json({"tokenizer": str(out), "kind": kind, "vocab_size": trained.vocab_size})
    else:
        print(harmless(f"{out}: {kind}, {trained.vocab_size:,} ids"), file=sys.stderr)
