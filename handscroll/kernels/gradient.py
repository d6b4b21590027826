"""Whether the numbers of a pass must be those of a pass with gradient: `possible`, and `repeated` for training.

A step of exact long training computes a chunk without gradient first, and again with gradient later. Kernels without
gradient round in other places than torch's differentiable loops, so both passes use the latter.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Passes(threading.local):
    repeated = False


_PASSES = _Passes()


def possible() -> bool:
    """Whether this pass has a gradient, or is computed again with gradient later."""
    return torch.is_grad_enabled() or again()


def again() -> bool:
    """Whether this pass is computed again with gradient later."""
    return _PASSES.repeated


@contextmanager
def repeated() -> Iterator[None]:
    """A pass of this thread without gradient that is computed again with gradient later."""
    before = _PASSES.repeated
    _PASSES.repeated = True
    try:
        with torch.no_grad():
            yield
    finally:
        _PASSES.repeated = before
