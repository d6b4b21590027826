"""Histograms over a logarithmic axis: every axis has numbers, and what cannot be drawn is refused."""

import pytest

from handscroll.base.errors import DataError
from handscroll.report.bars import histogram


@pytest.mark.parametrize(
    ("edges", "wanted"), [([362_000, 500_000, 721_000], "400,000"), ([10, 300, 20_000], "1,000"), ([20, 30], "25")]
)
def test_the_axis_has_numbers_whatever_its_range(edges, wanted):
    svg = histogram(edges, [1] * (len(edges) - 1), "lengths", "characters")
    assert wanted in svg


@pytest.mark.parametrize(("edges", "counts"), [([1, 2], [0]), ([1, 2, 3], [1]), ([0, 2], [1]), ([2, 1], [1])])
def test_what_is_no_histogram_is_refused(edges, counts):
    with pytest.raises(DataError, match="lengths"):
        histogram(edges, counts, "lengths", "characters")
