"""Scores of labels, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer

from handscroll.base.errors import ConfigError, DataError
from handscroll.metrics import Settings, compare, labels, measure
from handscroll.metrics.scores import measured

AVERAGES = ["micro", "macro", "weighted"]
PAIRS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")), min_size=1, max_size=40)
SETS = st.lists(st.tuples(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd"))), min_size=2, max_size=20)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_one_label_an_example(pairs):
    true, given_ = (list(side) for side in zip(*pairs, strict=True))
    assert labels.accuracy(true, given_).value == pytest.approx(sk.accuracy_score(true, given_))
    assert labels.mcc(true, given_).value == pytest.approx(sk.matthews_corrcoef(true, given_), abs=1e-12)
    for average in AVERAGES:
        oracle = sk.precision_recall_fscore_support(true, given_, average=average, zero_division=0)
        made = [score(true, given_, average).value for score in (labels.precision, labels.recall, labels.f1)]
        assert made == pytest.approx(oracle[:3])
    found = labels.confusion(true, given_)
    assert (found.counts == sk.confusion_matrix(true, given_)).all() and not found.nameless.any()
    each = sk.precision_recall_fscore_support(true, given_, zero_division=0)
    assert pytest.approx(np.array(each)) == np.array([row[1:5] for row in labels.by_label(true, given_)]).T


@given(SETS)
@settings(max_examples=60, deadline=None)
def test_several_labels_an_example(pairs):
    true, given_ = (list(side) for side in zip(*pairs, strict=True))
    assume(len(set().union(*true, *given_)) > 1)  # of one column scikit-learn makes two classes
    table = MultiLabelBinarizer().fit([*true, *given_])
    one, other = table.transform(true), table.transform(given_)
    assert labels.accuracy(true, given_).value == pytest.approx(sk.accuracy_score(one, other))
    for average in AVERAGES if set().union(*true) else ["micro", "macro"]:
        oracle = sk.precision_recall_fscore_support(one, other, average=average, zero_division=0)
        made = [score(true, given_, average).value for score in (labels.precision, labels.recall, labels.f1)]
        assert made == pytest.approx(oracle[:3])


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_a_resample_is_scored_as_its_own_data_set():
    """Weights stand for repeated examples: a label that a resample lacks does not count in its mean."""
    random = np.random.default_rng(0)
    true, given_ = random.choice(list("aaaab"), 30).tolist(), random.choice(list("aaabc"), 30).tolist()
    weights = np.stack([np.bincount(random.integers(0, 30, 30), minlength=30) for _ in range(50)]).astype(float)
    weights[0] = np.array([30.0 * (one == other == "a") for one, other in zip(true, given_, strict=True)])
    rows = [np.repeat(np.arange(30), row.astype(int)) for row in weights]
    for score, oracle in ((labels.f1, sk.f1_score), (labels.recall, sk.recall_score)):
        made = score(true, given_, "macro").of(weights)
        wanted = [
            oracle([true[i] for i in row], [given_[i] for i in row], average="macro", zero_division=0) for row in rows
        ]
        assert made == pytest.approx(wanted)
    made = labels.mcc(true, given_).of(weights)
    wanted = [sk.matthews_corrcoef([true[i] for i in row], [given_[i] for i in row]) for row in rows]
    assert made == pytest.approx(wanted)


def test_free_text_is_wrong_but_no_class_of_its_own():
    true, given_ = ["yes", "no", "yes", "no"], ["yes", "I cannot say", "yes", None]
    known = labels.f1(true, given_, "macro", ["yes", "no"]).value
    assert known == pytest.approx(0.5)
    assert labels.f1(true, given_, "macro").value == pytest.approx(1 / 3)
    assert labels.precision(true, given_, "micro", ["yes", "no"]).value == pytest.approx(2 / 3)
    found = labels.confusion(true, given_, ["yes", "no"])
    assert found.counts.tolist() == [[2, 0], [0, 0]] and found.nameless.tolist() == [0, 2]
    spelled = ["yes", "other", "yes", "other"]
    assert labels.mcc(true, given_, ["yes", "no"]).value == pytest.approx(sk.matthews_corrcoef(true, spelled))
    assert measure(["accuracy"], true, given_, Settings(labels=("yes", "no")))["accuracy"].value == 0.5


def test_one_class_only_has_a_defined_value():
    same = ["a"] * 5
    assert labels.mcc(same, same).value == 0
    assert labels.f1(same, same).value == labels.accuracy(same, same).value == 1
    assert measured(labels.f1(same, same)).why == "all resamples give one value"
    assert labels.f1(same, ["b"] * 5).value == 0


@pytest.mark.parametrize(
    "true, given_, message",
    [
        ([], [], "nothing to score"),
        (["a"], ["a", "b"], "1 references and 2 predictions"),
        ([None, "a"], ["a", "a"], "reference 0 is None"),
        ([1, 0], ["1", "0"], "labels of type int and str"),
        ([0.5], [0.5], "labels of type float"),
        ([True, 1], [True, 1], "bool and int"),
    ],
)
def test_what_cannot_be_scored_is_refused(true, given_, message):
    with pytest.raises(DataError, match=message):
        labels.accuracy(true, given_)


def test_other_refusals():
    with pytest.raises(DataError, match="no example has a label"):
        assert labels.f1([[], []], [[], []]).value
    with pytest.raises(DataError, match="did you mean 'positive'"):
        labels.f1(["positve"], ["positive"], labels=["positive", "negative"])
    with pytest.raises(DataError, match=r"prediction 0 is .*one label an example"):
        labels.mcc(["a"], [["a"]])
    with pytest.raises(ConfigError, match="did you mean 'macro'"):
        labels.f1(["a"], ["a"], "makro")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        measure(["acuracy"], ["a"], ["a"])


def test_two_systems_on_f1():
    random = np.random.default_rng(0)
    true = random.integers(0, 3, 200)
    good = np.where(random.random(200) < 0.9, true, 0)
    poor = np.where(random.random(200) < 0.6, true, 0)
    found = compare(["f1-macro", "mcc"], true.tolist(), good.tolist(), poor.tolist())["f1-macro"]
    assert found.difference.value == pytest.approx(
        sk.f1_score(true, good, average="macro") - sk.f1_score(true, poor, average="macro")
    )
    assert found.p is not None and found.p < 0.01
