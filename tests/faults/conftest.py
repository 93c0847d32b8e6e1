"""Where most of these tests work."""

from pathlib import Path

import pytest

from tests.faults.tiny import place


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a text, from which commands are given."""
    monkeypatch.chdir(place(tmp_path / "here"))
    return tmp_path / "here"
