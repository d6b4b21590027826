"""What two sequences share: the longest common subsequence (its length and its places) and the longest common run.

Subsequences are found by rows of bits in whole numbers of Python, which hold a row of the table of differences (Hyyrö
2004, "Bit-parallel LCS-length computation revisited"): the table of two texts of 10,000 characters takes 12 MB.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np


def subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    >>> subsequence("abcd", "acbd")
    3
    """
    row = 0
    for row in _rows(one, other):  # noqa: B007  (the last one is the answer)
        pass
    return _shared(row, len(other)) if len(one) else 0


def places(one: Sequence[Hashable], other: Sequence[Hashable]) -> list[int]:
    """The places in `one` of a longest common subsequence with `other`, rising.

    Among several it is the one found from the end that takes equal items at once and else goes back in `one` first,
    which is the choice of ROUGE's implementations: summary scores depend on it.
    """
    rows = [(1 << len(other)) - 1, *_rows(one, other)]
    found, left, right = [], len(one), len(other)
    while left and right:
        if one[left - 1] == other[right - 1]:
            left, right = left - 1, right - 1
            found.append(left)
        elif _shared(rows[left], right) > _shared(rows[left - 1], right):
            right -= 1
        else:
            left -= 1
    return found[::-1]


def run(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest run of items that both have.

    >>> run("abcd", "xbcy")
    2
    """
    number: dict[Hashable, int] = {}
    first, second = (
        np.array([number.setdefault(x, len(number)) for x in side], dtype=np.int64) for side in (one, other)
    )
    lengths, longest = np.zeros(len(second) + 1, dtype=np.int64), 0
    for item in first:
        lengths[1:] = np.where(second == item, lengths[:-1] + 1, 0)
        longest = max(longest, int(lengths.max()))
    return longest


def _rows(one: Sequence[Hashable], other: Sequence[Hashable]) -> Iterator[int]:
    """After each item of `one`: bits of `other`, 0 where a longest common subsequence grows by one."""
    where: dict[Hashable, int] = {}
    for place, item in enumerate(other):
        where[item] = where.get(item, 0) | 1 << place
    full = (1 << len(other)) - 1
    row = full
    for item in one:
        match = row & where.get(item, 0)
        row = ((row + match) | (row - match)) & full
        yield row


def _shared(row: int, length: int) -> int:
    """Length of the longest common subsequence with the first `length` items of the other."""
    return length - (row & ((1 << length) - 1)).bit_count()
