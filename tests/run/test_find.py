"""Which run is meant."""

import os
from pathlib import Path

import pytest

from tformer.errors import RequestError
from tformer.run.find import (
    all_runs,
    find_run,
    new_run_folder,
    newest_run,
    runs_folder,
    unfinished_run,
)
from tformer.run.record import read_record


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TFORMER_RUNS", str(tmp_path / "my runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my runs"


def make(runs, name, age=0, finished=False, task="text", weights=True) -> Path:
    """A run whose record was written `age` seconds ago."""
    folder = runs / name
    folder.mkdir(parents=True)
    result = "{loss: 1.0}" if finished else "null"
    (folder / "tformer.yaml").write_text(f"data: {{task: {task}}}\nrecord: {{result: {result}}}\n")
    (folder / "config.json").write_text("{}")
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    os.utime(folder / "tformer.yaml", (1e9 - age, 1e9 - age))
    return folder


def test_runs_live_where_the_environment_says_or_in_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TFORMER_RUNS", str(tmp_path))
    assert runs_folder() == tmp_path
    for unset in (lambda: monkeypatch.setenv("TFORMER_RUNS", ""), lambda: monkeypatch.delenv("TFORMER_RUNS")):
        unset()
        assert runs_folder() == Path("runs")


def test_a_run_is_found_by_its_name_or_its_path(runs, tmp_path):
    here = make(runs, "poems")
    elsewhere = make(tmp_path / "elsewhere", "model")
    assert find_run("poems") == here == find_run(str(here))
    assert find_run(str(elsewhere)) == elsewhere
    assert find_run("elsewhere/model").resolve() == elsewhere


def test_a_name_means_the_run_before_a_folder_of_that_name(runs, tmp_path):
    make(tmp_path, "poems")
    named = make(runs, "poems")
    assert find_run("poems") == named


@pytest.mark.parametrize("name", ["", "nothing", "x" * 5000, "a\0b"])
def test_what_is_no_run_is_refused_with_the_names_that_are(runs, tmp_path, name):
    with pytest.raises(RequestError, match=r"no run .*none yet"):
        find_run(name)
    make(runs, "poems")
    with pytest.raises(RequestError, match=r"no run .*poems"):
        find_run(name)


def test_runs_are_listed_newest_first_and_nothing_else_is_one(runs):
    assert all_runs() == []
    old, new = make(runs, "old", age=50), make(runs, "new", age=1)
    (runs / "a folder").mkdir()
    (runs / "a file").write_text("")
    assert all_runs() == [new, old]


def test_the_newest_run_that_suits_has_weights_and_the_task(runs):
    make(runs, "no weights yet", age=1, weights=False)
    newest = make(runs, "newest", age=2, task="reversal")
    older = make(runs, "older", age=3)
    make(runs, "oldest", age=4)
    assert newest_run(lambda record: True, "any") == newest
    assert newest_run(lambda record: record.task == "text", "a text run") == older
    with pytest.raises(RequestError, match="expected a run on the moon"):
        newest_run(lambda record: False, "a run on the moon")


def test_no_run_at_all_says_how_to_make_one(runs):
    with pytest.raises(RequestError, match="tformer train"):
        newest_run(lambda record: True, "any")


def test_a_record_tells_the_task_and_whether_training_ended(runs, tmp_path):
    done = read_record(make(runs, "done", finished=True, task="reversal"))
    assert done.is_finished and done.task == "reversal"
    assert not read_record(make(runs, "stopped")).is_finished
    foreign = read_record(tmp_path)
    assert foreign.is_empty and foreign.task == "text" and not foreign.is_finished


def test_a_new_run_takes_the_first_free_name(runs):
    assert new_run_folder("poems") == runs / "poems"
    make(runs, "poems")
    assert new_run_folder("poems") == runs / "poems-2"
    make(runs, "poems-3")
    assert new_run_folder("poems") == runs / "poems-2"
    (runs / "poems-2").mkdir()
    assert new_run_folder("poems") == runs / "poems-4"
    assert new_run_folder("verse") == runs / "verse"


def test_the_run_to_go_on_with_is_the_newest_unfinished_of_that_name(runs):
    assert unfinished_run("data") is None
    make(runs, "data-3", age=1, finished=True)
    for other in ("database", "data-x", "my-data-2", "other-2", "data-2-x", "2", "da", "data-"):
        make(runs, other, age=2)
    assert unfinished_run("data") is None, "a run of another name"
    first = make(runs, "data", age=9)
    assert unfinished_run("data") == first
    assert unfinished_run("data") == first
    second = make(runs, "data-2", age=5)
    assert unfinished_run("data") == second
    make(runs, "data-12", age=20)
    assert unfinished_run("data") == second, "the newest, not the highest number"
    assert unfinished_run("data-2") == second


def test_one_damaged_record_does_not_hide_the_other_runs(runs):
    good = make(runs, "good", age=9)
    for age, damage in enumerate([b"data: [", b"\xff\xfe", b"- 1", b""]):
        folder = make(runs, f"bad-{age}", age=age)
        (folder / "tformer.yaml").write_bytes(damage)
        os.utime(folder / "tformer.yaml", (1e9 - age, 1e9 - age))
    assert newest_run(lambda record: record.settings["data"].get("task") == "text", "a text run") == good
    (runs / "good-2").mkdir()
    (runs / "good-2" / "tformer.yaml").write_bytes(b"data: [")
    assert unfinished_run("good") == good


def test_of_many_runs_the_nearest_are_named_and_never_more_than_three(runs):
    for i in range(80):
        make(runs, f"poems-{i}", age=i)
    make(runs, "shakespeare")
    with pytest.raises(RequestError, match=r"\(nearest: shakespeare\)"):
        find_run("shakespear")
    with pytest.raises(RequestError, match="and 78 more"):
        find_run("zzz")
    with pytest.raises(RequestError) as error:
        find_run("poems")
    assert str(error.value).count("poems-") == 3


@pytest.mark.parametrize(
    ("name", "on_hub"), [("gpt2", "openai-community/gpt2"), ("distilgpt2", "distilbert/distilgpt2")]
)
def test_a_name_of_before_names_had_owners_is_given_as_the_hub_has_it(runs, name, on_hub):
    with pytest.raises(
        RequestError, match=f"no run '{name}'.*{on_hub}; .*hf download {on_hub} --local-dir {name}$"
    ):
        find_run(name)
