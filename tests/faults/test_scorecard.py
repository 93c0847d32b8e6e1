"""A sample of every row of the scorecard, and the command that makes its table."""

import os

import pytest

from tests.faults import scorecard
from tests.faults.row import Outcome, Row

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is copied to be killed")


OF_THE_ROWS = "broken writers"  # a row on the others: whether they see what is wrong


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.exhaustive if row.name == OF_THE_ROWS else pytest.mark.slow)
        for row in scorecard.ROWS
    ],
    ids=lambda row: row.name,
)
def test_a_sample_of_a_row_is_as_claimed(row, tmp_path):
    outcome = row.measure(tmp_path, False)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.failures == []
    assert outcome.found


@pytest.mark.parametrize("failures", [[], ["a case"]])
def test_the_command_prints_a_table_and_fails_where_a_row_does(failures, tmp_path, monkeypatch, capsys):
    row = Row("a row", "a figure", "a target", lambda folder, whole: Outcome(f"all: {whole}", failures))
    monkeypatch.setattr(scorecard, "ROWS", (row,))
    assert scorecard.main(["--quick", "--rows", "a", "--out", str(tmp_path / "t.md")]) == len(failures)
    out, err = capsys.readouterr()
    verdict = "**1 failed**" if failures else "passed"
    assert f"| a figure | a target | all: False | {verdict} |" in out
    assert ("FAILED a case" in err) == bool(failures)
    assert (tmp_path / "t.md").read_text() == out


def test_rows_are_named_apart():
    names = [row.name for row in scorecard.ROWS]
    assert len(set(names)) == len(names)
