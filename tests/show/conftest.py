"""Here pictures are looked at, in every module."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _undrawn() -> None:
    """Nothing stands in the place of matplotlib."""
