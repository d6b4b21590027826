"""Fields of a task meet the columns of a table: found, named, or refused with the columns that are there."""

import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.table.fields import Field, match
from handscroll.data.table.labels import label_counts
from handscroll.data.table.split import split
from handscroll.data.table.table import Table

TEXT = Field("text", also=("sentence", "review", "content", "title"))
LABEL = Field("label", also=("class", "stars"), holds="label")


def matched(*columns, fields=(TEXT, LABEL), given=None):
    return match(Table.of([dict.fromkeys(columns, "x")]), fields, given)


def test_columns_are_found_by_their_usual_names():
    assert str(matched("review", "stars")) == "text <- review, label <- stars"
    assert str(matched("TEXT", "Label ")) == "text <- TEXT, label <- Label "
    assert str(matched("text", "review", "label")) == "text <- text, label <- label"
    assert str(matched("body", "stars", given={"text": "body"})) == "text <- body, label <- stars"
    optional = Field("pair", required=False)
    assert str(matched("text", "label", fields=(TEXT, LABEL, optional))) == (
        "text <- text, label <- label (not there: pair)"
    )


def test_a_column_with_the_name_of_a_field_is_that_fields():
    pair = (Field("question", also=("text",)), Field("text", also=("context",)))
    assert str(matched("text", "question", fields=pair)) == "question <- question, text <- text"
    with pytest.raises(DataError, match="no column for 'question'"):
        matched("text", fields=pair)


def test_what_is_missing_or_ambiguous_is_refused_with_the_columns():
    with pytest.raises(DataError, match="The columns are body, stars"):
        matched("body", "stars")
    with pytest.raises(DataError, match="several columns may be the 'text': title, content"):
        matched("title", "content", "label")
    with pytest.raises(DataError, match="did you mean 'review'"):
        matched("review", "label", given={"text": "reviews"})
    with pytest.raises(ConfigError, match="no field 'txt': did you mean 'text'"):
        matched("review", "label", given={"txt": "review"})


def test_values_get_the_names_of_the_fields_and_are_checked():
    rows = [{"meta": {"title": "a"}, "stars": 1.0, "id": 7}, {"meta": {"title": "b"}, "stars": True, "id": 8}]
    table = Table.of(rows)
    fitted = match(table, (TEXT, LABEL), {"text": "meta.title"}).fit(table)
    assert [dict(record.values) for record in fitted] == [
        {"text": "a", "label": "1", "meta": {"title": "a"}, "id": 7},
        {"text": "b", "label": "true", "meta": {"title": "b"}, "id": 8},
    ]
    bad = Table.of([{"text": "a", "label": "1"}, {"text": " ", "label": "1"}, {"text": "b", "label": None}])
    found = match(bad, (TEXT, LABEL))
    with pytest.raises(DataError, match=r"rows, row 2: no text \(it is blank\)"):
        found.fit(bad)
    left = found.fit(bad, skip_unfit=True).account.left_out
    assert [one.count for one in left] == [1, 1] and left[0].places == ("rows, row 2",)
    clash = Table.of([{"text": 1, "review": "a", "label": "1"}])
    with pytest.raises(DataError, match="would be lost"):
        match(clash, (TEXT, LABEL), {"text": "review"}).fit(clash)


@pytest.mark.parametrize(
    ("holds", "value", "fitted"),
    [
        ("number", "3.5", 3.5),
        ("labels", "a; b,c", ["a", "b", "c"]),
        ("labels", "a, b, ", ["a", "b"]),
        ("labels", [1, "x"], ["1", "x"]),
        ("any", 0, 0),
    ]
    + [
        ("answers", given, [{"text": "a", "answer_start": start}])
        for given, start in (
            ("a", None),
            (["a"], None),
            ([{"text": "a", "answer_start": 3, "id": 1}], 3),
            ({"text": ["a"], "answer_start": [3]}, 3),
            ({"text": ["a"]}, None),
            ({"text": "a", "answer_start": 3}, 3),
        )
    ]
    + [("answers", given, [{"text": "1066", "answer_start": None}]) for given in (1066, [1066])],
)
def test_kinds_of_values(holds, value, fitted):
    table = Table.of([{"it": value}])
    assert match(table, (Field("it", holds=holds),)).fit(table).records[0].values["it"] == fitted


@pytest.mark.parametrize(
    ("holds", "value"),
    [("number", "much"), ("number", "nan"), ("label", 1.5), ("text", 3)]
    + [("answers", wrong) for wrong in ([["a"]], True, {"text": ["a", "b"], "answer_start": [3]})],
)
def test_other_values_are_refused(holds, value):
    table = Table.of([{"it": value}])
    with pytest.raises(DataError, match=r"it (is|are)"):
        match(table, (Field("it", holds=holds),)).fit(table)


def test_one_label_has_one_text_and_those_that_look_alike_are_noted():
    labels = ["1", "1.0", 1, 1.0, " 1", "0", "0.0", "\uff11", "caf\u00e9", "cafe\u0301", "Yes", "yes"]
    table = Table.of([{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    fitted = match(table, (TEXT, LABEL)).fit(table)
    found = [record.values["label"] for record in fitted]
    assert found == ["1"] * 5 + ["0"] * 2 + ["\uff11", "caf\u00e9", "cafe\u0301", "Yes", "yes"]
    assert [one.count for one in fitted.account.repaired] == [2]
    [note] = fitted.account.notes
    assert (
        all(f"{one!r}" in note for one in ("1", "\uff11", "caf\u00e9", "cafe\u0301", "Yes", "yes"))
        and "'0'" not in note
    )
    assert label_counts(table)["1"] == 5
    parts = split(Table.of([{"text": f"w{n}", "label": ["1", "1.0"][n % 2]} for n in range(20)]), by="label", near=None)
    assert set(parts.labels["train"]) == {"1"}
