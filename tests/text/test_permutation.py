"""Orders that are computed: each thing once, another order for each key, and as even as a random one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tformer.text.permutation import Permutation


def permutation(n: int, seed: int = 0) -> Permutation:
    return Permutation(n, np.random.default_rng(seed))


@given(n=st.integers(1, 3000), seed=st.integers(0, 99))
def test_each_thing_comes_once(n, seed):
    assert np.array_equal(np.sort(permutation(n, seed)[np.arange(n)]), np.arange(n))


@pytest.mark.parametrize("n", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_so_it_does_at_the_edges_of_a_power_of_two(n):
    found = permutation(n)[np.arange(n)]
    assert np.array_equal(np.bincount(found, minlength=n), np.ones(n))


def test_of_more_things_than_could_be_stored_no_two_are_one():
    n = (1 << 60) + 12345
    places = np.concatenate((np.arange(5000), n - 1 - np.arange(5000), np.arange(5000) * (n // 5000) + 7000))
    found = permutation(n)[places.reshape(3, 5000)]
    assert found.shape == (3, 5000) and len(np.unique(found)) == 15_000
    assert found.min() >= 0 and found.max() < n
    assert np.array_equal(found, permutation(n)[places.reshape(3, 5000)])


def test_another_key_has_another_order():
    orders = [permutation(10_000, seed)[np.arange(10_000)] for seed in range(4)]
    same = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    assert max(same) < 12  # one in the mean, as of any two orders


@pytest.mark.parametrize("n", [3_000, 70_000, 1 << 17])
def test_an_order_is_as_even_as_a_random_one(n):
    """By chi squares of 15 × 15 cells, of what is where and of what follows what: 5 standard deviations."""
    found = permutation(n, 3)[np.arange(n)]
    for before, after in ((np.arange(n), found), (found[:-1], found[1:])):
        cells = np.histogram2d(before, after, bins=15, range=[[0, n], [0, n]])[0]
        expected = len(before) / 225
        chi = ((cells - expected) ** 2 / expected).sum()
        assert abs(chi - 196) < 5 * np.sqrt(2 * 196)
    assert abs((np.diff(found) > 0).mean() - 0.5) < 5 / np.sqrt(12 * n) * 2
    assert (np.abs(np.diff(found)) == 1).sum() < 15  # two in the mean
