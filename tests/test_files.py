"""A file is written whole or not at all."""

import json
import os

import pytest

from tformer.errors import RequestError, TformerError
from tformer.files import append_line, write_file, write_json
from tformer.run.record import read_lines


def only(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_bytes_or_what_a_function_writes_replace_what_was_there(tmp_path):
    write_file(tmp_path / "a", b"first")
    write_file(tmp_path / "a", lambda file: (file.write(b"..cond"), file.seek(0), file.write(b"se")))
    assert only(tmp_path) == {"a": b"second"}


@pytest.mark.parametrize(
    "error", [ValueError("no"), RequestError("no"), KeyboardInterrupt(), OSError(28, "full")]
)
@pytest.mark.parametrize("existing", [{}, {"a": b"old"}], ids=["new", "old"])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error, existing):
    for name, content in existing.items():
        (tmp_path / name).write_bytes(content)

    def write(file):
        file.write(b"half of it")
        file.flush()
        assert only(tmp_path).get("a") == existing.get("a"), "the old content is gone before the new is whole"
        raise error

    with pytest.raises(TformerError if isinstance(error, OSError) else type(error)):
        write_file(tmp_path / "a", write)
    assert only(tmp_path) == existing


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_system_that_refuses_is_an_error_with_the_path_and_its_reason(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_bytes(b"old")

    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(TformerError, match=r"cannot write .*/a \(No space left on device\)") as caught:
        write_file(tmp_path / "a", b"new")
    assert caught.value.exit_code == 1
    assert only(tmp_path) == {"a": b"old"}


def test_a_file_has_its_name_only_once_it_is_on_the_disk(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    write_file(tmp_path / "a", b"new")
    assert events == ["sync", "rename", "sync"]  # the file, its name, the folder


@pytest.mark.parametrize("name", ["no/such/folder/a", "x" * 300, "folder"])
def test_a_place_that_takes_no_file_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(TformerError, match="cannot write"):
        write_file(tmp_path / name, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_json_is_what_was_given_and_readable(tmp_path):
    values = {"é": [1, None, 0.1], "b": {"c": True}}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == values and "é" in text and text.endswith("}\n")


def test_a_line_that_was_cut_short_does_not_take_the_next_one_along(tmp_path):
    (tmp_path / "lines").write_text('{"whole": 1}\n{"ha')
    append_line(tmp_path / "lines", {"next": 2})
    append_line(tmp_path / "lines", {"last": 3})
    assert read_lines(tmp_path / "lines") == [{"whole": 1}, {"next": 2}, {"last": 3}]
    assert (tmp_path / "lines").read_text().count("\n") == 4
