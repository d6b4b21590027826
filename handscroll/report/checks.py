"""Checks that the plots share; each error says which list is wrong and where."""

import math
from collections.abc import Sequence
from itertools import pairwise

from handscroll.base.errors import DataError


def finite(values: Sequence[float | None], what: str) -> None:
    wrong = [value for value in values if value is not None and not math.isfinite(value)]
    if wrong:
        raise DataError(f"{what} holds {wrong[0]}; write None for what was not measured")


def rising(values: Sequence[float], what: str) -> None:
    finite(values, what)
    for before, after in pairwise(values):
        if after <= before:
            raise DataError(f"{what} must rise; {after} follows {before}")
    if values and values[0] < 0:
        raise DataError(f"{what} must not be negative; the first is {values[0]}")
