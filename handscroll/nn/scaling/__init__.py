"""Scalings of the rotary frequencies: one small file per method, named in `table.py`."""

from handscroll.nn.scaling.base import Scaling
from handscroll.nn.scaling.table import SCALINGS, scaling_from

__all__ = ["SCALINGS", "Scaling", "scaling_from"]
