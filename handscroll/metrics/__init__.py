"""Scores of predictions against references, with intervals and paired tests; see docs/metrics.md."""

from handscroll.metrics.scores import Comparison, Measured, Scores, compared, measured
from handscroll.metrics.table import METRICS, Metric, Settings, compare, measure, metric

__all__ = [
    "METRICS", "Comparison", "Measured", "Metric", "Scores", "Settings", "compare", "compared", "measure", "measured",
    "metric",
]  # fmt: skip
