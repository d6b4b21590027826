import re

import pytest

from handscroll.base.errors import DataError
from handscroll.report.page import Code, Facts, Figure, Marked, Page, Section, Table, Text, render, write
from handscroll.report.plots import Series, heat_map, loss_by_position
from tests.naming import naming
from tests.report.trees import HOSTILE, Tree


def svg(name: str = "a") -> str:
    return loss_by_position([Series(name, [1, 2, 3], [3.0, 2.0, 1.0])], 2, 4, name)


def full(word: str) -> Page:
    plot = svg(word)
    items = [
        Facts([(word, word)]),
        Table([word, "n"], [[word, 1], [None, 2]], word, highlight_row=1),
        Table([word], [[word]], word, folded=True),
        Figure(plot, word, word, narrow=plot),
        Figure(heat_map([1], [0], [[0.5]], word), word, word),
        Text([word]),
        Code(word, word),
        Marked([(word, 0.5, True), (word, 0.0, False)]),
    ]
    return Page(word, word, [Section(word, word, items)] * 3, {word: word})


@pytest.mark.parametrize("word", ["plain", HOSTILE, "长卷 \x00\ud800 ]]> <!-- </style>"])
def test_a_page_is_balanced_static_and_offline(word):
    html = render(full(word))
    tree = Tree(html)
    tags = [tag for tag, _ in tree.attributes]
    assert not {"script", "img", "iframe", "link", "object", "embed"} & set(tags)
    assert len(tree.ids) == len(set(tree.ids))
    for tag, attributes in tree.attributes:
        assert not any(name.startswith("on") for name in attributes), tag
        assert (attributes.get("href") or "#").startswith("#") and "src" not in attributes
    outside = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http:" not in outside and "https:" not in outside
    assert "url(http" not in html and "@import" not in html
    html.encode("utf-8")


@pytest.mark.promise("R32")
def test_hostile_words_arrive_as_text_in_every_place():
    html = render(full(HOSTILE))
    words = Tree(html).words
    assert sum(HOSTILE in word for word in words) >= 15
    labels = [attributes["aria-label"] for tag, attributes in Tree(html).attributes if tag == "svg"]
    assert labels == [HOSTILE] * 9


def test_references_inside_a_figure_lead_to_that_figure():
    html = render(Page("t", "", [Section("s", "", [Figure(svg(), "", "d"), Figure(svg(), "", "d")])]))
    ids = set(Tree(html).ids)
    links = re.findall(r'(?:url\(#|(?:xlink:)?href="#)([\w-]+)', html)
    assert links and set(links) <= ids


def test_a_page_has_landmarks_scopes_and_a_policy():
    html = render(full("plain"))
    tree = Tree(html)
    tags = [tag for tag, _ in tree.attributes]
    assert {"header", "main", "nav", "footer", "h1", "caption"} <= set(tags) and tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in tree.attributes
    assert {attributes.get("scope") for tag, attributes in tree.attributes if tag == "th"} == {"row", "col"}
    policy = next(a["content"] for t, a in tree.attributes if t == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_rendering_twice_gives_the_same_bytes():
    assert render(full("plain")) == render(full("plain"))


def test_a_table_aligns_numbers_and_marks_the_chosen_row():
    table = Table(["name", "a", "b"], [["x", "1.5", "y"], ["z", "–", "2"]], highlight_row=1)
    assert table.alignment == ["left", "right", "left"]
    html = render(Page("t", "", [Section("s", "", [table])]))
    assert html.count('<tr class="chosen">') == 1 and html.count('class="badge">chosen<') == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": [[1, 2]]}, naming("row 0", "2 cells", 1)),
        ({"rows": [[1]], "highlight_row": 1}, "row 1"),
        ({"rows": [[1]], "highlight_row": -1}, "row -1"),
        ({"rows": [[1]], "align": ["left", "left"]}, "2 alignments"),
        ({"rows": [[1]], "align": ["middle"]}, "'middle'"),
    ],
)
def test_a_broken_table_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Table(["a"], **arguments)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<script>1</script>", "<script>"),
        ("<style>*{}</style>", "<style>"),
        ("<image href='data:x'/>", "<image>"),
        ("<foreignObject/>", "foreignObject"),
        ("<g onload='x'/>", "loads"),
        ("<use href='https://example.org/#a'/>", "loads"),
        ("<use xmlns:x='http://www.w3.org/1999/xlink' x:href='//e.org'/>", "loads"),
        ("<g style='fill: url(\"http://e.org\")'/>", "loads"),
        ("<g fill='URL( //e.org )'/>", "loads"),
        ("<g>", "well-formed"),
        ("<!-- x -->", "comment"),
    ],
)
def test_an_svg_that_could_run_or_load_is_refused(inside, message):
    page = Page("t", "", [Section("s", "", [Figure(f"<svg>{inside}</svg>", "", "d")])])
    with pytest.raises(DataError, match=message):
        render(page)


def test_writing_is_whole_or_nothing(tmp_path):
    path = tmp_path / "deep" / "report.html"
    page = full("plain")
    assert write(page, path) == path
    assert path.read_text(encoding="utf-8") == render(page)
    broken = Page("t", "", [Section("s", "", [Figure("<p/>", "", "d")])])
    with pytest.raises(DataError, match="<svg>"):
        write(broken, path)
    assert path.read_text(encoding="utf-8") == render(page) and list(path.parent.iterdir()) == [path]
