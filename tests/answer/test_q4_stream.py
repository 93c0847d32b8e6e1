"""Question 4: the stream is read off the model as it is, and curves are drawn on the scale of their axis."""

import pytest
import torch

from tests.answer.subjects import random_model, subject
from tests.conftest import tiny_model
from tformer.answer.experiment import Seeds
from tformer.answer.q4_skips import stream
from tformer.answer.q4_skips.experiments import EXPERIMENTS


def test_streams_begin_with_the_embedding_and_leave_no_hook():
    model, ids = random_model(), torch.randint(13, (2, 6))
    streams = stream.streams(model, ids)
    assert len(streams) == 3
    torch.testing.assert_close(streams[0], model.embed(ids) + model.position[:6])
    torch.testing.assert_close(model.unembed(model.norm_final(streams[-1])), model(ids))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_curve_on_a_log_axis_is_the_geometric_mean_of_three_seeds_or_more():
    drawn = stream.log_curve(Seeds([1.0, 10.0, 100.0]), "size", [1], lambda evidence: [evidence])
    assert (*drawn.y, *drawn.low, *drawn.high) == pytest.approx((10.0, 1.0, 100.0))
    two = stream.log_curve(Seeds([1.0, 100.0]), "size", [1], lambda evidence: [evidence])
    assert (two.y, two.low, two.high) == (pytest.approx((10.0,)), (), ())
    with_zero = stream.log_curve(Seeds([0.0, 2.0, 4.0]), "size", [1], lambda evidence: [evidence])
    assert (with_zero.y, with_zero.low, with_zero.high) == ((2.0,), (), ())


def test_a_run_of_two_positions_is_left_out_with_a_reason():
    of_runs = [experiment for experiment in EXPERIMENTS if experiment.slug != "trained"]
    small = subject(tiny_model(n_ctx=2))
    assert all("2 positions" in experiment.skip(small) for experiment in of_runs)
    assert not any(experiment.skip(None) for experiment in EXPERIMENTS)
