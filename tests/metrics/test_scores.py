"""Values, intervals and paired tests, against formulas and against scipy."""

import numpy as np
import pytest
from scipy import stats

from handscroll.base.errors import ConfigError, DataError
from handscroll.metrics import Measured, Scores, compared, measured
from handscroll.metrics.scores import mean


def test_a_measured_value_prints_itself():
    assert str(Measured(0.912, 0.893, 0.930, 872)) == "0.912 [0.893, 0.930], n = 872"
    assert str(Measured(34.156, 33.0, 35.25, 2000)) == "34.16 [33.00, 35.25], n = 2,000"
    assert str(Measured(1.0, None, None, 1, "one example")) == "1.000 (no interval: one example), n = 1"


def test_the_interval_is_that_of_scipys_bootstrap():
    each = np.random.default_rng(1).beta(2, 1, 300)
    made = measured(mean(each), resamples=4000, seed=3)
    oracle = stats.bootstrap((each,), np.mean, n_resamples=4000, method="percentile", rng=5).confidence_interval
    assert made.value == pytest.approx(each.mean(), abs=1e-12) and made.count == 300
    assert (made.low, made.high) == pytest.approx((oracle.low, oracle.high), abs=0.004)


def test_intervals_cover_what_they_say():
    """Of 95 % intervals about 95 % hold the truth; 3 deviations of 300 draws are 4 %."""
    random = np.random.default_rng(0)
    held = 0
    for number in range(300):
        made = measured(mean(random.random(200) < 0.8), resamples=200, seed=number)
        assert made.low is not None and made.high is not None
        held += made.low <= 0.8 <= made.high
    assert 0.90 <= held / 300 <= 0.99


def test_equal_seeds_give_equal_intervals_and_chunks_do_not_matter(monkeypatch):
    each = np.random.default_rng(1).random(50)
    first, other = (measured(mean(each), seed=seed) for seed in (7, 8))
    monkeypatch.setattr("handscroll.metrics.scores._HELD", 100)
    again = measured(mean(each), seed=7)
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-14)
    assert first.low != pytest.approx(other.low, abs=1e-6)


@pytest.mark.parametrize("count", [2, 20, 400])
def test_where_all_are_right_the_interval_is_the_binomial_one(count):
    oracle = stats.binomtest(count, count).proportion_ci(method="exact")
    made = measured(mean([1.0] * count))
    assert (made.low, made.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    wrong = measured(mean([0.0] * count))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - oracle.low), abs=1e-9)


def test_no_interval_is_made_up():
    one = measured(mean([0.5]))
    assert (one.low, one.high, one.why) == (None, None, "one example")
    assert measured(mean([0.5] * 9)).why == "all resamples give one value"
    rare = Scores(4, lambda weights: np.where(weights[:, 0] > 0, 1.0, np.nan))
    assert "of 1,000 resamples have no value" in measured(rare).why
    nothing = Scores(4, lambda weights: np.full(len(weights), np.nan), undefined="all are equal")
    with pytest.raises(DataError, match="4 examples: all are equal"):
        measured(nothing)
    with pytest.raises(ConfigError, match="at least 100"):
        measured(mean([0.5, 1.0]), resamples=10)


def test_the_paired_test_is_that_of_scipy():
    random = np.random.default_rng(4)
    first, second = random.random(40), random.random(40)
    second[:25] = first[:25]
    made = compared(mean(np.concatenate([first, second])), resamples=5000)
    oracle = stats.permutation_test(
        (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=5000, vectorized=True, rng=1,
    )  # fmt: skip
    assert made.p == pytest.approx(oracle.pvalue, abs=0.03)
    spread = stats.bootstrap((first - second,), np.mean, n_resamples=5000, method="percentile", rng=1)
    low, high = spread.confidence_interval
    assert (made.difference.low, made.difference.high) == pytest.approx((low, high), abs=0.01)
    for half, alone in ((made.first, first), (made.second, second)):
        wanted = measured(mean(alone), 5000)
        assert (half.value, half.low, half.high) == pytest.approx((wanted.value, wanted.low, wanted.high), abs=1e-12)
    assert str(made).startswith(f"{first.mean():.3f} against {second.mean():.3f}: ")


def test_equal_systems_do_not_differ_and_unequal_ones_do():
    right = np.array([1.0] * 60 + [0.0] * 40)
    same = compared(mean(np.tile(right, 2)))
    assert same.p == 1.0 and same.difference.value == 0
    better = compared(mean(np.concatenate([np.ones(100), right])))
    assert better.p is not None and better.p < 0.002
    assert better.difference.low is not None and better.difference.low > 0.2


def test_p_is_uniform_where_there_is_no_difference():
    random = np.random.default_rng(2)
    values = [compared(mean(random.random(60)), resamples=200, seed=n).p for n in range(200)]
    assert 0.01 <= np.mean([p is not None and p <= 0.05 for p in values]) <= 0.10
