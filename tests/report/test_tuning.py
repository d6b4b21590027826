"""The report of a tuning run: what it says, in which language, and what it refuses."""

import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.report import render
from handscroll.report.confusion import confusion_map
from handscroll.report.intervals import Interval, intervals
from handscroll.report.page import Table
from handscroll.report.tuning import Counted, Curve, Difference, Matrix, Mistake, Score, SecondSet, Tuning, tuning_page

SCORES = (
    Score(system="tuned", metric="accuracy", value=0.846, low=0.83, high=0.862, count=2000),
    Score(system="TF-IDF", metric="accuracy", value=0.815, low=0.798, high=0.832, count=2000),
    Score(system="commonest", metric="accuracy", value=0.1, count=2000),
    Score(system="tuned", metric="Brier score", value=0.2, low=0.1, high=0.3, count=2000, higher=False),
)
RUN = Tuning(
    task="新闻分类",
    model="MiniLM",
    data="titles",
    scores=SCORES,
    differences=(
        Difference(metric="accuracy", first="tuned", second="TF-IDF", value=0.031, low=0.018, high=0.042, p=0.001),
    ),
    second=SecondSet(name="other titles", scores=(Score(system="tuned", metric="accuracy", value=0.7, count=50),)),
    curves=(
        Curve(name="training loss", steps=(1, 2, 3), values=(2.0, 1.5, 1.0), unit="nats per title"),
        Curve(name="held-out accuracy", steps=(1, 2, 3), values=(None, 0.5, 0.84)),
        Curve(name="held-out loss", steps=(1, 2, 3), values=(None, None, None)),
    ),
    matrix=Matrix(labels=("体育", "财经"), counts=((8, 2), (0, 9)), nameless=(0, 1)),
    mistakes=(
        Mistake(text="黄金期货<低收>", truth="体育", prediction="财经", confidence=0.94, place="a.csv, row 7"),
        Mistake(text="x" * 700 + "end", truth="财经", prediction="", place="a.csv, row 9"),
    ),
    wrong=3,
    examined=20,
    counts=(Counted(what="rows read", count=10000), Counted(what="left out: empty text", count=2, note="a.csv, row 3")),
    notes=("One newspaper.",),
)  # fmt: skip


def section(run, title):
    return next(one for one in tuning_page(run).sections if one.title == title)


def test_the_page_says_what_was_measured_in_any_language():
    html = render(tuning_page(RUN, {"Seed": "0"}))
    for said in (
        "新闻分类: MiniLM", "accuracy of the best baseline: TF-IDF", "0.846 [0.830, 0.862]", "+0.031", "财经", "体育",
        "黄金期货&lt;低收&gt;", "94%", "2 of 3 errors", "rows read", "10,000", "a.csv, row 3", "One newspaper.",
        "Lower is better for: Brier score", "17 of 20 are right", "held-out loss was not measured", "other titles",
        "(the first and last 300 of 703 characters)", "none of them",
    ):  # fmt: skip
        assert said in html, said
    assert html == render(tuning_page(Tuning.model_validate_json(RUN.model_dump_json()), {"Seed": "0"})), (
        "from JSON too"
    )


def test_titles_stand_in_the_order_of_questions():
    titles = [one.title for one in tuning_page(RUN).sections]
    assert titles == [
        "In short", "Scores", "On other data", "Training", "Confusions", "Errors to read", "What was read",
        "To bear in mind",
    ]  # fmt: skip
    assert tuning_page(Tuning(task="t", model="m", data="d")).sections == []


def test_scores_of_each_label_follow_from_the_matrix():
    table = section(RUN, "Confusions").items[-1]
    assert isinstance(table, Table)
    assert table.rows[0] == ("体育", "1.000", "0.800", "0.889", "10", "8")
    assert table.rows[1] == ("财经", "0.818", "0.900", "0.857", "10", "11")


def test_many_labels_become_a_list():
    size = 30
    counts = [[9 if i == j else int((i, j) == (3, 4)) * 5 for j in range(size)] for i in range(size)]
    run = RUN.model_copy(update={"matrix": Matrix(labels=[f"l{n}" for n in range(size)], counts=counts)})
    first = section(run, "Confusions").items[0]
    assert isinstance(first, Table) and first.rows == [("l3", "l4", "5")]


def test_no_errors_and_best_of_lower_scores():
    clean = RUN.model_copy(update={"mistakes": (), "wrong": 0})
    assert "No held-out example" in section(clean, "Errors to read").lead
    rows = tuple(
        Score(system=s, metric="loss", value=v, count=9, higher=False) for s, v in (("tuned", 1), ("a", 3), ("b", 2))
    )
    facts = section(RUN.model_copy(update={"scores": rows, "second": None}), "In short").items[0]
    assert "2.000" in facts.pairs[1][0] and facts.pairs[1][1].endswith("best baseline: b")  # pyright: ignore


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="3 values for 2 steps"):
        Curve.parse({"name": "loss", "steps": [1, 2], "values": [1, 2, 3]}, "curve")
    with pytest.raises(ConfigError, match="2 rows of 2 counts"):
        Matrix.parse({"labels": ["a", "b"], "counts": [[1, 2]]}, "matrix")
    with pytest.raises(ConfigError, match="1 counts for 2 labels"):
        Matrix.parse({"labels": ["a", "b"], "counts": [[1, 2], [1, 2]], "nameless": [1]}, "matrix")
    with pytest.raises(ConfigError, match="2 mistakes are shown of 1"):
        Tuning.parse({**RUN.model_dump(), "wrong": 1}, "run")
    with pytest.raises(ConfigError, match="finite"):
        Score.parse({"system": "a", "metric": "b", "value": float("nan"), "count": 1}, "score")
    for labels, counts in (([], []), (["a"] * 21, [[0] * 21] * 21), (["a", "b"], [[1]]), (["a"], [[-1]])):
        with pytest.raises(DataError, match="plot 'x'"):
            confusion_map(labels, counts, "x")
    with pytest.raises(DataError, match="no score"):
        intervals([], "x", "y")
    with pytest.raises(DataError, match="nan"):
        intervals([Interval("a", float("nan"))], "x", "y")


def test_prose_and_short_cells_are_told_apart():
    table = Table(("text", "is", "where"), [("w" * 61, "体育", "a file, row 12")])
    assert table.classes == ["left long", "left short", "left"]
