"""Policy `int8`: keeps keys and values in int8 with one scale per token and head, half of bfloat16's bytes.

Approximate: a number is off by at most 1/254 of its head's largest. Tokens are rounded when they are kept and are
always read rounded, even by the forward that made them, so that the size of prefill chunks does not change the results.
On a processor with AVX-512 VNNI, decoding also rounds queries and softmax weights, to 16 bits: the additional error is
a few hundredths of the other.
Limits: no gradients. Keys are rounded after their rotation.
"""

from dataclasses import dataclass
from typing import ClassVar

from handscroll.cache.buffered import Buffered
from handscroll.cache.columns import INT8, Form


@dataclass(eq=False)
class Int8Cache(Buffered):
    """A full cache in int8."""

    policy: ClassVar[str] = "int8"
    saved: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    form: ClassVar[Form] = INT8
