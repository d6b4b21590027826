"""Handscroll: train, lengthen, examine and run language models on text far longer than memory would allow.

import handscroll
lm = handscroll.load("path/or/hub-id")
longer = handscroll.extend(lm, to=32_768, text="book.txt")
longer.save("folder")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handscroll.doctor.examine import doctor
    from handscroll.extend.extend import extend
    from handscroll.lm import LM, load

__version__ = "0.1.0"
__all__ = ["LM", "__version__", "doctor", "extend", "load"]

_HOMES = {"LM": "handscroll.lm", "load": "handscroll.lm", "extend": "handscroll.extend", "doctor": "handscroll.doctor"}


def __getattr__(name: str) -> Any:
    """Names arrive on first use, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'handscroll' has no attribute '{name}'")
    from importlib import import_module

    if name in ("extend", "doctor"):
        return import_module(_HOMES[name])  # callable, see there
    return getattr(import_module(_HOMES[name]), name)
