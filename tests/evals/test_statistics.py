"""Standard errors against simulation; paired differences against arithmetic over the same bytes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tformer.errors import RequestError
from tformer.evals.statistics import (
    Scored,
    binomial_interval,
    difference,
    ratio_stderr,
    same_cuts,
    stretch_stderr,
)


def test_with_equal_units_the_error_is_that_of_a_mean():
    sums = np.array([3.0, 5.0, 4.0, 9.0])
    assert ratio_stderr(sums, np.full(4, 2.0)) == pytest.approx((sums / 2).std(ddof=1) / math.sqrt(4))


def test_one_unit_has_no_error():
    assert ratio_stderr(np.array([3.0]), np.array([2.0])) is None
    assert stretch_stderr(np.ones(16), np.ones(16), n_ctx=16) is None


def test_a_loss_proportional_to_its_bytes_is_known_exactly():
    sizes = np.array([1.0, 7.0, 3.0])
    assert ratio_stderr(2.5 * sizes, sizes) == pytest.approx(0)


@pytest.mark.parametrize("scene", [16, 160], ids=["windows", "scenes of ten windows"])
def test_the_error_is_how_far_texts_of_one_kind_differ(scene):
    """Losses that share their scene's difficulty, and tokens of one to three bytes."""
    rng = np.random.default_rng(0)
    n, ratios, errors = 16 * 640, [], []
    for _ in range(300):
        losses = np.repeat(rng.exponential(size=n // scene), scene) + rng.exponential(size=n)
        sizes = rng.integers(1, 4, size=n)
        ratios.append(losses.sum() / sizes.sum())
        errors.append(stretch_stderr(losses, sizes, n_ctx=16))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.15)


cuts = st.sets(st.integers(1, 199), min_size=1).map(lambda s: np.array([*sorted(s), 200]))


@settings(max_examples=60, deadline=None)
@given(cuts, cuts, st.integers(1, 9), st.integers(0, 99))
def test_a_difference_is_over_the_bytes_that_both_score(ends, other_ends, n_ctx, seed):
    rng = np.random.default_rng(seed)
    one, other = (Scored(rng.exponential(size=len(e) - 1), e, n_ctx) for e in (ends, other_ends))
    common = sorted({*ends.tolist()} & {*other_ends.tolist()})
    if len(common) < 2:
        with pytest.raises(RequestError, match="same text"):
            difference(one, other)
        return
    start = common[0]
    nats = [sum(s.losses[s.ends[1:] > start]) for s in (one, other)]
    found = difference(one, other)
    assert found.bytes == 200 - start
    assert found.bits_per_byte == pytest.approx((nats[0] - nats[1]) / math.log(2) / (200 - start))
    back = difference(other, one)
    assert back.bits_per_byte == pytest.approx(-found.bits_per_byte)
    assert (back.stderr is None) == (found.stderr is None) == (found.blocks < 2)


def test_what_is_hard_for_both_cancels():
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.exponential(size=100), 16)
    ends = np.arange(1, 1602)
    one, other = (Scored(hard + extra, ends, 16) for extra in (0.1 + 0.01 * rng.normal(size=1600), 0.0))
    found = difference(one, other)
    assert found.bits_per_byte == pytest.approx(0.1 / math.log(2), rel=0.01)
    own = stretch_stderr(one.losses, one.sizes, 16)
    assert found.stderr < own / 50
    assert difference(one, one).bits_per_byte == difference(one, one).stderr == 0


def test_two_texts_are_refused():
    with pytest.raises(RequestError, match="same text"):
        difference(Scored(np.ones(9), np.arange(10), 4), Scored(np.ones(10), np.arange(11), 4))


def test_losses_per_token_compare_only_between_equal_tokens():
    one = Scored(np.ones(3), np.array([1, 2, 3, 4]), 4)
    assert same_cuts(one, Scored(np.zeros(3), np.array([1, 2, 3, 4]), 2))
    assert not same_cuts(one, Scored(np.ones(2), np.array([1, 2, 4]), 4))


# ---------------------------------------------------------------------------- the binomial interval


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (10, 0.1), (200, 0.04), (18_000, 1 / 26)])
def test_the_binomial_interval_is_exact(n, p):
    low, high = binomial_interval(n, p, 0.999)
    pmf = [
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(p)
            + (n - k) * math.log1p(-p)
        )
        for k in range(n + 1)
    ]
    k_low, k_high = round(low * n), round(high * n)
    assert sum(pmf[:k_low]) <= 0.0005 < sum(pmf[: k_low + 1])
    assert sum(pmf[k_high + 1 :]) <= 0.0005 + 1e-12
    assert sum(pmf[k_high:]) > 0.0005
