"""Errors for users. Each message says what came, what is allowed and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class HandscrollError(ValueError):
    """Base of all errors that a user can cause and correct."""


class ConfigError(HandscrollError):
    """A setting, recipe or option is wrong or contradictory."""


class DataError(HandscrollError):
    """A text file or data set cannot be used as asked."""


class CheckpointError(HandscrollError):
    """A model folder or a saved run is incomplete, damaged or does not have the expected shape."""


class CapacityError(HandscrollError):
    """A request is longer or larger than the model or the machine allows."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message for a wrong name: the closest valid name and the list of all names.

    >>> nearest("yarm", ["pi", "yarn"])
    "did you mean 'yarn'? Allowed: pi, yarn"
    """
    names = sorted(allowed)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"{guess}Allowed: {', '.join(names) or 'none'}"
