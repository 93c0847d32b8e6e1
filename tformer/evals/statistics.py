"""How sure an evaluation is, and whether two models differ on one text: standard errors and intervals.

Arithmetic on numbers: knows no model. The intervals of experiments, over their seeds, are in `figures.py`.

The losses of neighbouring tokens are not independent, so a token is no unit of measurement. Nor is a
window of n_ctx where a text has many: they share a scene and a subject. On 400,000 characters of
Shakespeare the error from windows of 64 is 0.0024 nats, from stretches of 4,096 it is 0.0044. So the unit
is a stretch of whole windows, of which a text has about a hundred: batch means, as for any correlated series.
"""

import math
from dataclasses import dataclass

import numpy as np

from tformer.counted import counted
from tformer.errors import RequestError

STRETCHES = 64  # that a long text is cut into: from so many up to just below twice as many


def mean_stderr(values: np.ndarray) -> float | None:
    """The standard error of the mean of K independent values, s / √K; None for fewer than two."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def ratio_stderr(sums: np.ndarray, sizes: np.ndarray) -> float | None:
    """The standard error of R = Σ sums / Σ sizes over K units, both of shape (K,); None for fewer than two.

    sqrt(K / (K - 1) · Σ (sums_k - R · sizes_k)²) / Σ sizes: the ratio estimator (Cochran, Sampling
    Techniques, 1977, section 6.4), with no correction for a finite population. Units are taken as
    independent. With equal sizes it is the standard deviation of the units' means over √K.
    """
    k, total = len(sums), float(sizes.sum())
    if k < 2 or total <= 0:
        return None
    residuals = sums - sums.sum() / total * sizes
    return math.sqrt(k / (k - 1) * float(residuals @ residuals)) / total


def stretch_stderr(losses: np.ndarray, sizes: np.ndarray, n_ctx: int) -> float | None:
    """The standard error of Σ losses / Σ sizes, both of shape (n,), from stretches of whole windows.

    A text of fewer than 128 windows has each as a unit. None for a single one.
    """
    windows = -(-len(losses) // n_ctx)
    starts = np.arange(0, len(losses), n_ctx * max(1, windows // STRETCHES))
    return ratio_stderr(np.add.reduceat(losses, starts), np.add.reduceat(sizes, starts).astype(np.float64))


def binomial_interval(n: int, p: float, confidence: float) -> tuple[float, float]:
    """The exact central interval of (successes / n) for n independent trials of probability p.

    Below it, and above it, lies at most (1 - confidence) / 2 of the probability.
    """
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_pmf = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    log_pmf += k * math.log(p) + (n - k) * math.log1p(-p)
    cumulative = np.cumsum(np.exp(log_pmf))
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(cumulative, tail, side="right"))
    high = int(np.searchsorted(cumulative, 1 - tail, side="left"))
    return low / n, min(high, n) / n


@dataclass(frozen=True)
class Scored:
    """A model's losses on a text, and where in it they lie.

    `losses` has shape (n - 1,), nats of every token but the first; `ends` shape (n,), the byte of the
    text at which each token ends, the first included.
    """

    losses: np.ndarray
    ends: np.ndarray
    n_ctx: int

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of every token but the first."""
        return np.diff(self.ends)

    @property
    def bytes_per_window(self) -> float:
        """On average, of a whole window."""
        return self.n_ctx * float(self.ends[-1] - self.ends[0]) / max(1, len(self.losses))

    def nats_until(self, places: np.ndarray) -> np.ndarray:
        """The summed loss of what is scored before each byte of `places`, every one of them in `ends`."""
        until = np.concatenate(([0.0], np.cumsum(self.losses)))
        return until[np.searchsorted(self.ends, places, side="right") - 1]


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one model minus another's on the `bytes` that both score, in `blocks`."""

    bits_per_byte: float
    stderr: float | None
    bytes: int
    blocks: int


def difference(one: Scored, other: Scored) -> Difference:
    """How much more bits per byte `one` needs than `other`, paired over the same bytes.

    Where both tokenizers cut is an edge; blocks run from edge to edge and are about as long as the longer
    of the two windows, or as the 64th part of a long text. The first token of a text is no target, so the
    bytes before the first common edge, a few, are left out. The standard error is `ratio_stderr` of the
    blocks' differences: what is hard for both models cancels. Raises RequestError for two different texts.
    """
    edges = np.intersect1d(one.ends, other.ends)
    if one.ends[-1] != other.ends[-1] or len(edges) < 2:
        raise RequestError(
            "the two models did not score the same text",
            f"{int(one.ends[-1]):,} and {int(other.ends[-1]):,} bytes, {counted(len(edges), 'common cut')}",
        )
    length = max(one.bytes_per_window, other.bytes_per_window, int(edges[-1] - edges[0]) / STRETCHES)
    number = (edges - edges[0]) // length  # of the block that each edge would be in
    chosen = edges[np.concatenate(([True], number[1:] > number[:-1]))]
    if chosen[-1] != edges[-1]:
        chosen = np.append(chosen, edges[-1])
    sizes = np.diff(chosen).astype(np.float64)
    nats = np.diff(one.nats_until(chosen) - other.nats_until(chosen))
    stderr = ratio_stderr(nats, sizes)
    return Difference(
        bits_per_byte=float(nats.sum() / sizes.sum()) / math.log(2),
        stderr=None if stderr is None else stderr / math.log(2),
        bytes=int(sizes.sum()),
        blocks=len(sizes),
    )


def same_cuts(one: Scored, other: Scored) -> bool:
    """Whether both models read the text as the same tokens: only then do losses per token compare."""
    return np.array_equal(one.ends, other.ends)
