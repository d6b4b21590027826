"""Splits keep copies, groups and labels as they say; leakage, labels and balance are counted right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import Signature
from handscroll.data.table.augment import augment, swap
from handscroll.data.table.duplicates import alike, groups, leakage, text_column
from handscroll.data.table.labels import (
    balance,
    class_weights,
    classes,
    conflicts,
    known,
    label_counts,
    without_conflicts,
)
from handscroll.data.table.split import split
from handscroll.data.table.table import Table

LONG = "the quick brown fox jumps over the lazy dog and runs into the deep dark wood where nobody has ever been before"


def of(*rows, names=("text", "label")):
    return Table.of([dict(zip(names, row, strict=True)) for row in rows])


def texts(table):
    return [record.values["text"] for record in table]


ROW = st.tuples(st.sampled_from([f"text {n}" for n in range(30)]), st.sampled_from("abc"), st.integers(0, 12))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, min_size=12, max_size=60), seed=st.integers(0, 3))
def test_a_split_is_a_partition_that_keeps_together_what_belongs_together(rows, seed):
    table = of(*rows, names=("text", "label", "who"))
    try:
        parts = split(table, {"test": 0.3}, seed, by="label", group="who", near=None)
    except DataError as error:  # everything hangs together
        assert "stays empty" in str(error)
        return
    train, test = parts["train"], parts["test"]
    assert sorted(one.number for one in (*train, *test)) == list(range(1, len(rows) + 1))
    for column in ("text", "who"):
        assert not {one.values[column] for one in train} & {one.values[column] for one in test}
    again = split(table, {"test": 0.3}, seed, by="label", group="who", near=None)
    assert texts(again["test"]) == texts(test)
    assert not leakage(train, test, "text", None).pairs


def test_labels_keep_their_shares_and_rare_ones_are_in_both():
    rows = [(f"row {number} {number * 7}", "common") for number in range(180)]
    rows += [(f"rare {number} {number * 5}", "rare") for number in range(20)] + [("x y", "tiny"), ("y x", "tiny")]
    parts = split(of(*rows), {"valid": 0.1, "test": 0.2}, seed=3, by="label")
    assert parts.labels["test"] == {"common": 36, "rare": 4, "tiny": 1}
    assert parts.labels["valid"] == {"common": 18, "rare": 2, "tiny": 0}
    assert "valid has no row of the label tiny" in str(parts)
    assert texts(split(of(*rows), {"test": 0.2}, seed=4, by="label")["test"]) != texts(parts["test"])
    assert sum(len(table) for table in parts.tables.values()) == len(rows)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_have_copies_are_in_every_part_by_their_share(seed):
    """Or a test would be of copies, and the training without any."""
    twice = [(f"twice {number}", "ab"[number % 2]) for number in range(100)]
    rows = [*twice, *twice, *((f"once {number}", "ab"[number % 2]) for number in range(800))]
    parts = split(of(*rows), {"valid": 0.1, "test": 0.2}, seed, by="label")
    copies = {name: sum(text.startswith("twice") for text in texts(table)) for name, table in parts.tables.items()}
    assert 6 <= copies["valid"] <= 36 and 20 <= copies["test"] <= 60 and sum(copies.values()) == 200
    assert len(parts["valid"]) == 100 and len(parts["test"]) == 200


def test_near_copies_stay_together_and_are_reported():
    rows = [(f"{LONG} number {number}", "a") for number in range(5)] + [(f"something else {n}", "a") for n in range(45)]
    parts = split(of(*rows), seed=1)
    inside = {one.startswith("the quick") for one in texts(parts["test"])}
    assert len(inside) == 1 and "4 near copies" in str(parts)


def test_rows_made_by_augmentation_never_enter_a_test():
    table = augment(of(*((f"some words of row {number}", "a") for number in range(40))), "text", swap(), copies=2)
    parts = split(table, {"test": 0.25}, by="label")
    assert not any(record.values.get("augmented") for record in parts["test"])
    tested = {record.place for record in parts["test"]}
    made = [record.values["augmented"]["from"] for record in parts["train"] if record.values.get("augmented")]
    assert made and not tested & set(made)
    behind = [one for one in table if one.values.get("augmented", {}).get("from") in tested]
    reasons = {one.reason: one.count for one in parts["test"].account.left_out}
    assert reasons["rows made by augmentation, which are never tested on"] == len(behind)


def test_a_column_of_ones_own_is_no_mark_of_augmentation():
    table = Table.of([{"text": f"words {n} of row {n * n}", "augmented": "no"} for n in range(20)])
    parts = split(table, {"test": 0.25}, near=None)
    assert len(parts["train"]) + len(parts["test"]) == 20
    with pytest.raises(DataError, match="own column 'augmented'"):
        augment(table, "text", swap())


def test_leakage_is_found_said_and_purged():
    train, test = (
        of(("A  b c", "x"), ("new", "x"), (LONG, "x"), ("more", "y")),
        of(("a b c", "x"), (LONG + " yes", "x"), ("q", "x")),
    )
    found = leakage(train, test, "text")
    assert [(one, other) for one, other, _ in found.pairs] == [(0, 0), (2, 1)]
    assert "2 of 3 test rows (66.7%) are in the training rows too: 1 exact, 1 near" in str(found)
    assert texts(found.purged()) == ["new", "more"] and found.purged().account.left_out[0].count == 2
    twice = leakage(of(("a b c", "x"), ("a  b c", "x")), of(("A b c", "x"), ("a b C", "x"), ("d", "x")), "text")
    assert {one for one, _, _ in twice.pairs} == {other for _, other, _ in twice.pairs} == {0, 1}
    assert "2 of 3 test rows" in str(twice) and "2 exact" in str(twice)
    assert str(leakage(of(("x", "y")), test, "text")) == "no test row is in the training rows"


def test_shares_and_columns_are_checked():
    table = of(("a", "x"), ("b", "x"))
    for shares in ({"train": 0.5}, {"test": 1.0}, {"test": 0.6, "valid": 0.4}):
        with pytest.raises(ConfigError, match="shares"):
            split(table, shares)
    with pytest.raises(DataError, match="no column 'lable': did you mean 'label'"):
        split(table, by="lable")
    with pytest.raises(DataError, match="stays empty"):
        split(of(("a", "x"), ("A", "x")))
    with pytest.raises(ConfigError, match="near"):
        split(table, near=0.1)
    assert text_column(of(("a", "b long"), names=("x", "y"))) == "y"


def test_a_signature_is_the_same_in_blocks():
    import numpy as np

    found = np.arange(5000, dtype=np.uint64) * np.uint64(2654435761)
    whole, parted = Signature(), Signature()
    whole.add(found)
    for start in range(0, 5000, 700):
        parted.add(found[start : start + 700])
    assert (whole.least == parted.least).all() and whole.count == parted.count


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_groups_are_what_pairs_join(pairs):
    made = groups(10, pairs)
    assert sorted(at for group in made for at in group) == list(range(10))
    where = {at: number for number, group in enumerate(made) for at in group}
    assert all(where[one] == where[other] for one, other in pairs)
    assert len(made) >= 10 - len(pairs)


def test_short_texts_are_near_only_when_equal():
    assert alike(["good", "good film", "good", ""]) == [(2, 0, 1.0)]


def test_labels_are_counted_weighed_and_balanced():
    table = of(*[("a", 10)] * 3, *[("b", 2)] * 1, names=("text", "label"))
    assert label_counts(table) == {"2": 1, "10": 3} and classes(table) == ("2", "10")
    assert class_weights(table) == {"2": 2.0, "10": 4 / 6}
    over, under = balance(table, how="over"), balance(table, how="under", seed=1)
    assert label_counts(over) == {"2": 3, "10": 3} and over.account.added[0].count == 2
    assert label_counts(under) == {"2": 1, "10": 1} and under.account.left_out[0].count == 2
    assert texts(balance(table, how="under", seed=1)) == texts(under)
    with pytest.raises(DataError, match="all 1 rows have the label 'x'"):
        classes(of(("a", "x")))
    with pytest.raises(DataError, match="2 labels"):
        balance(of(("a", ["x", "y"]), ("a", "x")))
    with pytest.raises(DataError, match="row 1: 'label' is a NoneType"):
        label_counts(of(("a", None), ("b", "x")))


def test_unseen_labels_and_noise_are_said():
    table = of(("A a", "x"), ("a a", "y"), ("b", "x"))
    with pytest.raises(DataError, match="row 2 has the label 'y', which training did not see"):
        known(table, ["x"])
    assert len(known(table, ["x"], skip=True)) == 2
    noise = conflicts(table)
    assert len(noise) == 1 and str(noise[0]) == '"A a" is x and y (rows, row 1; rows, row 2)'
    assert texts(without_conflicts(table)) == ["b"]
