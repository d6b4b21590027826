"""Streams: every item comes once, and a run continues on the exact next item from a state that went through JSON."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from handscroll.base.errors import CheckpointError, ConfigError, DataError
from handscroll.data.blanks import Blanks
from handscroll.data.pack import Packed
from handscroll.data.pairs import Pairs
from handscroll.data.recall import Copies, Facts
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Chain, Mixture, Repeat, Take
from handscroll.data.windows import CyclicWindows, SlidingWindows
from tests.naming import naming


def source(*lengths, first=0):
    ends = np.cumsum(lengths) + first
    return TokenSource([np.arange(end - size, end) for size, end in zip(lengths, ends, strict=True)])


A, B = source(23, 5, 8, 40), source(17, 64, first=1000)
STREAMS = {
    "sliding": SlidingWindows(A, 8),
    "sliding overlap": SlidingWindows(A, 8, stride=3, tails="drop"),
    "cyclic": CyclicWindows(A, 8, seed=3, epochs=3),
    "cyclic reading": CyclicWindows(A, 8, seed=3, epochs=2, short="drop", seam="join", order="reading"),
    "packed": Packed(A, 16),
    "packed drop": Packed(A, 16, tails="drop", seed=5, epochs=3),
    "take": Take(CyclicWindows(A, 8, seed=1), 30),
    "repeat": Repeat(SlidingWindows(A, 8), times=3),
    "chain": Chain([SlidingWindows(A, 8), Packed(B, 16), SlidingWindows(B, 4)]),
    "mixture": Take(Mixture([CyclicWindows(A, 8, seed=1), CyclicWindows(B, 8, seed=2)], [1, 2.5], seed=9), 40),
    "nested": Repeat(Take(Mixture([Repeat(SlidingWindows(A, 8)), CyclicWindows(B, 8, seed=2)], [1, 2], seed=9), 7), 3),
}


def seen(item):
    fields = ("tokens", "targets", "segment", "positions")
    return [None if getattr(item, name) is None else np.asarray(getattr(item, name)).tolist() for name in fields]


@pytest.mark.parametrize("name", STREAMS)
def test_resume_continues_with_exactly_the_next_item(name):
    stream = STREAMS[name]
    whole = [(seen(item), json.loads(json.dumps(state))) for item, state in stream]
    assert len(whole) > 1
    for cut, (_, state) in enumerate(whole, start=1):
        rest = [seen(item) for item, _ in stream.resume(state)]
        assert rest == [item for item, _ in whole[cut:]], cut
    assert [seen(item) for item, _ in stream.resume(None)] == [item for item, _ in whole]


def test_states_of_older_runs_are_read():
    """What the number of the next row is called in states that lie on disks."""
    assert (SlidingWindows.key, Pairs.key, Blanks.key, Copies.key, Facts.key) == ("row", "row", "next", "next", "next")
    rows, copies = SlidingWindows(A, 8), Copies(A, vocab=64, length=16, seed=0)
    item, state = next(rows.resume({"of": rows.identity(), "at": {"row": 3}}))
    assert seen(item) == seen(rows.row(3)) and state["at"] == {"row": 4}
    item, state = next(copies.resume({"of": copies.identity(), "at": {"next": 5}}))
    assert seen(item) == seen(copies.row(5)) and state["at"] == {"next": 6}
    assert rows.at_most(100) == len(rows) < 100 and copies.at_most(100) == 100


@pytest.mark.parametrize("name", STREAMS)
def test_streams_touch_no_global_random_state_and_do_not_change(name):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [seen(item) for item, _ in STREAMS[name]]
    assert torch.equal(before, torch.get_rng_state()) and (legacy == np.random.get_state()[1]).all()
    torch.manual_seed(int(torch.initial_seed()) % 1000 + 1)
    assert [seen(item) for item, _ in STREAMS[name]] == first
    torch.set_rng_state(before)


def test_interleaved_iterators_are_independent():
    stream = STREAMS["nested"]
    together = [(seen(a), seen(b)) for (a, _), (b, _) in zip(stream, stream, strict=True)]
    assert all(a == b for a, b in together)


def test_a_state_of_other_data_or_settings_is_refused():
    state = next(iter(SlidingWindows(A, 8)))[1]
    with pytest.raises(CheckpointError, match=naming("length", "8", "4")):
        SlidingWindows(A, 4).resume(state)
    with pytest.raises(CheckpointError, match="source"):
        SlidingWindows(B, 8).resume(state)
    with pytest.raises(CheckpointError, match="packed"):
        Packed(A, 8).resume({})
    inner = next(iter(Take(SlidingWindows(A, 8), 3)))[1]
    with pytest.raises(CheckpointError, match="inner"):
        Take(SlidingWindows(A, 4), 3).resume(inner)


def test_mixture_keeps_its_proportions_and_its_seed():
    def draws(seed, count=4000):
        mixed = Mixture([CyclicWindows(A, 8, seed=1), CyclicWindows(B, 8, seed=1)], [1, 3], seed=seed)
        return ["AB"[int(row.tokens[0] >= 1000)] for row, _ in itertools.islice(mixed, count)]

    counts = Counter(draws(0))
    assert abs(counts["B"] / 4000 - 0.75) < 0.03  # four standard deviations
    assert draws(0, 200) == draws(0, 200) != draws(1, 200)


def test_mixture_ends_with_the_drawn_stream():
    mixed = Mixture([SlidingWindows(A, 8), CyclicWindows(B, 8, seed=1)], [1, 1], seed=2)
    rows = [row for row, _ in mixed]
    assert sum(row.tokens[0] < 1000 for row in rows) == len(SlidingWindows(A, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mixture([], [], 0),
        lambda: Mixture([STREAMS["packed"]], [1, 2], 0),
        lambda: Mixture([STREAMS["packed"]], [0], 0),
        lambda: Mixture([STREAMS["packed"]], [float("nan")], 0),
        lambda: Take(STREAMS["packed"], 0),
        lambda: Repeat(STREAMS["packed"], 0),
        lambda: Chain([]),
        lambda: SlidingWindows(A, 8, stride=9),
        lambda: SlidingWindows(A, 8, tails="keep"),
        lambda: CyclicWindows(A, 0, seed=1),
        lambda: CyclicWindows(A, 8, seed=1, short="keep"),
        lambda: Packed(A, 8, tails="pad"),
        lambda: Packed(A, 8, seed=-1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_repeat_take_and_chain_yield_what_they_say():
    once = [seen(row) for row, _ in SlidingWindows(A, 8)]
    assert [seen(row) for row, _ in Repeat(SlidingWindows(A, 8), times=3)] == once * 3
    endless = itertools.islice(Repeat(SlidingWindows(A, 8)), 50)
    assert [seen(row) for row, _ in endless] == list(itertools.islice(itertools.cycle(once), 50))
    assert [seen(row) for row, _ in Take(SlidingWindows(A, 8), 3)] == once[:3]
    both = [seen(row) for row, _ in Chain([Packed(B, 16), SlidingWindows(A, 8)])]
    assert both == [seen(row) for row, _ in Packed(B, 16)] + once


@pytest.mark.parametrize("done", [0, 3])
def test_too_few_items_to_take_are_an_error_and_not_the_end(done):
    """The next stage of a chain would begin early, with the settings of this one."""
    taken = Chain([Take(SlidingWindows(A, 8), 1000), SlidingWindows(B, 4)])
    state = None if not done else [state for _, state in itertools.islice(taken, done)][-1]
    with pytest.raises(DataError, match=f"ended after {len(SlidingWindows(A, 8))} of 1,000 items"):
        list(taken.resume(state))


def test_how_many_items_there_are_is_known_before_they_are_made():
    mixed = Mixture([SlidingWindows(A, 8), CyclicWindows(B, 8, seed=1)], [1, 2], seed=2)
    assert mixed.at_most(10**9) == len(list(mixed)) and mixed.at_most(3) == 3
    assert SlidingWindows(A, 8).at_most(10**9) == len(SlidingWindows(A, 8))
    assert CyclicWindows(A, 8, seed=1).at_most(10**9) == 10**9
