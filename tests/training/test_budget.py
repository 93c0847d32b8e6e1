"""A time budget: the run that it fixes ends inside it, and is otherwise as if nothing had been measured."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tformer.config import Config, TrainConfig
from tformer.errors import RequestError
from tformer.ranks import Ranks
from tformer.run.checkpoint import open_run
from tformer.run.data import prepare_data
from tformer.training.budget import Costs, TimeLimit, choose_steps, shared_steps, steps_within
from tformer.training.noted import loss_by_position, sampled_line
from tformer.training.opening import Prepared, build_session
from tformer.training.optim import lr_at
from tformer.training.settings import decide

pytestmark = pytest.mark.drawn

CPU = torch.device("cpu")
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


class Clock:
    """A clock that goes on as a model works: so much for each window that it sees."""

    def __init__(self, per_window: float, at: float = 0.0):
        self.per_window, self.now = per_window, at

    def __call__(self):
        return self.now

    def watch(self, model):
        model.register_forward_hook(lambda module, args, out: self.tick(len(args[0])))

    def tick(self, windows):
        self.now += self.per_window * windows


def config(**train) -> Config:
    small = {"n_ctx": 8, "n_layers": 1, "n_heads": 2, "d_model": 8, "dropout": 0.2}
    steps = {
        "steps": 1000,
        "batch_size": 4,
        "eval_every": 40,
        "checkpoint_every": 500,
        "optimizer": "muon",
        "precision": "fp32",
        "compile": "off",
    }
    return Config.model_validate({"model": small, "train": steps | train})


def session_of(run, folder: Path, clock: Clock, limit: TimeLimit | None = None, wanted=None, measures=()):
    """As `open_session` does it, on a clock that goes on as the model works."""
    (folder / "text.txt").write_text(TEXT)
    wanted = wanted or config()
    data = prepare_data(wanted, [str(folder / "text.txt")])
    wanted = decide(wanted, CPU, data.tokenizer.vocab_size)
    session = build_session(run, Prepared(wanted, data, CPU, at_evaluation=measures))
    clock.watch(session.model)
    if limit:
        session = session.within(*choose_steps(session, limit, clock=clock))
    session.begin()
    return session


def test_a_run_ends_inside_its_budget_and_uses_it(tmp_path):
    clock = Clock(0.05, at=100.0)
    minutes, began = 2.0, 93.0  # seven seconds went into beginning

    limit, measures = TimeLimit(minutes, began), (sampled_line, loss_by_position)
    with open_run(tmp_path / "run") as run:
        session = session_of(run, tmp_path, clock, limit, measures=measures)
        reports = list(session.train())
    took = clock() - began
    assert 0.9 * 60 * minutes < took < 60 * minutes
    made = session.record.budget
    assert len(reports) == made.steps == session.config.train.steps
    assert made.seconds_per_step == pytest.approx(0.2)
    assert made.minutes == minutes
    written = run.record()
    assert written.settings["train"]["steps"] == made.steps and written.budget == made


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_a_machine_that_was_faster_or_slower_at_first_has_its_steps_counted_again(tmp_path, factor):
    """To within 5 %, by the steps of the time before the rate falls; the record has the new number."""
    clock, limit = Clock(0.05), TimeLimit(1.0, 0.0)
    wanted = config(decay="linear", decay_fraction=0.8, warmup_steps=5, eval_every=400)
    with open_run(tmp_path / "run") as run:
        session = session_of(run, tmp_path, clock, limit, wanted)
        at_first = session.config.train
        clock.per_window *= factor
        reports = list(session.train())
        made = run.record().budget
    assert 0.95 * 60 < clock() <= 60
    assert len(reports) == made.steps == session.config.train.steps
    assert (made.steps < at_first.steps) == (factor > 1) and made.seconds_per_step == pytest.approx(
        0.2 * factor
    )
    assert shared_steps(at_first) >= 20
    rates = [lr_at(step, session.config.train) for step in range(made.steps)]
    assert [report.lr for report in reports] == rates, "as if it had had this number from its start"


def test_steps_that_were_taken_at_another_rate_are_not_counted_again():
    """Whatever number comes of it, from three quarters on, the steps until then have the same rates."""
    for decay, fraction, warm_up, steps in itertools.product(
        ("linear", "cosine"), (0.1, 0.8, 0.9, 1.0), (0, 20, 100), (40, 333, 1000)
    ):
        train = TrainConfig(decay=decay, decay_fraction=fraction, warmup_steps=warm_up, steps=steps)
        for other in (int(0.75 * steps), int(0.75 * steps) + 1, steps, 2 * steps):
            assert all(
                lr_at(step, train) == lr_at(step, train.model_copy(update={"steps": other}))
                for step in range(shared_steps(train))
            )


@pytest.mark.parametrize(
    "train", [{"decay_fraction": 1.0}, {"eval_every": 10}, {"checkpoint_every": 10}], ids=str
)
def test_few_steps_and_such_with_evaluations_among_them_say_nothing(tmp_path, train):
    clock = Clock(0.05)
    wanted = config(warmup_steps=5, **{"decay_fraction": 0.8} | train)
    with open_run(tmp_path / "run") as run:
        session = session_of(run, tmp_path, clock, TimeLimit(0.4, 0.0), wanted)
        before = session.config.train.steps
        clock.per_window *= 1.1
        list(session.train())
    assert session.config.train.steps == before == session.state.step


def test_several_processes_keep_their_steps(tmp_path):
    with open_run(tmp_path / "run") as run:
        clock = Clock(0.05)
        session = session_of(run, tmp_path, clock)
        made, again = choose_steps(session, TimeLimit(1.0, 0.0), clock=clock)
        assert session.within(made, again).recount is again
        assert replace(session, ranks=Ranks(0, 2)).within(made, again).recount is None


def test_evaluations_that_take_most_of_the_time_are_counted(tmp_path):
    clock = Clock(0.02)
    with open_run(tmp_path / "run") as run:
        often = session_of(run, tmp_path, clock, TimeLimit(1.0, 0.0), config(eval_every=5))
        n = often.config.train.steps
        list(often.train())
    assert 54 < clock() < 60
    assert n < 0.5 * 60 / 0.08, "half of the time or more is evaluation"


@pytest.mark.parametrize("is_counted_again", [False, True])
def test_measuring_changes_nothing_but_the_steps(tmp_path, is_counted_again):
    folders = [tmp_path / name for name in ("measured", "plain")]
    seen = {}
    for folder in folders:
        folder.mkdir()
        clock = Clock(0.01)
        wanted = config() if folder.name == "measured" else config(steps=seen["steps"])
        with open_run(folder / "run") as run:
            session = session_of(run, folder, clock, wanted=wanted)
            if folder.name == "measured":
                before = torch.random.get_rng_state()
                made, again = choose_steps(session, TimeLimit(0.1, 0.0), clock=clock)
                assert torch.equal(before, torch.random.get_rng_state())
                assert not session.optimizers.state_tensors()
                assert all(p.grad is None for p in session.model.parameters())
                assert session.last_validation is None and session.config.train.steps == wanted.train.steps
                session = session.within(made, again if is_counted_again else None)
            seen["steps"] = session.config.train.steps
            list(session.train())
    one, other = ((f / "run") for f in folders)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    lines = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other)]
    assert len(lines[0]) > 5
    assert [a | {"seconds": 0} for a in lines[0]] == [b | {"seconds": 0} for b in lines[1]]


def test_too_short_a_time_is_refused_with_one_that_is_enough_and_nothing_is_written(tmp_path):
    clock = Clock(0.5)
    with (
        pytest.raises(RequestError, match="give at least --minutes") as caught,
        open_run(tmp_path / "r") as run,
    ):
        session_of(run, tmp_path, clock, TimeLimit(0.02, 0.0))
    assert not (tmp_path / "r").exists()
    enough = float(str(caught.value).partition("at least --minutes ")[2].partition(",")[0])
    clock = Clock(0.5)
    with open_run(tmp_path / "r") as run:
        session_of(run, tmp_path, clock, TimeLimit(enough, 0.0))


def test_the_time_that_pictures_take_is_left_for_them(tmp_path):
    with open_run(tmp_path / "run") as run:
        clock = Clock(0.01)
        session = session_of(run, tmp_path, clock, wanted=config(eval_every=0))
        steps = [
            choose_steps(session, TimeLimit(1.0, clock()), drawing, clock)[0].steps for drawing in (0.0, 20.0)
        ]
    assert steps[0] - steps[1] == pytest.approx(20.0 / 0.04, rel=0.02), "a step takes 0.04 s"


COSTS = st.builds(Costs, *[st.floats(1e-4, 10)] * 1, *[st.floats(0, 50)] * 3)


@example(0.15, Costs(1e-4, 0, 0, 0), 0, 0)  # 1,500, where the quotient is a little less
@given(st.floats(0, 1e5), COSTS, st.integers(0, 50), st.integers(0, 50))
def test_the_steps_are_the_most_that_fit(seconds, costs, eval_every, checkpoint_every):
    train = TrainConfig(eval_every=eval_every, checkpoint_every=checkpoint_every)
    steps = steps_within(seconds, costs, train)
    assert steps == 0 or costs.of(steps, train) <= seconds
    assert costs.of(steps + 1, train) > seconds


def test_the_cost_of_a_run_is_that_of_its_parts():
    train = TrainConfig(eval_every=40, checkpoint_every=0)
    assert Costs(1.0, 10.0, 3.0, 5.0).of(100, train) == 100 + 3 * 10 + 3 + 5
