"""Damaged and hostile files for the tests of loaders: what may come, and how a loader must answer."""

import copy
import json
import random
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from handscroll.base.errors import HandscrollError

SECONDS = 10  # of one case; a slow answer to a damaged file is a fault as well
VALUES: tuple[Any, ...] = (
    *("x", "", "1e-6", "gelu", True, False, None, [], {}, ["x"], [1, 2], {"a": 1}, [[[]]], [None]),
    *(-1, 0, 1, 3.5, -2.5, 10**12, 2**63, 10**40, float("nan"), float("inf"), 1e-320, 1e300),
)


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """The places of all values inside tables and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*here, key)
        yield from places(part, (*here, key))


def put(value: Any, place: tuple, new: Any) -> Any:
    """A copy with another value at a place."""
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return made


def sample(cases: list, count: int | None, seed: int = 0) -> list:
    """All cases, or some of them, always the same ones."""
    return cases if count is None else random.Random(seed).sample(cases, min(count, len(cases)))


def damaged(data: bytes, chance: random.Random, head: int) -> bytes:
    """The bytes of a file with a fault in its first `head` bytes, or with a piece lost or doubled."""
    kind, at = chance.randrange(6), chance.randrange(min(head, len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + chance.randbytes(8) + data[at + 8 :]
    if kind == 3:
        return data[:at] + struct.pack("<Q", chance.choice([0, 1, 2**31, 2**32, 2**63, 2**64 - 1])) + data[at + 8 :]
    if kind == 4:
        return data[:at] + data[at + chance.randrange(1, 40) :]
    return data[: at + 20] + data[at:]


@contextmanager
def answered(what: Any) -> Iterator[None]:
    """A case may be taken, or refused with an error for users; it may do nothing else, and not take long."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"no answer within {SECONDS} s to {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except HandscrollError:
        pass
    except Exception as error:  # every other error is a fault
        raise AssertionError(f"{type(error).__name__} for {what}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def all_answered(cases: list, act: Callable[[Any], Any]) -> None:
    """Every case is answered; a failure names those that were not."""
    failed = []
    for case in cases:
        try:
            with answered(case):
                act(case)
        except AssertionError as error:
            failed.append(str(error)[:300])
    assert not failed, f"{len(failed)} of {len(cases)}:\n" + "\n".join(failed[:12])


def text_of(header: dict[str, Any]) -> bytes:
    """The beginning of a safetensors file."""
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written
