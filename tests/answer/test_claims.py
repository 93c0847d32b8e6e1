"""Numbers with their spread, and verdicts that can fail."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tformer.answer.claims import Claim, Finding, largest, smallest
from tformer.answer.experiment import FULL, QUICK, Seeds, over_seeds
from tformer.figures import Lines, Numbers, Table
from tformer.files import finite

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8).map(tuple)


def claim(values, relation="at least", threshold=0.5):
    return Claim("it holds", Numbers(tuple(values)), relation, threshold, "because")


@given(values, st.floats(-1e6, 1e6))
def test_a_claim_holds_if_every_seed_keeps_to_the_threshold(measured, threshold):
    assert claim(measured, "at least", threshold).passed == all(v >= threshold for v in measured)
    assert claim(measured, "at most", threshold).passed == all(v <= threshold for v in measured)


@pytest.mark.parametrize("relation", ["at least", "at most"])
def test_a_measurement_that_is_no_number_refutes(relation):
    refuted = claim((1.0, math.nan), relation)
    assert not refuted.passed
    assert refuted.as_dict()["measured"] is None
    assert refuted.as_dict()["values"] == [1.0, None]


def test_the_interval_is_students():
    # Student 1908, for n = 4: 3.182 standard errors on either side.
    four = Numbers((1.0, 2.0, 3.0, 6.0))
    assert four.half_width == pytest.approx(3.182 * statistics.stdev(four.values) / 2)
    assert Numbers((4.0,)).half_width == 0
    assert Numbers((1.0, math.inf)).half_width == 0


def test_t_quantiles_hold_their_share():
    """97.5 % of Student's distribution lies below each, by numeric integration of its density."""
    from tformer.figures import T_QUANTILES

    for freedom, quantile in enumerate(T_QUANTILES, 1):
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        n = 20_000
        width = quantile / n
        middle = (scale * (1 + (width * (i + 0.5)) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(n))
        assert 0.5 + sum(middle) * width == pytest.approx(0.975, abs=5e-5)


def test_numbers_read_well():
    assert str(Numbers((0.5,), ".2f")) == "0.50"
    assert str(Numbers((1.0, 1.0, 1.0), ".2f", "nats")) == "1.00 ± 0.00 nats"


def test_of_two_seeds_both_values_are_shown():
    """Student's t for one degree of freedom would give an accuracy of 0.9 and 1 an interval of ± 0.6."""
    assert str(Numbers((1.0, 0.9), ".2f", "nats")) == "0.90 to 1.00 nats"
    assert str(Numbers((1.0, 1.0), ".2f")) == "1.00"
    assert Numbers((1.0, 0.9)).interval == (0.9, 1.0)
    low, high = Numbers((1.0, 2.0, 3.0)).interval
    assert low == pytest.approx(2 - 4.303 / 3**0.5, rel=1e-3) and low + high == pytest.approx(4)


def test_a_column_is_numeric_if_all_its_cells_are_numbers():
    number = Numbers((1.0,))
    assert Table("t", ("", "a", "b"), (("x", number, number), ("y", number, "-"))).numeric == (
        False,
        True,
        False,
    )


def test_a_curve_over_seeds_is_the_mean_between_the_lowest_and_the_highest():
    curve = over_seeds("loss", (1, 2, 3), [[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]])
    assert curve.y == (2.0, 2.0, 4.0)
    assert curve.low == (1.0, 2.0, 3.0)
    assert curve.high == (3.0, 2.0, 5.0)
    assert over_seeds("loss", range(1000), [list(range(1000))], most=100).x == tuple(range(0, 1000, 10))


def test_a_curve_for_a_log_axis_is_the_geometric_mean_where_there_is_one():
    """log 0 is no number: then it is the plain mean, and no interval."""
    seeds = Seeds([(1.0, 2.0), (4.0, 8.0)])
    curve = seeds.log_curve("loss", (1, 2), lambda values: values)
    assert curve.y == pytest.approx((2.0, 4.0))
    assert curve.low == pytest.approx((1.0, 2.0)) and curve.high == pytest.approx((4.0, 8.0))
    plain = Seeds([(0.0, 2.0), (4.0, 8.0)]).log_curve("loss", (1, 2), lambda values: values)
    assert plain.y == (2.0, 5.0) and not plain.low and not plain.high


def test_the_least_of_what_is_no_number_is_none():
    assert smallest([2.0, 1.0]) == 1.0 and largest([2.0, 1.0]) == 2.0
    assert math.isnan(smallest([1.0, math.nan])) and math.isnan(largest([math.nan, 1.0]))


def test_a_finding_keeps_the_order_of_each_kind():
    table, figure = Table("t", ("",), ()), Lines("f", "x", "y", ())
    finding = Finding.of("said", claim((1.0,)), figure, table, claim((2.0,)))
    assert finding.tables == (table,) and finding.figures == (figure,)
    assert [c.measured for c in finding.claims] == [1.0, 2.0]


def test_an_effort_picks_its_own():
    assert QUICK.pick(quick=1, full=2) == 1
    assert FULL.pick(quick=1, full=2) == 2


def test_json_has_no_nan():
    assert finite(math.nan) is None and finite(math.inf) is None and finite(1.5) == 1.5
