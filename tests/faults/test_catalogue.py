"""Every exit code and message of the catalogue, case by case through the command."""

import os

import pytest

from tests.faults.catalogue import Case, cases, judge, place, tried

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the command runs in a copy of this process")

CASES = cases()
QUICK = 7  # every so manyth case is not slow


@pytest.fixture(scope="module")
def made_here(tmp_path_factory):
    return place(tmp_path_factory.mktemp("catalogue") / "made")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if i % QUICK else c for i, c in enumerate(CASES)],
    ids=lambda case: case.name,
)
def test_a_case_has_its_code_its_line_and_leaves_what_existed(case, made_here, tmp_path):
    assert tried(case, made_here, tmp_path / "here")[2] == []


def test_cases_are_named_apart():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "tformer: error: text.txt is empty\n"),
        (2, "text.txt is empty\n"),
        (2, "tformer: error: text.txt is empty\ntformer: error: again\n"),
        (2, "tformer: error: this is a bug: text.txt is empty\n"),
        (2, "tformer: error: text.txt is \x1b[31m empty\n"),
        (2, "tformer: error: it cannot be done\n"),
    ],
)
def test_another_code_another_line_or_a_traceback_is_seen(code, said):
    case = Case("", [], 2, "text.txt is empty")
    assert judge(case, 2, "tformer: error: text.txt is empty (expected text)\n") == []
    assert judge(case, code, said) != []
