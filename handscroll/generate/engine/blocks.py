"""Counts the blocks of the pool: which are free, how many jobs use the others, and which hold a known beginning.

A full block is named by the hash of everything up to its end, and several requests may read it. When the last of them
lets go of it, the block keeps its content until room is needed; the least recently used block goes first. This file
handles numbers only, no tensors.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence


class Blocks:
    """`count` blocks. `on_free(block)` is called when the content of one is given up."""

    def __init__(self, count: int, on_free: Callable[[int], None] = lambda block: None):
        self.count = count
        self._on_free = on_free
        self._free = list(range(count))[::-1]
        self._references = [0] * count
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # named, referred to by nobody; least recently used first

    @property
    def available(self) -> int:
        """How many blocks `take` can give."""
        return len(self._free) + len(self._unused)

    @property
    def kept(self) -> int:
        """Blocks that nobody refers to and whose content may serve again."""
        return len(self._unused)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int | None:
        """A block for one job alone, evicting the least recently used one if needed; None when all are in use."""
        if not self._free and self._unused:
            block, _ = self._unused.popitem(last=False)
            del self._named[self._names.pop(block)]
            self._give_up(block)
        if not self._free:
            return None
        block = self._free.pop()
        self._references[block] = 1
        return block

    def find(self, name: bytes) -> int | None:
        """The block of that name."""
        return self._named.get(name)

    def share(self, block: int) -> None:
        """Count one more user of a named block."""
        assert block in self._names, f"block {block} has no name, so its content may still change"
        self._unused.pop(block, None)
        self._references[block] += 1

    def name(self, block: int, name: bytes) -> None:
        """Give a full block its name, so that others find it; a name that is taken stays with its block."""
        if name not in self._named and block not in self._names:
            self._named[name], self._names[block] = block, name

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks in the order of their tokens; the last are evicted first, since they need the others."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is released more often than it was taken"
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._names:
                self._unused[block] = None
            else:
                self._give_up(block)

    def _give_up(self, block: int) -> None:
        self._free.append(block)
        self._on_free(block)


def beginning(owner: str, bucket: int, before: str) -> bytes:
    """The name before any token was read, for one owner, one length bucket and one saved reading."""
    whole = hashlib.sha256(b"handscroll blocks")
    for part in (owner, str(bucket), before):
        data = part.encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.digest()


def following(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block of `tokens` after the block named `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()
