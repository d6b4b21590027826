"""Distractors: as many as were asked for, whole, and the text between them complete."""

import itertools

import pytest

from handscroll.base.errors import ConfigError
from handscroll.evaluate.distractors import spread
from tests.naming import naming

SIZE = 11
TEXT = list(range(1000))


def sentences():
    """Sentences of negative numbers; each has its own."""
    numbers = itertools.count(1)
    return lambda: [-next(numbers)] * SIZE


def whole(made, first, last):
    """The sentences that stand whole in made[first:last]."""
    part = made[first:last]
    return [one for one in {token for token in part if token < 0} if part.count(one) == SIZE]


@pytest.mark.parametrize("places", [[], [0, 57, 115, 172, 230], [115, 120, 125, 130], list(range(0, 230, 23))])
@pytest.mark.parametrize("wanted", [1, 4, 9])
def test_as_many_as_were_asked_for(places, wanted):
    made = spread(TEXT, 230, wanted, places, sentences())
    assert len(made) == len(TEXT) and len(whole(made, 0, 230)) == wanted
    for place in places:
        assert len(whole(made, 0, place)) + len(whole(made, place, 230)) == wanted, "no needle cuts a sentence"
    kept = [token for token in made if token >= 0]
    assert kept == TEXT[: len(kept)], "no token of the text is lost between them"
    assert len(whole(made, 0, 1000)) == pytest.approx(wanted * 1000 / 230, abs=2)


def test_sentences_move_together_where_needles_leave_little_room():
    places = list(range(0, 230, 15))  # one sentence stands between each two, with four tokens of text
    assert len(whole(spread(TEXT, 230, 15, places, sentences()), 0, 230)) == 15


@pytest.mark.parametrize(("wanted", "places"), [(100_000, []), (21, []), (12, list(range(0, 230, 21)))])
def test_what_does_not_fit_is_refused(wanted, places):
    with pytest.raises(ConfigError, match=naming(f"{wanted:,}", 230)):
        spread(TEXT, 230, wanted, places, sentences())
