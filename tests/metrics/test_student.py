"""Student's t against published tables."""

import pytest

from handscroll.metrics.student import quantile


@pytest.mark.parametrize(
    ("freedom", "error", "want"),
    [
        (1, 0.05, 12.70620),
        (2, 0.05, 4.30265),
        (5, 0.05, 2.57058),
        (15, 0.05, 2.13145),
        (16, 0.05, 2.11991),
        (30, 0.05, 2.04227),
        (100, 0.05, 1.98397),
        (3, 0.01, 5.84091),
        (10, 0.01, 3.16927),
        (4, 0.001, 8.61030),
        (3, 0.025, 4.17653),
    ],
)
def test_quantiles_of_published_tables(freedom, error, want):
    assert quantile(freedom, error) == pytest.approx(want, abs=1e-5)


def test_many_degrees_of_freedom_are_nearly_normal():
    assert quantile(5000, 0.05) == pytest.approx(1.96044, abs=1e-4)
