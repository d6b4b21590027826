"""Augmentation is deterministic, marked, counted, and changes only what it says."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import WORDS
from handscroll.data.table.augment import NoText, augment, delete, replace, swap, translate
from handscroll.data.table.look import columns, copies_line, look, short
from handscroll.data.table.table import Table

TEXT = st.text("ab 我们,.\n", min_size=1, max_size=30)


def made(text, way, copies=1, seed=0):
    table = augment(Table.of([{"text": text, "label": 1}]), "text", way, copies, seed)
    return [record for record in table if record.values.get("augmented")]


@settings(deadline=None)
@given(text=TEXT, seed=st.integers(0, 5))
def test_words_are_swapped_or_left_out_and_nothing_else_changes(text, seed):
    for record in made(text, swap(0.2), seed=seed):
        new = record.values["text"]
        assert Counter(new) == Counter(text) and new != text
        assert "".join(WORDS.split(new)) == "".join(WORDS.split(text))
    for record in made(text, delete(0.2), seed=seed):
        assert not Counter(record.values["text"]) - Counter(text) and len(record.values["text"]) < len(text)
    assert [r.values for r in made(text, swap(), 3, seed)] == [r.values for r in made(text, swap(), 3, seed)]


def test_new_rows_are_marked_and_counted():
    table = Table.of([{"text": "one two three", "label": 1}, {"text": "one"}, {"text": None}])
    found = augment(table, "text", swap(), copies=2)
    new = [record for record in found if record.values.get("augmented")]
    assert all(one.values["augmented"] == {"by": "swap", "from": "rows, row 1"} for one in new)
    assert all(one.values["label"] == 1 for one in new)
    assert found.account.added[0].count == len(new) and "left" in found.account.notes[0]
    assert len(augment(found, "text", swap(), seed=9)) <= len(found) + 1  # new rows are not changed again


def test_a_model_fills_the_gaps():
    asked = []

    def fill(gaps):
        asked.extend(gaps)
        return ["X"] * len(gaps)

    (record,) = made("one two three", replace(fill, 0.4))
    assert record.values["text"].split().count("X") == 1 and len(asked) == 1
    before, behind = asked[0]
    assert f"{before}X{behind}" == record.values["text"]
    with pytest.raises(DataError, match="0 words for 1 gaps"):
        made("one two three", replace(lambda gaps: []))


def test_a_translation_there_and_back():
    (record,) = made("hello", translate(lambda texts: [text.upper() for text in texts]))
    assert record.values["text"] == "HELLO" and record.values["augmented"]["by"] == "translate"
    with pytest.raises(DataError, match="gave 0 texts for 1"):
        made("hello", translate(lambda texts: []))


def test_a_text_without_a_new_row_is_counted_by_its_reason():
    came = ["a new one", "no  news?", " ", NoText("too long"), NoText("too long")]
    table = Table.of([{"text": text} for text in ("an old one", "no news ?", "one", "two", "three")])
    found = augment(table, "text", translate(lambda texts: came), 2)
    assert [one.values["text"] for one in found if one.values.get("augmented")] == ["a new one"]
    assert found.account.added[0].count == 1
    assert found.account.notes == (
        "'translate' left 9 texts without a new row: 2 as they were, 2 blank, 4 too long, 1 as another copy",
    )


@pytest.mark.parametrize("way", [lambda: swap(0), lambda: delete(2)])
def test_shares_are_checked(way):
    with pytest.raises(ConfigError, match="share"):
        made("one two", way())
    with pytest.raises(ConfigError, match="copies"):
        made("one two", swap(), copies=0)


def test_a_look_shortens_visibly():
    table = Table.of([{"text": "x" * 5000 + "\n", "list": [1, 2]}, {"text": "y\n\x1b[1m", "list": None}, {"text": "y"}])
    shown = look(table, 2, 20)
    assert f"{'x' * 20}... (5,001 characters)" in shown and "y\\n\\u001b[1m" in shown
    assert shown.endswith("... and 1 more rows")
    assert short([1] * 100, 10) == "[1, 1, 1, ... (300 characters, 100 entries)"
    text, other = columns(table)
    assert (text.holds, text.different, text.longest, other.holds, other.empty) == ("text", 3, 5001, "list", 2)
    copies = Table.of([{"text": "a b c d"}, {"text": "A b c d"}])
    assert copies_line(copies, "text").startswith("by 'text': 1 exact copies, 0 near copies (from 0.8)\n  rows, row 2")
