"""What several rooms' tests set up."""

from collections.abc import Iterator

import pytest

from tformer.answer.q3_mlps import facts


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models of question 3 without their training, and none of those kept from before."""
    monkeypatch.setattr(facts, "train", lambda *args, **settings: None)
    for trained in (facts.learned_by_heart, facts.reversing):
        trained.cache_clear()
    yield
    for trained in (facts.learned_by_heart, facts.reversing):
        trained.cache_clear()
