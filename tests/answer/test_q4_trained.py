"""Question 4: what is trained with skips and without, and that each claim falls with what was trained."""

from dataclasses import replace

import pytest

from tests.answer.verdicts import refuted, verdicts
from tformer.answer.experiment import QUICK, Seeds
from tformer.answer.parts import BOTH, NEITHER, SKIP_VARIANTS, NoSkips
from tformer.answer.q4_skips import trained

SHALLOW = "With 2 blocks every variant learns, also without any skip"
DEEP = "With 8 blocks the one with both skips learns"
NO_OTHER = "With 8 blocks no other does in the same 80 steps"
COPYING = "8 blocks without skips learn, if each starts as a copy of its input"


@pytest.fixture(scope="module")
def evidence():
    return trained.measure_training(QUICK, 5, None)


def test_deep_models_need_both_skips_or_a_copying_start(evidence):
    finding = trained.show_training(Seeds([evidence]))
    assert verdicts(finding) == {SHALLOW: True, DEEP: True, NO_OTHER: True, COPYING: True}


def test_claims_of_training_fall_with_what_was_trained(evidence):
    """Evidence is exchanged, since training is the cost."""

    def with_second_half(depth, variant, value):
        changed = [
            replace(training, second_half=value)
            if (training.depth, training.variant) == (depth, variant)
            else training
            for training in evidence.trained
        ]
        return refuted(trained.show_training(Seeds([evidence, replace(evidence, trained=changed)])))

    deep = evidence.at(8, NEITHER).second_half
    assert with_second_half(2, NEITHER, deep) == {SHALLOW}
    assert with_second_half(8, BOTH, deep) == {DEEP}
    for name in SKIP_VARIANTS.keys() - {BOTH}:
        assert with_second_half(8, name, 1.0) == {NO_OTHER}
    assert with_second_half(8, trained.COPY, deep) == {COPYING}


def test_a_training_that_diverges_is_counted_with_what_it_had(monkeypatch):
    def diverging(*args, **settings):
        raise trained.TformerError("training diverged")

    monkeypatch.setattr(trained, "train", diverging)
    task = trained.Reversal(4, 8)
    training = trained.train_variant(trained.SkipVariant(2, NEITHER, NoSkips), task, 20, 1e-3)
    assert training.losses == [] and training.second_half < 0.5 and len(training.whole) == 2


def test_the_better_learning_rate_is_kept_and_one_that_diverged_is_not(monkeypatch):
    """Losses by learning rate: the one that stops early has the lowest, and does not count."""
    losses = {1e-3: [2.0] * 20, 2e-3: [1.0] * 20, 3e-3: [0.1] * 5}
    variant, task = trained.SkipVariant(2, NEITHER, NoSkips), trained.Reversal(4, 8)
    monkeypatch.setattr(
        trained,
        "train_variant",
        lambda variant, task, steps, lr: trained.Training(
            variant.depth, variant.name, lr, losses[lr], 0, 0, [], []
        ),
    )
    assert trained.best_of_rates(variant, task, 20, list(losses)).lr == 2e-3
