"""A mask that only tests compose: attention sinks, and the prefix of a prefix language model."""

from dataclasses import dataclass

from handscroll.nn.mask import Mask


@dataclass(frozen=True)
class First(Mask):
    """Every query sees the first `count` keys; combined with `|`."""

    count: int

    def sees(self, query, key):
        return (key[0] < self.count) & (query[0] == query[0])

    def within(self, query, key):
        return True if key.last < self.count else False if key.first >= self.count else self
