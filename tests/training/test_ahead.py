"""A device that runs ahead of Python trains as one that is waited for, to the bit, and is not waited for.

Forced on the CPU, whose numbers are there at once: what differs is the code, and when numbers are read. What
waits is counted on the CUDA device of `tests.gpus`.
"""

import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from tests.faults.tiny import TRAIN, no_pictures, place, state
from tests.gpus import CUDA, OnDevice, gpu
from tests.training.test_fit import BATCHES, config, same, weights
from tests.training.test_ranks import side_by_side
from tformer.cli import app
from tformer.commands import several
from tformer.errors import Stopped, TformerError
from tformer.fast.kernels import attach
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.ranks import BY_ITSELF
from tformer.show.progress import TrainingProgress
from tformer.training import fit as training
from tformer.training import session
from tformer.training.fit import DivergedError, Learner, State, StepDone, StepNumbers, fit
from tformer.training.optim import Optimizers

UNSEEN = 23  # a token that no window has
BOTH = pytest.mark.parametrize("optimizer", ["adamw", "muon"])
NEVER = ["--set", "train.eval_every=0", "--set", "train.checkpoint_every=0", "--set", "train.log_every=100"]


@pytest.fixture
def ahead(monkeypatch):
    """Every device runs ahead."""
    run_ahead(monkeypatch)


def run_ahead(patch, does: bool = True) -> None:
    patch.setattr("tformer.training.fit.runs_ahead", lambda device: does)


def trained(train, **changes):
    """Losses and norms of a training, and what it comes to: weights, and state of the optimizers."""
    torch.manual_seed(0)
    model = Transformer(tiny_config(**changes))
    optimizers = Optimizers(model, train)
    steps = list(fit(Learner(model, optimizers), BATCHES, train, State()))
    return [(s.state.step, s.loss, s.grad_norm, s.lr) for s in steps], weights(model), optimizers


# ---------------------------------------------------------------------------- the same steps


@BOTH
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "grad_clip": 0.05, "log_every": 3}])
@pytest.mark.parametrize("model", [{"dropout": 0.2}, {"family": "nanochat"}], ids=str)
def test_steps_are_to_the_bit_those_of_a_device_that_is_waited_for(optimizer, changes, model, monkeypatch):
    train = config(optimizer=optimizer, steps=7, **changes)
    found = []
    for does in (False, True):
        run_ahead(monkeypatch, does)
        found.append(trained(train, **model))
    (expected, at_end, its), (numbers, weights_there, theirs) = found
    assert numbers == expected
    assert same(weights_there, at_end)
    assert same(theirs.state_tensors().values(), its.state_tensors().values())


@pytest.mark.parametrize(
    "settings", [["train.optimizer=muon", "train.log_every=2"], ["train.micro_batch_size=1"]]
)
def test_a_run_interrupted_and_resumed_is_that_of_a_device_that_is_waited_for(
    settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(place(tmp_path / "here"))
    no_pictures_here(monkeypatch)
    arguments = [*TRAIN, *(word for setting in settings for word in ("--set", setting))]
    app(arguments, standalone_mode=False)
    expected = state(tmp_path / "here/run")
    run_ahead(monkeypatch)
    for step in (1, 2, 3):
        (tmp_path / "here/run").rename(tmp_path / f"before {step}")
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            signalled_after(patch, step)
            app(arguments, standalone_mode=False)
        names = [path.name for path in (tmp_path / "here/run/checkpoints").iterdir()]
        assert max(names) == f"step-{step:08}"
        app([*arguments, "--resume"], standalone_mode=False)
        assert state(tmp_path / "here/run") == expected


def no_pictures_here(monkeypatch) -> None:
    monkeypatch.setattr("tformer.show.training.loss_svg", lambda *rest, **options: "<svg/>")
    monkeypatch.setattr("tformer.show.run_page.run_html", lambda *rest, **options: "")


def signalled_after(patch, step: int) -> None:
    def steps(*rest):
        for done in fit(*rest):
            if done.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield done

    patch.setattr(session, "fit", steps)


# ---------------------------------------------------------------------------- when it stops


def spoiling(model, what: str, at: int, forever: bool):
    """A forward that gives, at one step or from it on, a loss, a gradient or weights that are not finite."""
    calls = []

    def forward(ids):
        calls.append(ids)
        if what == "weight" and len(calls) == at:
            with torch.no_grad():
                model.embed.weight[UNSEEN] = math.inf
        logits = model(ids)
        if len(calls) != at and not (forever and len(calls) > at):
            return logits
        if what == "loss":
            return logits * math.nan
        if what == "gradient":
            logits.register_hook(lambda gradient: gradient * math.inf)
        return logits

    return forward


@BOTH
@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("forever", [True, False])
def test_what_is_not_finite_changes_nothing_and_ends_with_the_same_words(
    optimizer, what, forever, monkeypatch
):
    said, left = [], []
    for does in (False, True):
        run_ahead(monkeypatch, does)
        train = config(optimizer=optimizer, grad_clip=1.0, steps=9)
        model = tiny_model(family="nanochat", vocab_size=UNSEEN + 1)
        optimizers, seen = Optimizers(model, train), []
        learner = Learner(model, optimizers, spoiling(model, what, 4, forever))
        with pytest.raises(DivergedError, match=r"at step 4 .*the update was not made") as ended:
            for done in fit(learner, BATCHES, train, State()):
                seen.append(done.state.step)
        said.append(str(ended.value))
        left.append([*weights(model), *optimizers.state_tensors().values()])
        assert seen == [1, 2, 3, 4][: 3 + does], "one step is on its way when another is begun"
    assert said[0] == said[1]
    assert same(*left)


def test_steps_that_go_on_after_one_that_nobody_has_read_have_it_read_first(ahead):
    train, model = config(steps=6), tiny_model()
    learner = Learner(model, Optimizers(model, train), spoiling(model, "loss", 2, forever=False))
    steps = fit(learner, BATCHES, train, State())
    next(steps)
    reached, before = next(steps).state, weights(model)
    with pytest.raises(DivergedError, match="at step 2"):
        next(fit(learner, BATCHES, train.model_copy(update={"steps": 9}), reached))
    assert same(weights(model), before)


def test_weights_so_large_that_their_norm_overflows_are_no_reason_to_skip(ahead):
    train = config(steps=2, weight_decay=0.0)
    model = tiny_model(family="nanochat", vocab_size=UNSEEN + 1)
    with torch.no_grad():
        model.embed.weight[UNSEEN] = 3e38
    before = weights(model)
    assert torch.nn.utils.get_total_norm(before) == math.inf
    list(fit(Learner(model, Optimizers(model, train)), BATCHES, train, State()))
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("end", ["signal", "error"])
def test_a_step_that_nobody_has_read_is_not_saved_where_it_was_skipped(end, ahead, tmp_path, monkeypatch):
    """Step 4, of a training that ends in the next one."""
    monkeypatch.chdir(place(tmp_path / "here"))
    app([*TRAIN, *NEVER, "--steps", "2"], standalone_mode=False)
    before = state(tmp_path / "here/run")
    begun = []

    def loss(logits, targets):
        begun.append(targets)
        if len(begun) > 2:
            raise MemoryError("no room")
        return cross_entropy(logits, targets) * (math.nan if len(begun) == 2 else 1)

    monkeypatch.setattr("tformer.training.fit.cross_entropy", loss)
    if end == "signal":
        signalled_after(monkeypatch, 4)
    with pytest.raises(TformerError) as ended:
        app([*TRAIN, *NEVER, "--resume"], standalone_mode=False)
    said = {"signal": "diverged at step 4 (loss nan", "error": "out of memory"}
    assert said[end] in str(ended.value)
    assert state(tmp_path / "here/run") == before


@pytest.mark.slow
def test_two_processes_that_run_ahead_train_alike_and_stop_alike(tmp_path):
    def run(name, spoilt_at=0, runs=True):
        def prepare():
            begun = []
            no_pictures()

            def loss(logits, targets):
                begun.append(targets)
                return cross_entropy(logits, targets) * (math.nan if len(begun) == spoilt_at else 1)

            training.runs_ahead = lambda device: runs
            training.cross_entropy = loss
            several.SPEAKS = 0.0  # no torchrun ends the second one

        words = ["--steps", 5, "--set", "train.log_every=3", "--out", name]
        code, _, err = side_by_side(tmp_path, 2, *words, prepare=prepare)
        return code, err

    for name, runs in (("ahead", True), ("waited", False)):
        code, err = run(name, runs=runs)
        assert code == 0, err
    assert state(tmp_path / "ahead") == state(tmp_path / "waited")
    code, err = run("spoilt", spoilt_at=4)
    assert code == 1 and err.count("training diverged at step 4 (loss nan") == 2, err


# ---------------------------------------------------------------------------- nothing waits


@pytest.fixture
def card(monkeypatch):
    with gpu(monkeypatch, CUDA):
        yield


def on_card(train, **changes) -> Learner:
    torch.manual_seed(0)
    model = Transformer(tiny_config(**changes)).to(CUDA)
    attach(model, "sdpa", CUDA)
    OnDevice.waits.clear()
    return Learner(model, Optimizers(model, train))


@BOTH
@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2, "grad_clip": 0.05, "precision": "bf16"}])
@pytest.mark.parametrize("model", [{"dropout": 0.2}, {"family": "nanochat"}], ids=str)
def test_no_step_waits_for_the_card(optimizer, changes, model, card):
    train = config(optimizer=optimizer, steps=4, log_every=1, **changes)
    losses = [done.loss for done in fit(on_card(train, **model), BATCHES, train, State())]
    assert OnDevice.waits == []
    assert all(map(math.isfinite, losses))


def test_what_waits_is_seen(card):
    number = torch.zeros(3, device=CUDA)
    for wait in (lambda: number.sum().item(), lambda: bool(number.any()), number.cpu, number.tolist):
        OnDevice.waits.clear()
        wait()
        assert OnDevice.waits
    OnDevice.waits.clear()
    torch.zeros(3).to(CUDA)
    torch.tensor([1.0], device=CUDA)
    float(number[0])
    assert len(OnDevice.waits) == 3
    OnDevice.waits.clear()
    torch.ones(4, 5)[:, :-1].pin_memory().to(CUDA, non_blocking=True)
    assert len(OnDevice.waits) == 1


def test_a_step_is_read_when_the_next_one_is_given(card, monkeypatch):
    """And at once where it is written, judged or saved: so seconds of training have it."""
    told: list[str] = []

    def record_event():
        n = sum(line.startswith("given") for line in told) + 1
        told.append(f"given {n}")
        return SimpleNamespace(synchronize=lambda: told.append(f"read {n}"))

    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda *rest: SimpleNamespace(record_event=record_event)
    )
    train = config(steps=5, log_every=3)
    for done in fit(on_card(train), BATCHES, train, State()):
        told.append(f"done {done.state.step}")
    assert told == [
        *("given 1", "done 1"),
        *("given 2", "read 1", "done 2"),
        *("given 3", "read 2", "read 3", "done 3"),
        *("given 4", "done 4"),
        *("given 5", "read 4", "read 5", "done 5"),
    ]


def test_progress_shows_the_loss_that_is_there(ahead):
    shown = TrainingProgress(10, 0)
    found = [
        StepNumbers(torch.nn.Identity(), BY_ITSELF, config(), n, lambda n=n: [float(n), 1.0, 0.0])
        for n in (1, 2, 3)
    ]
    for numbers in found:
        shown.update(StepDone(State(step=numbers.step), numbers, 0.1), 10)
    assert [numbers.known is not None for numbers in found] == [True, True, False]
