"""Passages of a document, and which of them belong to a question, in English and Chinese."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handscroll.search.joined import joined
from handscroll.search.passages import heading_of, passages
from handscroll.search.similar import Similar, stems
from handscroll.text.document import Document, Place

NOISE = st.text(st.sampled_from("ab 。.\n中文字#第一章 \t-=,x" + "é"), max_size=400)


@given(NOISE, st.integers(4, 40))
@settings(max_examples=60, deadline=None)
def test_passages_are_the_document_and_none_is_long(text, most):
    found = passages(Document(text, "a.txt"), most)
    assert "".join(text[one.start : one.end] for one in found) == text
    assert all(len(stems(text[one.start : one.end])) <= 2 * most for one in found)  # Chinese pairs count too


def test_a_run_of_anything_is_no_passage_without_an_end():
    for text in ("x" * 100_000, "-" * 100_000, " " * 100_000 + "x", "字" * 20_000, "a,b;" * 30_000):
        assert max(one.end - one.start for one in passages(Document(text, "a"))) < 10_000


def test_a_passage_knows_its_heading_and_page():
    text = "# One\n\nFirst words here.\n\n## Two\nMore words.\n\n第三回 甄士隐\n字字。"
    document = Document(text, "a.md", places=(Place(0, "page 1"), Place(text.index("##"), "page 2")))
    found = [(one.heading, one.place) for one in passages(document, 20)]
    assert found == [("One", "page 1"), ("Two", "page 2"), ("第三回 甄士隐", "page 2")]
    long = Document("word " * 30 + "\n", "b", places=(Place(0, "page 1"), Place(20, "page 2")))
    assert passages(long, 20)[0].place == "page 1 to page 2"


@pytest.mark.parametrize(("line", "heading"), [
    ("CHAPTER IV. The Sea-chest", "CHAPTER IV. The Sea-chest"),
    ("## 三、方法", "三、方法"),
    ("第一百二十回　甄士隐", "第一百二十回　甄士隐"),
    ("楔子", "楔子"),
    ("a part of it", ""),
    ("Part of the ship's company went ashore.", ""),
    ("第一章说的是他的童年和后来的事情", ""),
    ("#notaheading", ""),
])  # fmt: skip
def test_headings(line, heading):
    assert heading_of(line) == heading


def test_words_are_found_by_their_stems_and_chinese_by_characters_and_pairs():
    texts = ["He was drinking rum.", "The ships sailed.", "他在船上喝酒。", "图书馆里很安静。", ""]
    ranked = Similar.of([stems(one) for one in texts], stems)
    assert [ranked.best(one, 1) for one in ("Who drinks?", "ship", "酒", "图书馆")] == [[0], [1], [2], [3]]
    assert ranked.scores("nothing like it").max() == 0 and not ranked.scores("?!").any()
    assert Similar([]).best("a", 3) == [] and Similar(["", "..."]).scores("a").tolist() == [0, 0]


def test_scores_are_those_of_the_formula():
    texts = ["a b b", "b c", "a"]
    rare = {word: np.log(1 + (3 - n + 0.5) / (n + 0.5)) for word, n in (("a", 2), ("b", 2))}
    norm = [1.5 * (0.25 + 0.75 * size / 2) for size in (3, 2, 1)]
    want = [
        rare["a"] / (1 + norm[0]) + 2 * rare["b"] / (2 + norm[0]),
        rare["b"] / (1 + norm[1]),
        rare["a"] / (1 + norm[2]),
    ]
    assert Similar(texts).scores("a b a") == pytest.approx(want, rel=1e-5)


def test_rankings_are_joined_by_rank():
    assert list(joined([[3, 1], [1, 2]])) == [1, 3, 2]
    assert joined([[7]]) == {7: 1 / 61} and joined([[], []]) == {}
