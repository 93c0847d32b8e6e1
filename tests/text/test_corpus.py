"""Cleaning on made-up and real files, downloads from a server that misbehaves, reading at every split."""

import hashlib
import io
import re
import socket
import struct
import threading
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from tests.conftest import SHARED
from tformer.errors import RequestError, TformerError
from tformer.layers import Layer, merge
from tformer.run.data import prepare_data
from tformer.text import corpus
from tformer.text.corpus import (
    CORPORA,
    clean_gutenberg,
    corpus_name,
    download,
    load_corpus,
    normalise_line_ends,
)
from tformer.text.data import Windows

# ---------------------------------------------------------------------------- cleaning

NOTICE = """<<THIS ELECTRONIC VERSION OF THE COMPLETE WORKS IS COPYRIGHT 1990-1993
BY WORLD LIBRARY, INC., AND IS PROVIDED BY PROJECT GUTENBERG.>>"""
OF_THE_1990S = f"""The Project Gutenberg EBook of A Work, by A Writer

** This is a COPYRIGHTED Project Gutenberg eBook, Details Below **

*** START OF THIS PROJECT GUTENBERG EBOOK A WORK ***

Produced by World Library, Inc.

*This Etext has certain copyright implications you should read!*

{NOTICE}

**** SMALL PRINT! for the project gutenberg reader ****
This "Small Print!" by Charles B. Kramer, Attorney
****   SMALL PRINT! FOR __ A WORK ****
["Small Print" V.12.08.93]

{NOTICE}


1609

  Indented verse,
and prose.

{NOTICE}

THE END << kept >>



End of the Project Gutenberg EBook of A Work, by A Writer

*** END OF THIS PROJECT GUTENBERG EBOOK A WORK ***

***** This file should be named 100.txt *****
*** START: FULL LICENSE ***
THE FULL PROJECT GUTENBERG LICENSE
*** END: FULL LICENSE ***
"""
MODERN = """The Project Gutenberg eBook of A Work

Title: A Work

*** START OF THE PROJECT GUTENBERG EBOOK A WORK ***

A Work

*** a line of stars is the work's own ***

Its end.

*** END OF THE PROJECT GUTENBERG EBOOK A WORK ***

Updated editions will replace the previous one.
"""


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
def test_a_file_of_the_1990s_is_cleaned_to_the_work(ends, mark):
    cleaned = clean_gutenberg(mark + OF_THE_1990S.replace("\n", ends))
    assert re.sub(r"\n+", "\n", cleaned) == "1609\n  Indented verse,\nand prose.\nTHE END << kept >>\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("stars", ["*** ", "***"])
def test_a_modern_file_is_cleaned_to_the_work(ends, stars):
    text = MODERN.replace("*** START", stars + "START").replace("*** END", stars + "END")
    cleaned = clean_gutenberg(text.replace("\n", ends))
    assert cleaned == "A Work\n\n*** a line of stars is the work's own ***\n\nIts end.\n"


def test_credits_after_the_start_line_are_not_the_work():
    text = MODERN.replace("\nA Work\n\n***", "\nProduced by A. Volunteer and\nthe Team\n\nA Work\n\n***")
    assert clean_gutenberg(text).startswith("A Work\n")


def test_line_ends_are_made_one_and_a_byte_order_mark_is_dropped():
    assert normalise_line_ends("\ufeffa\r\nb\rc\n\r\n") == "a\nb\nc\n\n"


def test_cleaning_a_text_that_is_not_gutenbergs_leaves_it():
    assert clean_gutenberg("To be,\n\n  or not.\n") == "To be,\n\n  or not.\n"
    assert clean_gutenberg(clean_gutenberg(OF_THE_1990S)) == clean_gutenberg(OF_THE_1990S)


def test_nothing_of_the_real_file_is_gutenbergs_and_all_of_the_works_is_there(shakespeare):
    assert re.match(r"1609\s+THE SONNETS\s+by William Shakespeare\s", shakespeare)
    notice = re.search(
        r"gutenberg|copyright|\be-?(?:text|book)|world library|small print|<<|>>", shakespeare, re.I
    )
    assert notice is None, shakespeare[notice.start() - 100 : notice.end() + 100]
    assert "\r" not in shakespeare and "\ufeff" not in shakespeare
    raw = (SHARED / "shakespeare-pg100.txt").read_text(encoding="utf-8")
    notices = sum(map(len, re.findall(r"<<THIS ELECTRONIC.*?>>", raw, re.S)))
    work = raw[raw.index("THE SONNETS") : raw.index("End of the Project Gutenberg EBook")]
    assert len(work) - notices - 100 < len(shakespeare) < len(work)
    assert shakespeare.count("\nTHE END\n") == work.count("\nTHE END\n") > 30


# ---------------------------------------------------------------------------- download

GOOD = b"First Citizen:\n" + b"Before we proceed any further, hear me speak.\n" * 4


class Server(ThreadingHTTPServer):
    """Answers each path with the next thing in its list, the last one for ever."""

    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, list] = {}
        self.asked: list[str] = []
        self.released = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answers = self.server.script[self.path]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args):
        pass


def answer(body=GOOD, status=200, length=None, headers=()):
    def send(handler):
        handler.send_response(status)
        if length is not False:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        for header in headers:
            handler.send_header(*header)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def reset_half_way(handler):
    answer(GOOD[:100], length=len(GOOD))(handler)
    reset(handler)


def stall(handler):
    handler.server.released.wait(10)


def stall_half_way(handler):
    answer(GOOD[:100], length=len(GOOD))(handler)
    handler.server.released.wait(10)


def chunked_cut_short(handler):
    handler.protocol_version = "HTTP/1.1"
    answer(b"40\r\n" + GOOD[:20], length=False, headers=[("Transfer-Encoding", "chunked")])(handler)
    handler.close_connection = True


def not_http(handler):
    handler.wfile.write(b"220 ready\r\n\r\n")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def served(server, **script):
    """A corpus at one address for each path of the script."""
    server.script = {f"/{path}": answers for path, answers in script.items()}
    urls = tuple(server.url(path) for path in server.script)
    return replace(CORPORA["tinyshakespeare"], urls=urls, min_bytes=100, max_bytes=10_000)


def fetch(named, **settings):
    return download(named, **({"timeout": 0.3, "pause": 0.0} | settings))


def cached(tmp_path):
    folder = tmp_path / "cache"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_download_is_cached_under_its_name_and_asked_for_once(server, tmp_path):
    named = served(server, a=[answer()])
    assert fetch(named) == fetch(named) == tmp_path / "cache" / "tinyshakespeare.txt"
    assert named.path.read_bytes() == GOOD
    assert server.asked == ["/a"] and cached(tmp_path) == ["tinyshakespeare.txt"]


def test_a_file_put_in_the_cache_by_hand_is_taken_without_a_request(server):
    named = served(server, a=[answer()])
    named.path.parent.mkdir()
    named.path.write_bytes(b"by hand")
    assert fetch(named).read_bytes() == b"by hand"
    assert server.asked == []


BROKEN = {
    "error 500": (answer(b"sorry", status=500), "Internal Server Error"),
    "error 404": (answer(GOOD, status=404), "Not Found"),
    "truncated": (answer(GOOD[:150], length=len(GOOD)), "ended after 150 of 199 bytes"),
    "too small": (answer(GOOD[:50]), "only 50 bytes"),
    "too large": (answer(GOOD * 60), "larger than 10,000 bytes"),
    "too large, no length": (answer(GOOD * 60, length=False), "larger than 10,000 bytes"),
    "another text": (answer(b"<html>please log in</html>" * 10), "'First Citizen:' does not occur"),
    "reset": (reset, "reset|without response"),
    "reset half way": (reset_half_way, "reset|ended after"),
    "stall": (stall, "timed out"),
    "stall half way": (stall_half_way, "timed out"),
    "chunked, cut short": (chunked_cut_short, "."),
    "not HTTP": (not_http, "."),
    "redirected for ever": (answer(b"", status=302, headers=[("Location", "/a")]), "redirect"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_second_address_serves_where_the_first_is_broken(server, tmp_path, name):
    named = served(server, a=[BROKEN[name][0]], b=[answer()])
    assert fetch(named).read_bytes() == GOOD
    assert server.asked[-1] == "/b" and cached(tmp_path) == ["tinyshakespeare.txt"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_download_says_why_and_the_way_out_and_leaves_nothing(server, tmp_path, name):
    named = served(server, a=[BROKEN[name][0]])
    with pytest.raises(TformerError) as caught:
        fetch(named, attempts=1)
    message = str(caught.value)
    assert caught.value.exit_code == 1 and not isinstance(caught.value, RequestError)
    assert re.search(re.escape(named.urls[0]) + ": .*" + BROKEN[name][1], message), message
    assert str(named.path) in message and "tformer train FILE" in message
    assert cached(tmp_path) == []


@pytest.mark.parametrize("name", ["error 500", "truncated", "reset", "another text"])
def test_an_address_is_tried_again(server, name):
    named = served(server, a=[BROKEN[name][0], answer()])
    assert fetch(named).read_bytes() == GOOD
    assert server.asked == ["/a", "/a"]


def test_every_address_is_tried_each_time_with_growing_pauses(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(corpus, "time", SimpleNamespace(sleep=pauses.append))
    named = served(server, a=[answer(status=500)], b=[answer(status=404)])
    with pytest.raises(TformerError):
        fetch(named, attempts=3, pause=1.0)
    assert server.asked == ["/a", "/b"] * 3 and pauses == [1.0, 2.0]


def test_nobody_at_the_address_is_said_in_one_line(server):
    with socket.socket() as listening:  # bound and not listening: refused
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with pytest.raises(TformerError, match="refused") as caught:
            fetch(replace(served(server), urls=(url,)))
    assert "\n" not in str(caught.value)


def test_a_redirect_is_followed(server):
    named = served(server, a=[answer(b"", status=302, headers=[("Location", "/moved")])])
    server.script["/moved"] = [answer()]
    assert fetch(named).read_bytes() == GOOD


def test_a_cap_stops_a_download_that_does_not_end(server):
    def endless(handler):
        answer(b"", length=False)(handler)
        while not handler.server.released.is_set():
            handler.wfile.write(bytes(1000))  # ends when the client hangs up

    with pytest.raises(TformerError, match="larger than 10,000"):
        fetch(served(server, a=[endless]), attempts=1)


@pytest.mark.parametrize("length", [None, False])
def test_progress_grows_to_the_whole(server, length):
    body = GOOD + bytes(300_000)
    seen = []
    named = replace(served(server, a=[answer(body, length=length)]), max_bytes=10**6)
    fetch(named, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert len(done) > 3 and done == sorted(set(done)) and done[-1] == len(body)
    assert {total for _, total in seen} == {len(body) if length is None else None}


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    named = served(server, a=[answer()])
    with pytest.raises(TformerError, match=re.escape(f"cannot write {named.path}")):
        fetch(named)


def test_a_named_corpus_is_cleaned_when_loaded(server, monkeypatch):
    body = OF_THE_1990S.replace("\n", "\r\n").encode()
    named = replace(served(server, a=[answer(body)]), name="shakespeare", landmark=b"GUTENBERG")
    monkeypatch.setitem(corpus.CORPORA, "shakespeare", replace(named, clean=clean_gutenberg))
    loaded = load_corpus(["shakespeare"])
    assert loaded.text == clean_gutenberg(OF_THE_1990S)
    assert loaded.sha256 == hashlib.sha256(body).hexdigest()


# ---------------------------------------------------------------------------- reading


def test_files_are_joined_in_the_order_given(tmp_path):
    a, b = tmp_path / "b.txt", tmp_path / "a.txt"
    a.write_bytes("\ufeffone\r\n".encode())
    b.write_bytes("two \ufeff é".encode())
    loaded = load_corpus([str(a), str(b)])
    assert loaded.text == "one\r\ntwo \ufeff é", "only the mark at the start is not text"
    assert loaded.sha256 == hashlib.sha256(a.read_bytes() + b.read_bytes()).hexdigest()
    assert loaded.name == "b"


def test_standard_input_is_a_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("piped é".encode())))
    assert load_corpus(["-"]).text == "piped é"


@pytest.mark.parametrize(
    "content,problem", [(b"", "empty"), (b"\xef\xbb\xbf", "empty"), (b"ab\xff", "byte 2")]
)
def test_a_file_that_holds_no_text_is_refused(tmp_path, content, problem):
    path = tmp_path / "poem.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=problem) as caught:
        load_corpus([str(path)])
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["nothing.txt", "no/such/folder", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError):
        load_corpus([name])


@pytest.mark.parametrize(
    "name,expected",
    [
        ("shakespeare", "shakespeare"),
        ("-", "stdin"),
        ("poem.txt", "poem"),
        ("/a/b/My poems (1).txt", "My-poems-1"),
        ("dir/", "dir"),
        (".", "here"),
        ("...", "text"),
        ("é.txt", "é"),
        ("!!!.txt", "text"),
    ],
)
def test_a_run_is_named_after_its_first_text(tmp_path, monkeypatch, name, expected):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert corpus_name([name, "other.txt"]) == expected


def test_a_text_is_in_memory_twice_at_most_while_it_becomes_ids(tmp_path):
    path, n = tmp_path / "long.txt", 20_000_000
    path.write_text(("To be, or not to be, that is the question:\n" * (n // 43 + 1))[:n])
    config = merge([Layer("test", {"data": {"tokenizer": "char"}, "model": {"n_ctx": 16}})])
    prepare_data(config, [str(path)])  # so that the tables are there
    tracemalloc.start()
    data = prepare_data(config, [str(path)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(data.batches, Windows) and data.batches.ids.itemsize == 2
    assert peak < 3.8 * n, "a byte of text and two of ids for each character; it was ten"
