"""Bars of what takes long, as a terminal shows them."""

import io

import pytest
from rich.console import Console

from tformer.show import progress as shown


@pytest.mark.parametrize("width", [44, 60, 100])
def test_bytes_rate_and_time_stand_in_one_line_however_narrow(monkeypatch, width):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(shown, "err", lambda: console)
    with shown.bytes_progress("tokenizing into ids", 43_800_000) as tell:
        tell(10_500_000)
    assert "10.5/43.8 MB" in screen.getvalue() and "-:--:--" in screen.getvalue()
