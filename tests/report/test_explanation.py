"""The page of an explanation: what was marked stands in it, hostile words stay words, and the map is a picture."""

import pytest

from handscroll.report.explanation import explanation_page
from handscroll.report.page import Marked, render
from tests.report.trees import HOSTILE, Tree

MARKS = [
    {"start": 0, "end": 9, "text": "Once upon", "attention": 0.2, "effect": None, "marked": False},
    {"start": 9, "end": 9 + len(HOSTILE), "text": HOSTILE, "attention": 0.7, "effect": 3.5, "marked": True},
    {"start": 9 + len(HOSTILE), "end": 400, "text": "\n end", "attention": 0.1, "effect": 0.0, "marked": False},
]
STEPS = [{"text": " yes", "probability": 0.9, "others": [[" no", 0.05]]}]
RECORD = {"kind": "explanation", "answer": "yes", "marks": MARKS, "steps": STEPS, "likelihood": -1.0, "rests": 4.0}
RECORD |= {"together": 3.5, "agreement": 1.0, "read": 1200, "looked": 90}


def test_what_was_marked_stands_in_the_page():
    html = render(explanation_page(RECORD, "Is it? <b>", "book", {"model": "m"}))
    tree = Tree(html)
    tags = [tag for tag, _ in tree.attributes]
    assert tags.count("mark") == 1 and "script" not in tags and "b" not in tags and "img" not in tags
    assert HOSTILE in "".join(tree.words) and "1,200" in html and "+3.50" in html
    assert "+0.00" in html and "' no' 5%" in "".join(tree.words)
    assert "var(--accent)" in html and 'class="shade-5"' in html and 'class="shade-1"' in html


def test_nothing_marked_is_said_in_words():
    plain = [{**one, "effect": None, "marked": False} for one in MARKS]
    html = render(explanation_page({**RECORD, "marks": plain, "together": 0.0, "steps": []}, "Why?", "book"))
    assert "so none is marked" in html and "<mark" not in html and "Other words" not in html


def test_shades_stay_on_the_ramp():
    assert [shade for _, shade, _ in Marked([("a", 2.0, False), ("b", -1.0, True), ("c", 0.5, False)]).shaded] == [
        5,
        0,
        2,
    ]


@pytest.mark.parametrize("count", [1, 3000])
def test_maps_of_few_and_of_many_passages(count):
    marks = [{**MARKS[0], "start": 9 * at, "end": 9 * at + 9, "attention": 1 / count} for at in range(count)]
    html = render(explanation_page({**RECORD, "marks": marks}, "Why?", "book"))
    assert len(html) < 45_000 + 120 * count and html.count("<rect") <= 2 * 240
