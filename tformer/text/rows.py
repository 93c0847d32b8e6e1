"""Texts in the rows of tables: JSON lines, CSV and TSV, Parquet, one after another and never all at once.

Knows nothing of what a document is: a row has a text, and a place that a person can look at.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from tformer.counted import counted
from tformer.errors import RequestError
from tformer.text.packed import inner_ending, packing
from tformer.text.plain import BLOCK, MARK, TABLE_ENDINGS, open_file

SEPARATED = {".csv": ",", ".tsv": "\t"}
MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
PARQUET = ".parquet"
LONGEST_FIELD = (1 << 31) - 1  # of a table: the module's own limit is 128 KiB
AT_ONCE = 256  # rows of a Parquet table in memory
FIRST_ROWS = 20  # rows, to know a table by


@dataclass(frozen=True)
class Row:
    """The text of a row, and where that is: a line, or a row of a Parquet table, counted from 1."""

    text: str
    line: int


def is_rows(path: str | Path) -> bool:
    """Whether a file is a table of texts, by its name."""
    return inner_ending(path) in TABLE_ENDINGS


def read_rows(path: Path, field: str, update: Callable[[bytes], object] = lambda raw: None) -> Iterator[Row]:
    """The text under `field` of each row, in memory that does not grow; `update` gets the bytes of the file.

    Raises RequestError, with file and line, for a row that has none, or is none.
    """
    ending = inner_ending(path)
    if ending == PARQUET:
        yield from _parquet(path, field, update)
        return
    with open_file(path) as stream:
        yield from rows_in(stream, ending, str(path), field, update)


def rows_in(
    stream: BinaryIO,
    ending: str,
    name: str,
    field: str,
    update: Callable[[bytes], object] = lambda raw: None,
) -> Iterator[Row]:
    """`read_rows` of a stream that is a table of such an ending; `name` is what messages call it."""
    lines = _lines(stream, name, update)
    if ending in SEPARATED:
        yield from _separated(lines, SEPARATED[ending], name, field)
    else:
        yield from _json_lines(lines, name, field)


def table_in(head: str, field: str) -> str:
    """The ending of the table with such a field that a text is, by its beginning; empty where it is none.

    JSON lines by the first one; CSV and TSV by a header that names the field, and as many columns in the rows
    that follow.

    >>> [table_in(head, "text") for head in ('{"text": "To be"}', "id,text\\n1,To be", "To be")]
    ['.jsonl', '.csv', '']
    """
    if names_in(head):
        try:
            _text_of(json.loads(_first_line(head)), field, "")
        except RequestError:
            return ""
        return ".jsonl"
    csv.field_size_limit(LONGEST_FIELD)
    for ending, mark in SEPARATED.items():
        try:
            lines, own = io.StringIO(head, newline=""), _own_mark(_first_line(head), mark)
            header, *rows = islice(csv.reader(lines, delimiter=own, strict=True), FIRST_ROWS)
        except (csv.Error, ValueError):
            continue
        has_columns = len(header) > 1 or mark == ","  # one column alone has no mark, and is CSV
        if has_columns and field in header and rows and all(len(row) == len(header) for row in rows if row):
            return ending
    return ""


def names_in(head: str) -> list[str]:
    """The names in the first line of JSON lines; none where it is no object."""
    try:
        values = json.loads(_first_line(head))
    except (ValueError, RecursionError):
        return []
    return [str(name) for name in values] if isinstance(values, dict) else []


def _first_line(head: str) -> str:
    return next((line for line in io.StringIO(head) if line.strip()), "")


def _lines(stream: BinaryIO, name: str, update: Callable[[bytes], object]) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their ends, numbered from 1, without a byte order mark."""
    number, held = 0, b""
    while block := stream.read(BLOCK):
        update(block)
        *whole, held = (held + block).split(b"\n")
        for line in whole:
            number += 1
            yield number, _decoded(line + b"\n", name, number)
    if held:
        yield number + 1, _decoded(held, name, number + 1)


def _decoded(line: bytes, name: str, number: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found 0x{line[error.start]:02x} as byte {error.start + 1} of the line"
        raise RequestError(f"{name}, line {number} is not UTF-8", found, "convert it first") from None
    return text.removeprefix(MARK) if number == 1 else text


def _json_lines(lines: Iterable[tuple[int, str]], name: str, field: str) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{str(error).partition(':')[0]}, in {line[:40].strip()!r}"
            raise RequestError(f"{place} is no JSON", why, "expected an object a line") from None
        yield Row(_text_of(values, field, place), number)


def _own_mark(header: str, usual: str) -> str:
    """What separates the columns: in a CSV of half of Europe's spreadsheets it is a semicolon."""
    return ";" if usual == "," and ";" in header and "," not in header else usual


def _separated(lines: Iterable[tuple[int, str]], mark: str, name: str, field: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    texts = (line for _, line in lines)
    first = next(texts, "")
    mark = _own_mark(first, mark)
    rows = csv.reader(chain([first], texts), delimiter=mark, strict=True)
    begins = 1
    try:
        header = next(rows, [])
        if field not in header:
            found = f"its columns are {', '.join(header)[:200]}" if header else "it is empty"
            raise RequestError(f"{name} has no column {field!r}", found, "name it: --field COLUMN")
        column = header.index(field)
        begins = rows.line_num + 1
        for row in rows:
            if any(cell.strip() for cell in row[len(header) :]):
                found = f"found {len(row)} columns, expected {len(header)}"
                advice = f"put a text that has {MARKS[mark]} in quotes"
                raise RequestError(f"{name}, line {begins} has more columns than the header", found, advice)
            if len(row) > column:
                yield Row(row[column], begins)
            elif row:
                found = f"found {counted(len(row), 'column')}, expected {len(header)}"
                raise RequestError(
                    f"{name}, line {begins} has no {field!r}", found, "mend it, or leave it out"
                )
            begins = rows.line_num + 1
    except csv.Error as error:
        what = "TSV" if mark == "\t" else "CSV"
        advice = "quote a text that has quotes, and double those"
        raise RequestError(f"{name}, line {begins} is no {what}", str(error), advice) from None


def _parquet(path: Path, field: str, update: Callable[[bytes], object]) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise RequestError(
            f"{path} is a Parquet table",
            "pyarrow, which reads it, is not installed",
            "pip install 'tformer[parquet]'",
        ) from None
    if packing(path):
        raise RequestError(f"{path} is a packed Parquet table", "", "unpack it: a table is packed inside")
    with open_file(path) as stream:
        while block := stream.read(BLOCK):
            update(block)
    column, number = field.partition(".")[0], 0
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if column not in names:
                found = f"its columns are {', '.join(names)[:200]}"
                raise RequestError(f"{path} has no column {column!r}", found, "name it: --field COLUMN")
            for batch in table.iter_batches(AT_ONCE, columns=[column]):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(_text_of(values, field, f"{path}, row {number}"), number)
    except (OSError, ValueError) as error:  # pyarrow's own are these
        raise RequestError(f"{path} is no Parquet table", str(error).splitlines()[0]) from None


def _text_of(values: Any, field: str, place: str) -> str:
    """The string under a field, nested by dots. Raises RequestError where there is none."""
    found = values
    for name in [field] if isinstance(values, dict) and field in values else field.split("."):
        if not isinstance(found, dict):
            raise RequestError(f"{place} has no {field!r}", f"found {_kind(found)}", "expected an object")
        if name not in found:
            there = f"it has {', '.join(map(str, found))[:200]}" if found else "it is empty"
            raise RequestError(f"{place} has no {field!r}", there, "name the field of the text: --field NAME")
        found = found[name]
    if not isinstance(found, str):
        raise RequestError(f"{field!r} in {place} is no text", f"found {_kind(found)}", "expected a string")
    try:
        found.encode()
    except UnicodeEncodeError:  # half a surrogate pair is JSON, and no text
        what = "found half of a surrogate pair"
        raise RequestError(f"{field!r} in {place} is no text", what, "mend it, or leave it out") from None
    return found


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
