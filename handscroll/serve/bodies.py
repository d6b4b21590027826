"""How many bytes of bodies are held at once: those of all keys, and those of one key, which gets at most half of them.

Only what has arrived counts, so that whoever announces much and sends nothing takes nothing from the others.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner

FREE = 64 << 10  # bytes of each body that do not count: small requests are taken whatever others send
WAIT = 5  # seconds after which a client is told to send its body again


class Bodies:
    """Counts what open requests have sent. Lives on the event loop."""

    def __init__(self, most: int):
        self._most, self._held = most, Counter[str]()

    @contextmanager
    def arriving(self, owner: Owner, declared: int) -> Iterator[Callable[[int], None]]:
        """Room for one body until its request ends. The block tells what it gets how many bytes have come so far.

        Raises:
            ApiError: 429 with Retry-After, here or when it is told, if the bodies of others leave no room.
        """
        held = 0

        def came(size: int) -> None:
            nonlocal held
            more = max(0, size - FREE) - held
            self._check(owner, more, held)
            self._held[owner.number] += more
            held += more

        self._check(owner, max(0, declared - FREE), held)
        try:
            yield came
        finally:
            self._held[owner.number] -= held

    def _check(self, owner: Owner, more: int, own: int) -> None:
        """Refuse so many bytes more of a body that holds `own`; one that is alone is never refused."""
        mine, every = self._held[owner.number], self._held.total()
        for of, held, most in ((" of this key", mine, self._most // 2), ("", every, self._most)):
            if more > 0 and held > own and held + more > most:
                why = f"the open requests{of} have sent {held:,} bytes, and at most {most:,} are held: send it again in"
                headers = {"Retry-After": str(WAIT), "Connection": "close"}
                raise ApiError(429, f"{why} {WAIT} s", "too_many_requests", headers=headers)
