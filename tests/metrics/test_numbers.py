"""Correlations, errors, calibration, perplexity and the score of vectors, against scipy, scikit-learn and formulas."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, mean_absolute_error, root_mean_squared_error

from handscroll.base.errors import ConfigError, DataError
from handscroll.metrics import calibration, numbers, similarity
from handscroll.metrics.likelihood import perplexity
from handscroll.metrics.scores import compared, measured


def test_correlations_and_errors_under_any_weights():
    random = np.random.default_rng(0)
    true = random.integers(0, 6, 40).astype(float)
    given = true + random.integers(0, 4, 40) + 1e6  # a mean far from zero keeps its digits
    weights = np.stack([np.bincount(random.integers(0, 40, 40), minlength=40) for _ in range(20)]).astype(float)
    rows = [np.repeat(np.arange(40), row.astype(int)) for row in weights]
    for score, oracle in (
        (numbers.pearson, lambda a, b: stats.pearsonr(a, b).statistic),
        (numbers.spearman, lambda a, b: stats.spearmanr(a, b).statistic),
        (numbers.rmse, root_mean_squared_error),
        (numbers.mae, mean_absolute_error),
    ):
        made = score(true.tolist(), given.tolist())
        assert made.value == pytest.approx(oracle(true, given), rel=1e-9)
        assert made.of(weights) == pytest.approx([oracle(true[row], given[row]) for row in rows], rel=1e-8)


def test_what_is_no_number_or_constant_is_refused():
    for score in (numbers.pearson, numbers.spearman):
        for constant in ([2, 2, 2], [1e6 + 0.1] * 3):
            with pytest.raises(DataError, match="all references, or all predictions, are the same number"):
                measured(score([1, 2, 3], constant))
    for wrong in (float("nan"), float("inf"), "3", None, True):
        with pytest.raises(DataError, match=r"prediction 1 is .*, not a finite number"):
            numbers.mae([1, 2], [1, wrong])  # pyright: ignore[reportArgumentType]


def test_calibration_by_its_formula_and_brier_as_scikit_learn():
    random = np.random.default_rng(0)
    chances = random.dirichlet([1, 1, 1], 200)
    true = random.integers(0, 3, 200)
    rows = [dict(zip("abc", row, strict=True)) for row in chances]
    names = ["abc"[n] for n in true]
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == true
    place = np.ceil(confidence * 10)
    gaps = [abs(confidence[place == n].sum() - right[place == n].sum()) for n in range(1, 11)]
    assert calibration.ece(names, rows, bins=10).value == pytest.approx(sum(gaps) / 200)
    assert measured(calibration.ece(names, rows)).why == "resamples are less calibrated"
    twice = compared(calibration.ece(names * 2, [*rows, *rows[::-1]]))
    assert twice.difference.low is None and twice.p is not None and twice.p < 0.5
    bins = calibration.reliability(names, rows, bins=10)
    assert sum(one.count for one in bins) == 200 and bins[0] == (0, 0.1, 0, None, None)
    assert bins[5].confidence == pytest.approx(confidence[place == 6].mean())
    assert bins[5].right == pytest.approx(right[place == 6].mean())
    assert calibration.brier(names, rows).value == pytest.approx(brier_score_loss(names, chances, labels=list("abc")))
    two = [{"yes": row[0], "no": 1 - row[0]} for row in chances]
    said = np.where(true == 0, "yes", "no").tolist()
    oracle = brier_score_loss(true == 0, chances[:, 0])
    assert calibration.brier(said, two).value == pytest.approx(oracle)
    assert calibration.ece(["a", "a"], [{"a": 1.0, "b": 0.0}] * 2).value == 0


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"a": 0.9, "b": 0.3}], "1.2000 in sum"),
        ([{"a": 1.5, "b": -0.5}], "hold 1.5"),
        ([{"a": float("nan"), "b": 0.5}], "hold nan"),
        ([{"b": 1.0}], "reference 0 is 'a', which has no probability"),
        ([0.7], "probabilities 0 are 0.7"),
    ],
)
def test_probabilities_that_are_none(rows, message):
    with pytest.raises(DataError, match=message):
        calibration.ece(["a"], rows)
    with pytest.raises(DataError, match=message):
        calibration.brier(["a"], rows)


def test_probabilities_name_the_same_labels():
    with pytest.raises(DataError, match="probabilities 1 name"):
        calibration.brier(["a", "a"], [{"a": 1.0, "b": 0.0}, {"a": 1.0}])
    with pytest.raises(ConfigError, match="at least 1"):
        calibration.ece(["a"], [{"a": 1.0}], bins=0)


def test_perplexity_adds_up_before_it_divides():
    made = perplexity([10, 1000], [20.0, 1000.0])
    assert made.value == pytest.approx(np.exp(1020 / 1010))
    with pytest.raises(DataError, match="text 1 has a loss of nan over 3 tokens"):
        perplexity([2, 3], [1.0, float("nan")])
    with pytest.raises(DataError, match="over 0 tokens"):
        perplexity([0], [0.0])
    with pytest.raises(DataError, match="700 nats"):
        perplexity([1], [1e5])


def formula(one: np.ndarray, other: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Zhang et al. 2020, equations of section 3."""
    one, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, other))
    recall = sum(w * max(x @ y for y in other) for w, x in zip(first, one, strict=True)) / first.sum()
    precision = sum(w * max(x @ y for x in one) for w, y in zip(second, other, strict=True)) / second.sum()
    return precision, recall


def test_the_score_of_vectors_is_its_formula_in_any_tiles(monkeypatch):
    random = np.random.default_rng(0)
    one, other = random.normal(size=(37, 8)), random.normal(size=(23, 8))
    first, second = random.random(37), random.random(23)
    flat = formula(one, other, np.ones(37), np.ones(23))
    weighted = formula(one, other, first, second)
    for tile in (1024, 5, 1):
        monkeypatch.setattr("handscroll.metrics.similarity._TILE", tile)
        found = similarity.similarity(one, other)
        assert (found.precision, found.recall) == pytest.approx(flat)
        assert tuple(similarity.similarity(one, other, first, second)) == pytest.approx(weighted)
    assert found.f1 == pytest.approx(2 * flat[0] * flat[1] / (flat[0] + flat[1]))
    assert similarity.embedding_score([one, one], [other, one]).value == pytest.approx((found.f1 + 1) / 2)


def test_vectors_that_cannot_be_compared():
    good = np.ones((3, 4))
    assert similarity.similarity(good, np.zeros((0, 4))).f1 == 0
    for one, other, message in (
        (np.zeros((0, 4)), good, "the reference has no token"),
        (good, np.ones((3, 5)), "vectors of 4 and 5"),
        (good, np.zeros((2, 4)), "vector 0 is all zeros"),
        (good, np.full((2, 4), np.nan), "not finite"),
        (good, np.ones(4), "shape"),
    ):
        with pytest.raises(DataError, match=message):
            similarity.similarity(one, other)
    with pytest.raises(DataError, match="weights must be 3 numbers"):
        similarity.similarity(good, good, np.array([1.0, -1.0, 1.0]))
