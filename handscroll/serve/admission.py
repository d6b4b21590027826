"""Lets requests in: so many answers at once, of all and of each key, and each key's quota; the others get 429.

Requests that count tokens or begin a reading, and readings that are followed, have places of their own, so that they
take none from the answers.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner
from handscroll.serve.settings import Limits

Beside = Literal["count", "watch"]
MINUTE, DAY = 60.0, 86_400.0
LONGEST = 60  # seconds that a client is told to wait at most for a place
CROWD = 10  # clients who were told to wait count up to so many times the places: some never come back


class Admission:
    """Counts what is open and used. Lives on the event loop; `now` is the clock."""

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic):
        self._limits, self._now = limits, now
        self._open: Counter[str] = Counter()
        self._beside: Counter[tuple[Beside, str]] = Counter()
        self._asked: dict[str, deque[float]] = {}
        self._used: dict[str, deque[tuple[float, int]]] = {}
        self._told: dict[str, deque[float]] = {}  # when those who were told to wait come back, by what was full
        self._took = 1.0  # seconds of an answer, a running mean
        self.closing = False

    @property
    def open(self) -> int:
        """Answers that are being given or wait for it."""
        return self._open.total()

    @contextmanager
    def answering(self, owner: Owner, count: int = 1) -> Iterator[None]:
        """A place for `count` answers.

        Raises:
            ApiError: 429 with Retry-After if there is none or the quota is used up, 503 while the server stops.
        """
        self.check(owner, count)
        if owner.quota is not None and owner.quota.requests_per_minute:
            self._asked.setdefault(owner.number, deque()).append(self._now())
        self._open[owner.number] += count
        begun = self._now()
        try:
            yield
        finally:
            self._open[owner.number] -= count
            self._took += 0.1 * (self._now() - begun - self._took)

    @contextmanager
    def beside(self, owner: Owner, kind: Beside) -> Iterator[None]:
        """A place for what is no answer.

        Raises:
            ApiError: 429 with Retry-After if this key has none left, 503 while the server stops.
        """
        self.check_beside(owner, kind)
        self._beside[kind, owner.number] += 1
        try:
            yield
        finally:
            self._beside[kind, owner.number] -= 1

    def check_beside(self, owner: Owner, kind: Beside) -> None:
        """Refuse who would get no such place now; the errors are those of `beside`."""
        self._check_closing()
        what, most = {
            "count": ("requests that count tokens or begin a reading", self._limits.counting),
            "watch": ("followed readings", self._limits.watching),
        }[kind]
        if (mine := self._beside[kind, owner.number]) >= most:
            why = f"{mine} {what} are open for this key, and at most {most} may be: ask again in 1 s"
            raise ApiError(429, why, "too_many_requests", headers={"Retry-After": "1"})

    def check(self, owner: Owner, count: int = 1) -> None:
        """Refuse who would get no place now. It is asked before a body is read: a refusal must cost next to nothing.

        Raises:
            ApiError: as in `answering`.
        """
        self._check_closing()
        self.check_quota(owner)
        limits, mine = self._limits, self._open[owner.number]
        if self.open + count > limits.waiting:
            raise self._full(f"{self.open} answers are open, and at most {limits.waiting} may be", limits.waiting)
        if mine + count > limits.each:
            why = f"{mine} answers of this key are open, and at most {limits.each} may be"
            raise self._full(why, limits.each, owner.number)

    def use(self, owner: Owner, tokens: int) -> None:
        """Count tokens that were read or written for somebody."""
        if owner.quota is not None and owner.quota.tokens_per_day:
            self._used.setdefault(owner.number, deque()).append((self._now(), tokens))

    def _check_closing(self) -> None:
        if self.closing:
            raise ApiError(503, "the server is stopping; ask again soon", "stopping", headers={"Retry-After": "5"})

    def _full(self, why: str, places: int, whose: str = "") -> ApiError:
        """Tell a client to wait until a place is free for it: those who were told before come first.

        If all came back after a second, a crowd would cost more refusals than answers.
        """
        now, told = self._now(), self._told.setdefault(whose, deque(maxlen=CROWD * places))
        before = sum(end > now for end in told)
        wait = min(LONGEST, max(1, math.ceil(self._took * (before + 1) / places)))
        told.append(now + wait)
        return ApiError(429, f"{why}: ask again in {wait} s", "too_many_requests", headers={"Retry-After": str(wait)})

    def check_quota(self, owner: Owner) -> None:
        """Refuse whose quota is used up.

        Raises:
            ApiError: 429 with Retry-After.
        """
        quota, now = owner.quota, self._now()
        if quota is None:
            return
        asked = self._asked.setdefault(owner.number, deque())
        while asked and asked[0] <= now - MINUTE:
            asked.popleft()
        if quota.requests_per_minute and len(asked) >= quota.requests_per_minute:
            raise _used_up(f"{quota.requests_per_minute} requests a minute", asked[0] + MINUTE - now)
        used = self._used.setdefault(owner.number, deque())
        while used and used[0][0] <= now - DAY:
            used.popleft()
        if quota.tokens_per_day and sum(tokens for _, tokens in used) >= quota.tokens_per_day:
            raise _used_up(f"{quota.tokens_per_day:,} tokens a day", used[0][0] + DAY - now)


def _used_up(quota: str, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    message = f"the quota of this key ({quota}) is used up; ask again in {seconds} s"
    return ApiError(429, message, "quota_exceeded", headers={"Retry-After": str(seconds)})
