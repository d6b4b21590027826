"""Places of needles: few, near the depths that were asked for, and cheap."""

import itertools

import pytest

from handscroll.evaluate.placing import MOST, places

GRIDS = {
    "15 x 15 at 4,096": ([round(4096 * (n + 1) / 15) for n in range(15)], [n / 14 for n in range(15)]),
    "8 x 8 at 8,192": ([1024 * (n + 1) for n in range(8)], [n / 7 for n in range(8)]),
    "doublings": ([256, 512, 1024], [0.0, 0.25, 0.5, 0.75, 1.0]),
    "one length": ([700], [0.1, 0.5, 0.9]),
    "at the end only": ([100, 200, 300, 400], [1.0]),
    "32 depths": ([1000, 2000], [n / 31 for n in range(32)]),
}


def found(name, sharing=1):
    lengths, depths = GRIDS[name]
    rooms = [length - 40 for length in lengths]
    return lengths, depths, rooms, places(lengths, rooms, depths, sharing)


@pytest.mark.parametrize("name", GRIDS)
def test_places_are_few_usable_and_nearest(name):
    lengths, depths, rooms, made = found(name)
    assert len(made.used) <= MOST + 1
    wanted = [[round(depth * room) for depth in depths] for room in rooms]
    assert list(made.of[-1]) == wanted[-1], "the longest length has its depths"
    for room, row, want in zip(rooms, made.of, wanted, strict=True):
        assert all(0 <= place <= room for place in row) and list(row) == sorted(row)
        for place, at in zip(row, want, strict=True):
            assert abs(place - at) <= min(abs(other - at) for other in row)
    reads = sum(max(made.lengths(place, lengths)) - place for place in made.used)
    assert reads + max(made.used) <= made.tokens + 1e-6, "no place is read farther than counted"


@pytest.mark.parametrize(("name", "sharing"), [("15 x 15 at 4,096", 1), ("8 x 8 at 8,192", 5)])
def test_large_grids_save_six_times_the_tokens(name, sharing):
    """Questions are counted, and of cells that fell together one; shifts are a third of the way to the next depth."""
    lengths, depths, rooms, made = found(name, sharing)
    different = sum(length * len(set(row)) for length, row in zip(lengths, made.of, strict=True))
    assert different / made.tokens >= 6
    shifts = [
        abs(place / room - depth) * (len(depths) - 1)
        for room, row in zip(rooms, made.of, strict=True)
        for place, depth in zip(row, depths, strict=True)
    ]
    assert sum(shifts) / len(shifts) <= 1 / 3 and max(shifts) <= 2.0


def test_small_grids_keep_their_depths():
    for name in ("one length", "doublings"):
        lengths, depths, rooms, made = found(name)
        shifts = [
            abs(place / room - depth)
            for room, row in zip(rooms, made.of, strict=True)
            for place, depth in zip(row, depths, strict=True)
        ]
        assert sum(shift > 0.01 for shift in shifts) <= (0 if len(lengths) == 1 else 2)


def test_the_same_grid_has_the_same_places():
    assert all(found(name)[3] == found(name)[3] for name in GRIDS)
    for one, other in itertools.pairwise(found("8 x 8 at 8,192", sharing)[3].tokens for sharing in (1, 4)):
        assert one > other, "what is shared by more samples costs each less"
