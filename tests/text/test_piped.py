"""Standard input: what it is is seen by its beginning, and nothing of it is lost by looking."""

import io
import json
import sys

import pytest

from tformer.errors import RequestError
from tformer.text.blocks import BigText, big_files
from tformer.text.corpus import are_lists, load_corpus
from tformer.text.documents import AUTO, TextReading
from tformer.text.piped import beginning, look
from tformer.text.plain import BLOCK

STORIES = ['Once, a "bear".\nIt ran.', "née, 日本", "a\tb"]
JSONL = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(STORIES))
CSV = 'id,text\r\n1,"Once, a ""bear"".\nIt ran."\r\n2,"née, 日本"\r\n3,a\tb\r\n'
TSV = 'id\ttext\n1\t"Once, a ""bear"".\nIt ran."\n2\tnée, 日本\n3\t"a\tb"\n'
SEMICOLONS = CSV.replace(",", ";", 1).replace("1,", "1;").replace("2,", "2;").replace("3,", "3;")
TABLES = {".jsonl": JSONL, ".csv": CSV, ".tsv": TSV, "2.csv": SEMICOLONS}
NAMES = "".join(f"name{i}\n" for i in range(150))


class Slow(io.RawIOBase):
    """A pipe that gives a few bytes at a time, and after its end nothing that could be waited for."""

    def __init__(self, data):
        self.data, self.ends = io.BytesIO(data), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        block = self.data.read(min(7, len(buffer)))
        self.ends += not block
        buffer[: len(block)] = block
        return len(block)


@pytest.fixture
def pipe(monkeypatch):
    def put(text):
        raw = Slow(text.encode() if isinstance(text, str) else text)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8"))
        return raw

    return put


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_that_is_piped_is_what_it_is_in_a_file(pipe, tmp_path, ending):
    file = tmp_path / f"rows{ending}"
    file.write_bytes(TABLES[ending].encode())
    for how in (AUTO, "none"):
        pipe(TABLES[ending])
        piped, named = (load_corpus([name], reading=TextReading("text", how)) for name in ("-", str(file)))
        assert (piped.text, piped.ends.tolist()) == (named.text, named.ends.tolist())
        assert (piped.sha256, piped.is_of_rows) == (named.sha256, True)
        pipe(TABLES[ending])
        texts = [[*BigText(big_files([name])[0], how=how).blocks()] for name in ("-", str(file))]
        assert [block.texts for block in texts[0]] == [block.texts for block in texts[1]]
    assert [*map(str, piped.notes)] == [look("text").note] != [""]


@pytest.mark.parametrize(
    ("text", "field", "ending", "said"),
    [
        (JSONL, "text", ".jsonl", "JSON lines, with the texts under 'text'"),
        ("\ufeff\n" + JSONL, "text", ".jsonl", "JSON lines"),
        ('{"a": {"b": "c"}}\n', "a.b", ".jsonl", "JSON lines, with the texts under 'a.b'"),
        (
            '{"a": 1}\n',
            "text",
            "",
            "taken for plain text, though it is JSON lines without 'text' (they have a)",
        ),
        ('{"a": 1}\n', "b", ".jsonl", "JSON lines"),
        ('{"text": 3}\n', "text", "", "without 'text'"),
        ("joke\nWhy?\nBecause.\n", "joke", ".csv", "CSV, with the texts under 'joke'"),
        ("joke\nWhy, oh why?\nBecause.\n", "joke", "", ""),
        ("id,text\n", "text", "", ""),
        ("text, and more of it\nas a poem has\n", "text", "", ""),
        ("{\n  'a': 1\n}\n", "text", "", ""),
        ("[1, 2]\n3\n", "text", "", ""),
        ('"text" he said\nand more\n', "text", "", ""),
        (NAMES, "text", "", ""),
        ("", "text", "", ""),
        (b"\xff\xfe", "text", "", ""),
    ],
)
def test_what_is_no_table_is_a_text_and_what_is_taken_for_one_is_said(pipe, text, field, ending, said):
    pipe(text)
    found = look(field)
    assert found.ending == ending
    assert said in found.note and bool(found.note) == bool(said)


@pytest.mark.parametrize("size", [0, 1, 13, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_looking_takes_nothing_and_the_end_is_read_once(pipe, size):
    data = ("é€ x\n" * size)[:size].encode()
    raw = pipe(data)
    head = beginning()
    assert data.decode().startswith(head) and len(head.encode()) >= min(len(data), BLOCK - 3)
    assert beginning() == head
    assert sys.stdin.buffer.read() == data
    assert sys.stdin.buffer.read() == b"" and raw.ends == 1, "a terminal would be asked again"


def test_a_list_that_is_piped_is_one(pipe):
    pipe(NAMES)
    assert are_lists(["-"], "text")
    assert load_corpus(["-"], reading=TextReading(documents=AUTO)).n_documents == 150
    for text in (
        '{"text": "Anna"}\n' * 200,
        "Prose that goes on for long.\n" * 200,
        "a\n<|endoftext|>\n" * 99,
    ):
        pipe(text)
        assert not are_lists(["-"], "text")


def test_rows_are_refused_by_their_line(pipe):
    pipe('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(RequestError, match="standard input, line 2 has no 'text'"):
        load_corpus(["-"])
