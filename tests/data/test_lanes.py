"""Lanes: every row continues the one before it in its lane, no token is lost, and a run resumes at any point."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from handscroll.base.errors import CheckpointError, ConfigError, DataError
from handscroll.data.batch import collate
from handscroll.data.lanes import Lanes
from handscroll.data.row import IGNORED
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Repeat
from handscroll.data.windows import CyclicWindows, SlidingWindows
from tests.naming import naming

SIZES = (23, 5, 8, 40, 16, 31, 9)


def source(*lengths):
    """Documents whose tokens are all different, so that a token tells where it came from."""
    ends = np.cumsum(lengths)
    return TokenSource([np.arange(end - size, end) for size, end in zip(lengths, ends, strict=True)])


def sliding(data, length, count):
    return Lanes(data, count, lambda part: Repeat(SlidingWindows(part, length)))


def cyclic(data, length, count, seam="split"):
    return Lanes(data, count, lambda part: CyclicWindows(part, length, 3, seam=seam, order="reading"))


def taken(stream, count):
    return [row for row, _ in itertools.islice(stream, count)]


def test_rows_of_a_lane_follow_each_other():
    data = source(*SIZES)
    rows = taken(sliding(data, 8, 3), 3 * 40)
    for lane in range(3):
        mine = rows[lane::3]
        documents = [document for document, _ in itertools.groupby(row.document for row in mine)]
        own = list(range(lane, len(SIZES), 3))
        assert documents == [own[n % len(own)] for n in range(len(documents))]
        for before, after in itertools.pairwise(mine):
            ended = before.start + 8 >= SIZES[before.document]
            assert after.start == (0 if ended else before.start + 8)
        for row in mine:
            size = min(8, SIZES[row.document] - row.start)
            assert row.tokens[:size].tolist() == data[row.document][row.start : row.start + size].tolist()


@pytest.mark.parametrize("make", [sliding, cyclic])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_token_is_a_target_once_in_each_round_of_its_lane(make, count):
    data = source(*SIZES)
    seen, rounds = Counter(), [sum(-(-size // 8) for size in SIZES[lane::count]) for lane in range(count)]
    rows = taken(make(data, 8, count), count * max(rounds))
    for lane in range(count):
        mine = rows[lane::count][: rounds[lane]]
        seen.update(int(token) for row in mine for token in row.targets if token != IGNORED)
    assert seen == Counter(int(token) for document in data for token in document[1:])


def test_rings_are_read_in_order_from_another_offset_each_epoch():
    rows = taken(cyclic(source(40, 30), 8, 2), 2 * 15)
    starts = [row.start for row in rows[::2]]
    assert all(b == (a + 8) % 40 for epoch in range(3) for a, b in itertools.pairwise(starts[5 * epoch :][:5]))
    assert len({starts[0], starts[5], starts[10]}) == 3
    assert all(row.document == 1 for row in rows[1::2])


def test_batches_continue_each_other_by_their_origins():
    rows = taken(sliding(source(64, 48), 16, 2), 8)
    first, second = collate(rows[:2]), collate(rows[2:4])
    assert first.origins.tolist() == [[0, 0], [1, 0]] and second.origins.tolist() == [[0, 16], [1, 16]]
    assert second.part(4, 9).origins is second.origins and second.rows(1, 2).origins.tolist() == [[1, 16]]
    assert collate(rows[6:8]).origins.tolist() == [[0, 48], [1, 0]], "the shorter document begins again"
    assert collate(taken(sliding(source(5, 16), 16, 2), 2)).origins.tolist() == [[0, 0], [1, 0]], "padded rows too"


@pytest.mark.parametrize("make", [sliding, cyclic])
def test_resume_continues_with_exactly_the_next_row(make):
    stream = make(source(*SIZES), 8, 3)
    whole = [(row, json.loads(json.dumps(state))) for row, state in itertools.islice(stream, 100)]
    for cut in (1, 2, 3, 7, 50, 90):
        rest = taken(stream.resume(whole[cut - 1][1]), 100 - cut)
        for (want, _), got in zip(whole[cut:], rest, strict=True):
            assert (want.document, want.start) == (got.document, got.start)
            assert want.tokens.tolist() == got.tokens.tolist() and want.targets.tolist() == got.targets.tolist()


def test_a_state_of_other_lanes_is_refused():
    data = source(*SIZES)
    state = next(iter(sliding(data, 8, 3)))[1]
    for other, words in (
        (sliding(data, 8, 2), naming("count", 3, 2)),
        (sliding(data, 4, 3), naming("length", 4)),
        (cyclic(data, 8, 3), "cyclic"),
        (sliding(source(*SIZES[:-1], 10), 8, 3), "source"),
    ):
        with pytest.raises(CheckpointError, match=words):
            other.resume(state)


def test_lanes_refuse_what_they_cannot_deal_out():
    with pytest.raises(DataError, match=naming("2 documents", "3 lanes", "2 rows")):
        sliding(source(20, 30), 8, 3)
    with pytest.raises(ConfigError, match="0 lanes"):
        sliding(source(20, 30), 8, 0)


def test_lanes_end_with_the_first_that_ends():
    rows = [row for row, _ in Lanes(source(16, 24, 8), 2, lambda part: SlidingWindows(part, 8))]
    assert [(row.document, row.start) for row in rows] == [(0, 0), (1, 0), (0, 8), (1, 8), (2, 0), (1, 16)]


def test_a_selection_of_documents_is_a_source_of_its_own():
    data = source(*SIZES)
    part = data.every(1, 3)
    assert part.names == ["document 1", "document 4"] and part.lengths.tolist() == [5, 16]
    assert part[1] is data[4] and part.fingerprint not in (data.fingerprint, data.every(2, 3).fingerprint)
