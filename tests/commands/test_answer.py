"""`tformer answer`: the questions, and how one is found."""

import json

import pytest

from tests.command import run as tformer
from tformer.answer import find
from tformer.errors import RequestError


def test_answer_lists_and_answers_every_question(tmp_path):
    listed = [
        json.loads(line) for line in tformer("answer", "--json", cwd=tmp_path, check=0).stdout.splitlines()
    ]
    assert [q["number"] for q in listed] == [1, 2, 3, 4, 5, 6]
    for q in listed:
        by_slug = json.loads(tformer("answer", q["slug"], "--prose", "--json", cwd=tmp_path, check=0).stdout)
        assert by_slug["question"] == q["question"]
        assert set(by_slug) >= {"question", "claims", "evidence"}
        assert "## Sources" in by_slug["text"]
    assert tformer("answer", "all", "--prose", cwd=tmp_path, check=0).stdout.count("\n## Sources\n") == 6


def test_free_words_find_the_nearest_question(tmp_path):
    done = tformer("answer", "why", "skip", "conections", "--prose", cwd=tmp_path, check=0)
    assert "skip" in done.stdout
    assert "taken as question 4" in done.stderr


def test_words_that_no_title_has_are_looked_for_in_the_answers():
    found = {
        words: find(words).questions[0].number
        for words in ("does order matter", "residual", "mlp", "induction")
    }
    assert found == {"does order matter": 1, "residual": 4, "mlp": 3, "induction": 6}
    for words in ("nonsense", "why", "what is the"):
        with pytest.raises(RequestError):
            find(words)
