"""Where most of these tests work."""

import shutil
from pathlib import Path

import pytest

from tests.faults.tiny import place


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a text; that of a module which has its own has runs, too."""
    return place(tmp_path_factory.mktemp("made") / "here")


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, from which commands are given."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
