"""Effective length: exact intervals, and the longest length before the first failure."""

import math
import random

import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.effective import effective, interval
from tests.naming import naming


def test_intervals_against_known_values():
    """Clopper & Pearson: tables and closed forms."""
    for hits, trials, low, high in ((18, 20, 0.6830, 0.9877), (5, 10, 0.1871, 0.8129), (1, 100, 0.00025, 0.0545)):
        found = interval(hits, trials)
        assert found == pytest.approx((low, high), abs=6e-5)
    assert interval(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert interval(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert interval(900, 1000, 0.99)[0] == pytest.approx(0.8728, abs=5e-4)


def test_the_ends_have_the_stated_tails():
    for hits, trials in ((3, 7), (40, 50), (299, 300)):
        low, high = interval(hits, trials, 0.9)

        def tail(share, first, last, trials=trials):
            terms = (math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(first, last + 1))
            return math.fsum(terms)

        assert tail(low, hits, trials) == pytest.approx(0.05) and tail(high, 0, hits) == pytest.approx(0.05)


def test_the_longest_length_before_the_first_failure():
    lengths, trials = (1024, 2048, 4096, 8192), [100] * 4
    found = effective(lengths, [100, 90, 20, 99], trials)
    assert (found.length, found.low, found.high) == (2048, 1024, 2048)
    assert str(found) == "2,048 tokens (95%: 1,024 to 2,048)"
    found = effective(lengths, [100] * 4, trials)
    assert (found.length, found.low, found.high) == (8192, 8192, 8192) and str(found) == "8,192 tokens"
    found = effective(lengths, [10, 0, 0, 0], trials)
    assert (found.length, found.low, found.high) == (None, None, None)
    assert effective(lengths, [85, 0, 0, 0], trials, threshold=0.85).length == 1024


def test_parts_of_hits_count_for_the_length():
    """A share of 0.4 reaches 0.34, and the interval is that of whole hits."""
    found, whole = effective((512, 1024), [0.4, 0.4], [1, 1], 0.34), effective((512, 1024), [0, 0], [1, 1], 0.34)
    assert found.length == 1024 and (found.low, found.high) == (whole.low, whole.high)
    assert effective((512, 1024), [8.5, 8.4], [10, 10]).length == 512
    with pytest.raises(DataError):
        effective((512,), [10.4], [10])


def test_the_interval_holds_the_true_length():
    """Of 300 models whose share falls with the length, the interval misses the true effective length in 5 % at most."""
    lengths, draw, missed = (1, 2, 4, 8, 16), random.Random(0), 0
    for _ in range(300):
        shares = [1 / (1 + math.exp(draw.uniform(-8, 2) + number)) for number in range(5)]
        true = next((n for n, share in enumerate(shares) if share < 0.85), 5)
        hits = [sum(draw.random() < share for _ in range(40)) for share in shares]
        found = effective(lengths, hits, [40] * 5)
        ends = [0 if end is None else lengths.index(end) + 1 for end in (found.low, found.high)]
        missed += not ends[0] <= true <= ends[1]
    assert missed <= 15


def test_what_is_no_measurement_is_refused():
    for given in (((1, 2), [1], [1, 1]), ((2, 1), [1, 1], [1, 1]), ((), [], [])):
        with pytest.raises(DataError, match="lengths"):
            effective(*given)
    with pytest.raises(DataError, match=naming(3, 2)):
        interval(3, 2)
    with pytest.raises(ConfigError, match=naming(1.5)):
        effective((1,), [1], [1], threshold=1.5)
