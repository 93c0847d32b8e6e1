"""What a person sees of a training: pictures cost a small share of it, and show the run as it is."""

import io

import torch
from rich.console import Console
from torch import nn

from tests.show.test_page import check
from tests.training.test_noted import HOOKS, config, trained
from tformer.config import TrainConfig
from tformer.ranks import BY_ITSELF
from tformer.show import training as show
from tformer.show.progress import TrainingProgress
from tformer.show.training import SHARE, Pictures, draw, draw_last
from tformer.training.fit import State, StepDone, StepNumbers
from tformer.training.noted import sampled_line

# ---------------------------------------------------------------------------- pictures


def test_pictures_take_a_small_share_of_the_time_and_come_again_and_again(monkeypatch):
    now, spent = [0.0], [0.0]

    def drawn(session):
        now[0] += 3.0
        spent[0] += 3.0

    monkeypatch.setattr(show, "draw", drawn)
    pictures = Pictures(None, clock=lambda: now[0])
    times = []
    while now[0] < 5000:
        now[0] += 0.5  # a step
        if pictures.refresh():
            times.append(now[0])
        assert spent[0] <= SHARE * now[0] + 3.0
    assert times[0] < 60, "the first one comes before a minute has passed"
    assert len(times) > 0.8 * SHARE * 5000 / 3.0, "and the share is used"


def test_the_page_shows_the_run_at_every_moment(tmp_path):
    session = trained(tmp_path / "run", config(eval_every=4), HOOKS, until=5)
    draw(session)
    page = (tmp_path / "run" / "report.html").read_text()
    check(page)
    assert "not at its end yet" in page and "after step 5" in page
    session = trained(tmp_path / "run", config(eval_every=4), HOOKS)
    result = session.finish()
    draw_last(session)
    page = (tmp_path / "run" / "report.html").read_text()
    check(page)
    assert "not at its end yet" not in page and "after step" not in page
    assert f"validation at step {result['kept_step']}" in page and "What it wrote" in page
    assert "Is this loss normal? not known: the run names no preset." in page


def test_the_last_page_has_the_heads_of_the_weights_that_are_kept(tmp_path, monkeypatch):
    losses = iter([(2.0, 1.0), (3.0, 1.5)])
    monkeypatch.setattr("tformer.training.session.Session.validate", lambda self: next(losses))
    session = trained(tmp_path / "run", config(eval_every=4), (sampled_line,))
    assert session.finish()["kept_step"] == 4
    seen = []
    monkeypatch.setattr(show, "write_page", lambda folder, model, step=None: seen.append(model))
    draw_last(session)
    assert seen[0] is not session.model
    assert any(
        not torch.equal(a, b) for a, b in zip(seen[0].parameters(), session.model.parameters(), strict=True)
    )


# ---------------------------------------------------------------------------- what is shown


def shown(text: str, terminal: bool) -> str:
    progress = TrainingProgress(10, 0)
    stream = io.StringIO()
    progress.console = Console(file=stream, force_terminal=terminal, width=60, soft_wrap=not terminal)
    numbers = StepNumbers(nn.Identity(), BY_ITSELF, TrainConfig(), 5, lambda: [1.0, 1.0], (1.0, 1.0))
    done = StepDone(State(step=5), numbers, 0.1, 2.0, 3.0, noted={"sample": text})
    progress.update(done, 10)
    return stream.getvalue()


def test_a_sampled_line_is_one_line_that_cannot_move_the_cursor():
    for terminal in (False, True):
        out = shown("To be,\n\nor \x1b[2Jnot" + " and on" * 20, terminal)
        first, *rest = out.splitlines()
        assert "wrote: " in first and "To be, / or \ufffd[2Jnot" in first
        assert "\x1b[2J" not in out
        assert len(rest) == (0 if terminal else 1), "then the step's own line, where there is no live one"
    assert shown("and on" * 30, False).count("and on") == 30
    assert shown("", False).count("\n") == 2
