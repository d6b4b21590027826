"""How many bytes of bodies arrive at once: those of all keys, and those of one key, which gets at most its part.

What is declared counts from the beginning, so that a body that was let in is not refused on its way; whoever declares
much and sends nothing is given up by the deadline of bodies (`receiving.py`). A body counts until it has arrived: a
file stands on the disk then, and JSON counts until it is parsed.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner

FREE = 64 << 10  # bytes of each body that do not count: small requests are taken whatever others send
WAIT = 5  # seconds after which a client is told to send its body again


class Bodies:
    """Counts what arrives: at most so many bytes, and of one key its `part`. Lives on the event loop."""

    def __init__(self, most: int, part: int):
        self._most, self._part, self._held = most, part, Counter[str]()

    @contextmanager
    def arriving(self, owner: Owner, declared: int) -> Iterator["Room"]:
        """Room for one body, until it is released or the block ends.

        Raises:
            ApiError: 429 with Retry-After if the bodies of others leave none.
        """
        room = Room(self, owner)
        room.came(declared)
        try:
            yield room
        finally:
            room.release()

    def take(self, owner: Owner, more: int, own: int) -> None:
        """Count so many bytes more of a body that holds `own`; one that is alone is never refused.

        Raises:
            ApiError: as `arriving`.
        """
        mine, every = self._held[owner.number], self._held.total()
        for of, held, most in ((" of this key", mine, self._part), ("", every, self._most)):
            if more > 0 and held > own and held + more > most:
                why = f"the bodies{of} that arrive have {held:,} bytes beyond the first {FREE:,} of each"
                why += f", and at most {most:,} are taken at once"
                headers = {"Retry-After": str(WAIT), "Connection": "close"}
                raise ApiError(429, f"{why}: send it again in {WAIT} s", "too_many_requests", headers=headers)
        self._held[owner.number] += more


class Room:
    """What one body takes of all."""

    def __init__(self, bodies: Bodies, owner: Owner):
        self._bodies, self._owner, self._held = bodies, owner, 0

    def came(self, size: int) -> None:
        """Take what a body of so many bytes needs beyond what was declared.

        Raises:
            ApiError: 429 with Retry-After if the bodies of others leave no room.
        """
        more = max(0, size - FREE - self._held)
        self._bodies.take(self._owner, more, self._held)
        self._held += more

    def release(self) -> None:
        """Give it back: the body counts no more."""
        self._bodies.take(self._owner, -self._held, self._held)
        self._held = 0
