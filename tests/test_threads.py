"""Threads that wait sleep where other programs keep the cores at work, and nowhere else."""

import os
import subprocess
import sys

import pytest

from tformer import __main__, cli, threads


@pytest.fixture
def told(monkeypatch, tmp_path):
    """The command line, begun where so many processes run; what the environment then says of waiting."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(cli, "main", lambda: None)
    monkeypatch.setattr(__main__, "answered_by", lambda answer: None)
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def begun(text):
        (tmp_path / "loadavg").write_text(text, encoding="ascii")
        __main__.program()
        return os.environ.get("OMP_WAIT_POLICY")

    yield begun
    os.environ.pop("OMP_WAIT_POLICY", None)


@pytest.mark.parametrize(
    ("running", "policy"), [(1, None), (2, None), (3, "passive"), (9, "passive")], ids=str
)
def test_they_sleep_where_half_of_the_cores_are_taken(told, running, policy):
    assert told(f"3.10 2.18 1.12 {running}/180 11206\n") == policy


@pytest.mark.parametrize("text", ["", "busy", "1 2 3 many/180 4"])
def test_a_system_that_says_something_else_leaves_them_as_they_are(told, text):
    assert told(text) is None


def test_a_system_without_it_leaves_them_as_they_are(told, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "none")
    assert told("") is None


def test_what_the_environment_says_stays(told, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert told("3.10 2.18 1.12 9/180 11206\n") == "active"


def test_a_load_that_has_gone_a_moment_later_is_none(told, monkeypatch):
    found = iter((True, False))
    monkeypatch.setattr(__main__, "others_run", lambda: next(found))
    assert told("") is None


def test_it_is_settled_before_pytorch_is_there():
    """The library of PyTorch's threads reads the environment once, as it is loaded."""
    code = (
        "import sys; from tformer import __main__, cli; cli.main = lambda: None; __main__.program(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
