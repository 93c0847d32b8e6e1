"""An order of many things that is computed where it is asked for, and stored nowhere.

A Feistel network permutes the numbers of some bits whatever its round function is (Luby & Rackoff 1988, "How
to construct pseudorandom permutations from pseudorandom functions"). Of those numbers, fewer than twice as
many as the things, each is followed until it comes to a thing (cycle walking: Black & Rogaway 2002, "Ciphers
with arbitrary finite domains").
"""

import numpy as np

ROUNDS = 10
MOST_THINGS = 1 << 62  # things


class Permutation:
    """A permutation of 0 … n - 1 by keys that a generator draws: `permutation[places]` is what is there."""

    def __init__(self, n: int, generator: np.random.Generator):
        assert 0 < n <= MOST_THINGS
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self.low = np.uint64(bits // 2)  # bits of the right half
        self.masks = tuple(np.uint64((1 << half) - 1) for half in (bits - bits // 2, bits // 2))
        self.keys = generator.integers(0, 1 << 64, size=ROUNDS, dtype=np.uint64)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The things at some places, of int64, in the shape of the places."""
        found = self._once(places.astype(np.uint64).ravel())
        while (outside := np.flatnonzero(found >= np.uint64(self.n))).size:
            found[outside] = self._once(found[outside])
        return found.astype(np.int64).reshape(places.shape)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self.low, numbers & self.masks[1]
        for i, key in enumerate(self.keys):
            if i % 2:
                right = right ^ (_mixed(left + key) & self.masks[1])
            else:
                left = left ^ (_mixed(right + key) & self.masks[0])
        return (left << self.low) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of x (the finaliser of SplitMix64: Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
