import json

import pytest

from handscroll.base.errors import DataError
from handscroll.report import evaluation_page, render
from handscroll.report.evaluation import tail_loss
from handscroll.report.records import parse_records
from tests.naming import naming
from tests.report.material import CANDIDATES, EVERYTHING, needle, perplexity


def test_a_page_tells_what_the_records_say():
    page = evaluation_page(EVERYTHING, trained=2048, provenance={"Version": "0.1"})
    html = render(page)
    titles = [section.title for section in page.sections]
    assert titles == ["In short", "Loss by position", "Needle in a haystack", "Methods compared", "Training", "Samples"]
    for word in ("9.500 → 2.125", "2K → 4K", "yarn was chosen", "short text suffers", "trained 2K", "a.txt", "passkey"):
        assert word in html, word
    assert "2.125 (after), against 9.500 (before) and 2.125 (sliding window)" in html
    assert "Once &lt;b&gt;" in html and "upon &amp; a time" in html
    assert "NaN" not in html and "nan" not in html.replace("nanometre", "")


def test_records_survive_json_and_give_the_same_bytes():
    again = json.loads(json.dumps(EVERYTHING, allow_nan=False))
    assert render(evaluation_page(again)) == render(evaluation_page(EVERYTHING))


@pytest.mark.parametrize("record", EVERYTHING, ids=lambda record: record["kind"])
def test_each_kind_makes_a_page_of_its_own(record):
    assert evaluation_page([record]).sections


def test_the_tail_is_weighted_by_the_tokens_counted():
    (record,) = parse_records(
        [perplexity(positions=[3200, 3700], loss=[2.0, 4.0], count=[30, 10], low=None, high=None)]
    )
    assert tail_loss(record) == pytest.approx(2.5)
    (empty,) = parse_records([perplexity(loss=[3.0, 2.5, 2.0, None])])
    assert tail_loss(empty) is None
    assert "not measured (after)" in render(evaluation_page([perplexity(loss=[3.0, 2.5, 2.0, None])]))


def test_nothing_measured_still_makes_a_page():
    nothing = perplexity(loss=[None] * 4, low=None, high=None, mean=None)
    assert "not measured" in render(evaluation_page([nothing]))


def test_before_and_after_are_only_compared_on_the_same_grid():
    other = needle("before", lengths=[1024, 2048])
    facts = [section for section in evaluation_page([other, needle()]).sections if section.title == "In short"]
    assert facts == []


def test_repeated_labels_become_unique_names():
    html = render(evaluation_page([perplexity(), perplexity(model="other"), perplexity(model="other")]))
    assert "All numbers: after, tiny<" in html
    assert "All numbers: after, other, 4K (1)" in html and "All numbers: after, other, 4K (2)" in html


def test_a_model_in_a_path_is_called_by_its_name():
    for given, called in (("/home/me/models/long.gguf", "long.gguf"), ("org/name", "org/name")):
        page = evaluation_page([perplexity(model=given)])
        assert page.title == f"Evaluation of {called}" and given in page.provenance.values()


def test_a_long_sample_shows_both_ends_and_says_so():
    html = render(evaluation_page([{"kind": "sample", "prompt": "a" * 3000 + "END", "text": "x"}]))
    assert "the first and the last 1,200 of 3,003 characters" in html and "aEND" in html


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "perplexty"}, naming("record 0", "'perplexty'", "'perplexity'")),
        ({}, "None"),
        ([], naming("record 0", "list")),
        (
            {key: value for key, value in perplexity().items() if key != "loss"},
            naming("record 0", "perplexity", "loss"),
        ),
        (perplexity(loss=[1.0]), naming("loss", 1, 4)),
        (perplexity(loss=["x"] * 4), "loss.0"),
        (perplexity(loss=[float("nan")] * 4), "finite"),
        (perplexity(positions=[4, 3, 2, 1]), "rise"),
        (needle(accuracy=[[1.0, 2.0], [1.0, 1.0]]), "equal to 1"),
        (needle(accuracy=[[1.0, 1.0]]), naming("2 rows", "2 values")),
        (needle(depths=[0, 50]), "depths.1"),
        ({**CANDIDATES, "rows": [{**CANDIDATES["rows"][1]}] * 2}, naming(2, "chosen")),
        ({"kind": "training", "steps": [1, 2], "loss": [1.0]}, naming(1, "2 steps")),
    ],
)
def test_a_broken_record_is_refused(record, message):
    with pytest.raises(DataError, match=message):
        evaluation_page([record])


def test_no_records_and_contradictory_lengths_are_refused():
    with pytest.raises(DataError, match="record"):
        evaluation_page([])
    with pytest.raises(DataError, match="trained lengths"):
        evaluation_page([perplexity(trained=1024), needle(trained=2048)])
