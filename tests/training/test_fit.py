"""The loop: its loss, its gradients, when it stops, and that it depends on (seed, step) alone."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tests.conftest import tiny_config, tiny_model
from tformer.config import Config, TrainConfig
from tformer.loss import cross_entropy
from tformer.model import Transformer
from tformer.run.checkpoint import open_run
from tformer.run.data import prepare_data
from tformer.run.huggingface import to_hf
from tformer.text.data import Windows
from tformer.training.fit import DivergedError, Learner, State, fit
from tformer.training.opening import Prepared, open_session
from tformer.training.optim import Optimizers, lr_at
from tformer.training.session import Session

BATCHES = Windows(np.random.default_rng(0).integers(23, size=400).astype(np.uint16), 16)


class OneBatch:
    """The same batch at every step; no two of its windows begin alike, so it can be learned by heart."""

    n_ctx = 16

    def batch(self, step, batch_size):
        return BATCHES.batch(1, batch_size)


class Recording(Optimizers):
    """Keeps the gradients that each step was taken with."""

    def __init__(self, model, train):
        super().__init__(model, train)
        self.model, self.seen = model, []

    def step(self, lr):
        self.seen.append([p.grad.clone() for p in self.model.parameters()])
        super().step(lr)


def config(**changes) -> TrainConfig:
    defaults = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.1}
    return TrainConfig.model_validate(defaults | changes)


def trained(train: TrainConfig, seed: int = 0, batches=BATCHES, **model_changes):
    """A fresh tiny model, its recording optimizers and the reports of its training."""
    torch.manual_seed(seed)
    model = Transformer(tiny_config(**model_changes))
    optimizers = Recording(model, train)
    return model, optimizers, list(fit(Learner(model, optimizers), batches, train, State()))


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_equals_torchs(dtype):
    logits = (torch.randn(3, 5, 11) * 20).to(dtype)
    targets = torch.randint(11, (3, 5))
    expected = F.cross_entropy(logits.double().mT, targets, reduction="none")
    found = cross_entropy(logits, targets)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found.double(), expected, atol=1e-5), "bfloat16 logits are widened first"


def test_a_report_is_the_loss_on_the_batch_before_the_update():
    torch.manual_seed(0)
    model, train = tiny_model(), config(steps=1)
    inputs, targets = (torch.from_numpy(a) for a in BATCHES.batch(0, 4))
    logits = model(inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    norm = torch.stack([g.norm() for g in torch.autograd.grad(expected, [*model.parameters()])]).norm()
    (report,) = fit(Learner(model, Optimizers(model, train)), BATCHES, train, State())
    assert report.loss == pytest.approx(expected.item(), rel=1e-6)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_reports_count_steps_and_tokens():
    train = config(steps=5, batch_size=4, micro_batch_size=2)
    _, _, reports = trained(train)
    assert [r.state.step for r in reports] == [1, 2, 3, 4, 5]
    assert [r.state.tokens for r in reports] == [4 * 16 * n for n in range(1, 6)]
    assert [r.lr for r in reports] == [lr_at(n, train) for n in range(5)]
    seconds = [r.state.seconds for r in reports]
    assert seconds[0] > 0 and seconds == sorted(seconds)


@pytest.mark.parametrize(("family", "optimizer"), [("gpt2", "adamw"), ("nanochat", "muon")])
def test_one_batch_is_learned_by_heart(family, optimizer):
    train = config(steps=140, optimizer=optimizer, warmup_steps=5, weight_decay=0.0)
    _, _, reports = trained(train, batches=OneBatch(), family=family, d_model=32)
    assert reports[-1].loss < 0.01


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_add_up_to_the_whole_batch(micro):
    whole = trained(config(eps=1e-4), family="gpt2")
    parts = trained(config(eps=1e-4, micro_batch_size=micro), family="gpt2")
    for a, b in zip(whole[1].seen[0], parts[1].seen[0], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-4)
    for a, b in zip(weights(whole[0]), weights(parts[0]), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    losses = [[r.loss for r in reports] for _, _, reports in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip):
    _, optimizers, reports = trained(config(grad_clip=clip))
    for gradients, report in zip(optimizers.seen, reports, strict=True):
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        assert report.grad_norm > 0.05, "the norm that is reported is the one before clipping"
        assert norm == pytest.approx(clip or report.grad_norm, rel=1e-4)


# ---------------------------------------------------------------------------- when it stops


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_divergence_stops_before_the_weights_are_spoiled(what, value, clip):
    train = config(grad_clip=clip)
    model = tiny_model()
    optimizers = Optimizers(model, train)
    steps = []

    def forward(ids):
        logits = model(ids)
        if len(steps) < 3:
            return logits
        if what == "loss":
            return logits * value
        logits.register_hook(lambda gradient: gradient * value)
        return logits

    with pytest.raises(DivergedError, match="step 4"):
        for report in fit(Learner(model, optimizers, forward), BATCHES, train, State()):
            steps.append(report)
            before = weights(model), [t.clone() for t in optimizers.state_tensors().values()]
    assert len(steps) == 3
    assert same(weights(model), before[0])
    assert same(optimizers.state_tensors().values(), before[1])


def test_patience_stops_after_evaluations_without_improvement():
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0, 0.5])  # an equal loss is no improvement
    model, train = tiny_model(), config(eval_every=1, patience=2, steps=9)
    reports = list(
        fit(
            Learner(model, Optimizers(model, train)),
            BATCHES,
            train,
            State(),
            validate=lambda: (next(losses), 1.5),
        )
    )
    assert [r.is_best for r in reports] == [True, True, False, False]
    assert [r.stops_early for r in reports] == [False, False, False, True]
    assert (reports[-1].state.best_step, reports[-1].state.best_val_loss) == (2, 2.0)
    assert [r.val_loss for r in reports] == [3.0, 2.0, 2.5, 2.0]
    assert reports[0].bits_per_byte == 1.5


def test_evaluations_come_every_so_many_steps_and_at_the_end():
    model, train = tiny_model(), config(eval_every=3, steps=7)
    reports = fit(
        Learner(model, Optimizers(model, train)), BATCHES, train, State(), validate=lambda: (1.0, 1.0)
    )
    assert [r.state.step for r in reports if r.val_loss is not None] == [3, 6, 7]


# ---------------------------------------------------------------------------- (seed, step) alone


def test_the_same_seed_gives_the_same_losses_to_the_bit_and_another_does_not():
    def losses(seed):
        batches = Windows(BATCHES.ids, 16, seed)
        return [r.loss for r in trained(config(seed=seed), seed, batches, dropout=0.2)[2]]

    assert losses(3) == losses(3)
    assert all(a != b for a, b in zip(losses(3), losses(4), strict=True))


def test_dropout_differs_from_step_to_step_and_between_micro_batches():
    train = config(lr=1e-30, weight_decay=0.0, batch_size=2, micro_batch_size=1)
    # Both windows the same: each micro-batch has masks of its own, so its gradients differ too.
    _, _, reports = trained(train, batches=OneBatch(), dropout=0.5)
    assert len({r.loss for r in reports}) == len(reports)
    _, _, without = trained(train, batches=OneBatch(), dropout=0.0)
    assert len({r.loss for r in without}) == 1


def test_another_seed_has_other_dropout():
    losses = [trained(config(seed=s, steps=1), 0, dropout=0.5)[2][0].loss for s in (0, 1)]
    assert losses[0] != losses[1], "weights and batch are the same"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [1, 4])
def test_training_from_the_middle_takes_the_very_same_steps(optimizer, stop):
    train = config(optimizer=optimizer, eval_every=2)
    torch.manual_seed(0)
    model = Transformer(tiny_config(dropout=0.3))
    optimizers = Optimizers(model, train)
    whole, halfway = [], None

    def noisy():
        torch.rand(7)  # an evaluation may draw what it likes
        return 1.0, 1.0

    for report in fit(Learner(model, optimizers), BATCHES, train, State(), validate=noisy):
        whole.append((report.loss, report.grad_norm, report.lr))
        if report.state.step == stop:
            tensors = {k: t.clone() for k, t in optimizers.state_tensors().items()}
            halfway = copy.deepcopy(model), tensors, report.state
    second, tensors, state = halfway
    torch.manual_seed(999)
    resumed = Optimizers(second, train)
    resumed.load_state_tensors(tensors)
    rest = list(fit(Learner(second, resumed), BATCHES, train, state, validate=noisy))
    assert [(r.loss, r.grad_norm, r.lr) for r in rest] == whole[stop:]
    assert rest[-1].state.tokens == 6 * 4 * 16
    assert same(weights(second), weights(model))


def test_a_state_survives_json_infinity_included():
    for state in (State(), State(7, 448, 1.5, 2.25, 6, 1)):
        assert State.from_dict(json.loads(json.dumps(state.as_dict(), allow_nan=False))) == state


def test_a_finished_state_takes_no_step():
    model, train = tiny_model(), config()
    assert not list(fit(Learner(model, Optimizers(model, train)), BATCHES, train, replace(State(), step=6)))


# ---------------------------------------------------------------------------- which weights are kept


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_model_safetensors_holds_the_best_or_the_last_weights(keep, kept, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 10)
    sections = {
        "model": {"n_ctx": 8, "n_layers": 1, "n_heads": 1, "d_model": 8},
        "train": {"steps": 4, "batch_size": 2, "eval_every": 1, "keep": keep, "precision": "fp32"},
    }
    whole = Config.model_validate(sections)
    data = prepare_data(whole, [str(tmp_path / "text.txt")])
    whole = whole.updated("model", vocab_size=data.tokenizer.vocab_size)
    losses = iter([3.0, 2.0, 2.5, 2.0])
    monkeypatch.setattr(Session, "validate", lambda self: (next(losses), 1.0))
    with open_run(tmp_path / "run") as run:
        session = open_session(run, Prepared(whole, data, torch.device("cpu")))
        for report in session.train():
            if report.state.step == kept:
                expected = to_hf(session.config.model, session.model.state_dict())
    found = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
