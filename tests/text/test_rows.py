"""Tables of texts, and packed files: what is read of them, what is refused and where."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from pathlib import Path

import pytest

from tformer.errors import RequestError
from tformer.text.corpus import load_corpus
from tformer.text.documents import TextReading
from tformer.text.plain import list_folder
from tformer.text.rows import read_rows

TEXTS = ["To be,\nor not to be", 'the "question"', "", "née, 日本", "a\tb, c"]


def jsonl(texts=TEXTS, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts))


def separated(mark):
    import csv

    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark)
    writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    return out.getvalue()


FILES = {
    "a.jsonl": jsonl(),
    "a.ndjson": "\ufeff" + jsonl().replace("\n", "\n\n"),
    "a.csv": separated(","),
    "a.tsv": separated("\t"),
    "semicolons.csv": separated(";"),
}
PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".XZ": lzma.compress}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", FILES)
def test_a_table_gives_its_texts_packed_or_not(tmp_path, name, packing):
    path = tmp_path / (name + packing)
    path.write_bytes(PACKINGS[packing](FILES[name].encode()))
    assert [row.text for row in read_rows(path, "text")] == TEXTS
    assert load_corpus([str(path)]).sha256 == load_corpus([str(_plain(tmp_path, name))]).sha256


def _plain(folder, name):
    (folder / "plain").mkdir()
    (folder / "plain" / name).write_bytes(FILES[name].encode())
    return folder / "plain" / name


def test_a_field_is_nested_by_dots_unless_a_name_has_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": {"c": "deep"}}, "x.y": "flat"}\n')
    assert [row.text for row in read_rows(path, "a.b.c")] == ["deep"]
    assert [row.text for row in read_rows(path, "x.y")] == ["flat"]
    hashes = {load_corpus([str(path)], reading=TextReading(field)).sha256 for field in ("a.b.c", "x.y")}
    assert len(hashes) == 2, "what a run records of its text tells the fields apart"


BAD = [  # the file, its bytes, the message
    ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3 is no JSON"),
    (
        "a.jsonl",
        b'{"text": "a"}\n{"story": 1, "id": 2}\n',
        "a.jsonl, line 2 has no 'text' (it has story, id)",
    ),
    ("a.jsonl", b'{"text": null}\n', "'text' in a.jsonl, line 1 is no text (found null)"),
    ("a.jsonl", b'["text"]\n', "a.jsonl, line 1 has no 'text' (found a list)"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "'text' in a.jsonl, line 1 is no text (found half"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "a.jsonl, line 2 is not UTF-8 (found 0xe9 as byte 11"),
    ("a.csv", b"name\nAnna\n", "a.csv has no column 'text' (its columns are name); name it: --field COLUMN"),
    ("a.csv", b"", "a.csv has no column 'text' (it is empty)"),
    ("a.csv", b"id,text\n1,a\n2\n", "a.csv, line 3 has no 'text' (found 1 column, expected 2)"),
    ("a.csv", b'text\n"a\nb"\n"c', "a.csv, line 4 is no CSV"),
    ("a.txt.gz", b"no gzip", "cannot unpack a.txt.gz"),
    ("a.txt.gz", gzip.compress(b"to be" * 99, mtime=0)[:-9], "cannot unpack a.txt.gz"),
    ("a.jsonl.xz", lzma.compress(b"to be" * 99)[:-9], "cannot unpack a.jsonl.xz"),
    ("a.parquet.gz", b"", "a.parquet.gz is a packed Parquet table"),
]


@pytest.mark.parametrize("name, raw, said", BAD)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, monkeypatch, name, raw, said):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(raw)
    with pytest.raises(RequestError) as raised:
        load_corpus([name])
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)


def test_a_parquet_table_is_read_or_what_reads_it_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(RequestError, match=r"pip install 'tformer\[parquet\]'"):
            list(read_rows(path, "text"))
        return
    parquet.write_table(pyarrow.table({"text": TEXTS, "deep": [{"t": t} for t in TEXTS]}), path)
    assert [row.text for row in read_rows(path, "text")] == TEXTS
    expected = [(text, n) for n, text in enumerate(TEXTS, 1)]
    assert [(row.text, row.line) for row in read_rows(path, "deep.t")] == expected
    with pytest.raises(RequestError, match="has no column 'name'"):
        list(read_rows(path, "name"))
    path.write_bytes(b"PAR1")
    with pytest.raises(RequestError, match="is no Parquet table"):
        list(read_rows(path, "text"))


def test_zstd_is_unpacked_or_what_does_it_is_named(tmp_path):
    path = tmp_path / "a.txt.zst"
    try:
        import zstandard
    except ImportError:
        path.write_bytes(b"\x28\xb5\x2f\xfd")
        with pytest.raises(RequestError, match=r"zstd|unpack"):
            load_corpus([str(path)])
        return
    packed = zstandard.compress(b"to be" * 99)
    path.write_bytes(packed)
    assert load_corpus([str(path)]).text == "to be" * 99
    path.write_bytes(b"no zstd at all")
    with pytest.raises(RequestError, match="cannot unpack"):
        load_corpus([str(path)])


def test_a_folder_gives_its_tables_and_packed_files(tmp_path):
    for name in ("b.txt.gz", "c.jsonl", "a.md"):
        (tmp_path / name).write_bytes(gzip.compress(b"b\n") if name.endswith("gz") else jsonl(["c"]).encode())
    (tmp_path / "a.md").write_text("a\n")
    (tmp_path / "d.zip").write_bytes(b"")
    assert [path.name for path in list_folder(tmp_path).files] == ["a.md", "b.txt.gz", "c.jsonl"]
    one = load_corpus([str(tmp_path)], reading=TextReading(documents="none"))
    assert one.text == "a\nb\nc\n"
    assert load_corpus([str(tmp_path)]).text == "a\nb\nc", "a row is a document, and no line"


def test_the_memory_of_rows_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(jsonl(["to be " * 20] * 1000) for _ in range(80))
    tracemalloc.start()
    n = sum(len(row.text) for row in read_rows(path, "text"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 9_600_000 and most < 5_000_000


def test_a_text_with_a_comma_that_is_not_quoted_is_refused_and_not_cut(tmp_path):
    path = tmp_path / "jokes.csv"
    path.write_text("joke\nWhy?\nWell, I do not know.\n")
    with pytest.raises(RequestError, match=r"line 3 has more columns than the header \(found 2.*in quotes"):
        list(read_rows(path, "joke"))
    path.write_text("joke,\nWhy?,\n")
    assert [row.text for row in read_rows(path, "joke")] == ["Why?"], (
        "a comma at the end has nothing after it"
    )
