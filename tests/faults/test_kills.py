"""A process is killed before any file operation of a run: the same command goes on, to the same bits."""

import os
from pathlib import Path

import pytest

from tests.faults.every_change import State, fresh_run, overwritten_run
from tests.faults.tiny import made

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied to be killed"),
    pytest.mark.timeout(600),
]

# Every operation has its turn in the exhaustive test; some, in the scorecard's row of "every change".
ALL = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]
each = pytest.mark.parametrize(
    "turns",
    [
        pytest.param(range(1, 1000), id="every", marks=ALL),
        pytest.param((60,), id="one"),
    ],
)


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> tuple[Path, dict[str, State]]:
    """A folder with the older run, and what both runs come to when nothing interrupts them."""
    return made(tmp_path_factory.mktemp("kills") / "here")


@each
def test_a_run_that_is_killed_anywhere_is_continued_by_the_same_command_to_the_bit(turns, ends, tmp_path):
    kills, failures = fresh_run(tmp_path, ends[1]["new"], turns)
    assert failures == []
    assert kills == len(turns) or 150 < kills < 990, "a run has that many operations"


@each
def test_a_run_that_is_overwritten_is_there_until_the_new_one_has_weights(turns, ends, tmp_path):
    kills, failures = overwritten_run(tmp_path, ends[0] / "run", ends[1]["old"], ends[1]["new"], turns)
    assert failures == []
    assert kills == len(turns) or 150 < kills < 990, "a run has that many operations"
