"""The first-principles questions: a folder each, `qN_NAME`, with its prose and its experiments.

`question.md` is the prose, `experiments.py` the list of experiments, which imports torch; this module
does not.
"""

import difflib
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

from tformer.errors import RequestError

SMALL_WORDS = frozenset(
    re.findall(
        r"\w+", "and any are can did does for have how its the there they this what when were why with"
    )
)


@dataclass(frozen=True)
class Question:
    """A question, its place in the list, a short name for the command line, and its answer in words."""

    number: int
    slug: str
    folder: str  # of this package, with its prose and its experiments
    title: str
    text: str  # Markdown, without the title

    @property
    def short(self) -> str:
        """The answer in ten lines: what stands before the first heading."""
        return self.text.partition("\n## ")[0].strip()


@cache
def questions() -> tuple[Question, ...]:
    """All questions in order, found by their folders."""
    found = []
    for folder in resources.files("tformer.answer").iterdir():
        if named := re.fullmatch(r"q(\d+)_\w+", folder.name):
            slug = importlib.import_module(f"tformer.answer.{folder.name}").SLUG
            title, _, text = (folder / "question.md").read_text(encoding="utf-8").partition("\n")
            title = title.removeprefix("# ").strip()
            found.append(Question(int(named[1]), slug, folder.name, title, text.strip()))
    return tuple(sorted(found, key=lambda question: question.number))


class Matched(NamedTuple):
    """The questions that words mean, and whether that was a guess: one of free words."""

    questions: list[Question]
    guessed: bool


def find(words: str) -> Matched:
    """The questions that a number, a slug, `all` or free words mean.

    Raises RequestError where nothing is near.
    """
    if words == "all":
        return Matched(list(questions()), guessed=False)
    for question in questions():
        if words in (str(question.number), question.slug):
            return Matched([question], guessed=False)
    scored = sorted(questions(), key=lambda q: (_likeness(words, q), _mentions(words, q)), reverse=True)
    known = _likeness(words, scored[0]) >= 0.5 or _mentions(words, scored[0]) > (0, 0)
    if words.isdigit() or not known:
        raise RequestError(
            f"no question {words!r}",
            f"expected 1 to {len(scored)}, a slug, words of one, or all",
            "tformer answer lists them",
        )
    return Matched([scored[0]], guessed=True)


def _telling(text: str) -> list[str]:
    """Its words, without those that any question may have."""
    return [word for word in re.findall(r"\w+", text.lower()) if len(word) > 2 and word not in SMALL_WORDS]


def _likeness(words: str, question: Question) -> float:
    """How many of the words the title and slug have, misspelt ones counted by their likeness."""
    have = _telling(f"{question.title} {question.slug}")
    total = 0.0
    for word in _telling(words):
        near = max((difflib.SequenceMatcher(None, word, h).ratio() for h in have), default=0.0)
        total += near if near >= 0.8 else 0.0
    return total


def _mentions(words: str, question: Question) -> tuple[int, int]:
    """How many of the words the answer has, and how often, ten times for each one in a heading."""
    asked, count = set(_telling(words)), Counter[str]()
    for line in question.text.splitlines():
        for word in asked.intersection(_telling(line)):
            count[word] += 10 if line.startswith("#") else 1
    return len(count), count.total()
