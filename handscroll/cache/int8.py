"""Policy `int8`: every key and value in int8 with one scale a token and head; half of bfloat16's bytes.

Approximate: a number is off by at most 1/254 of its head's largest. Tokens are rounded when they are kept and read
rounded ever after, by the very forward that made them too, so that the size of prefill chunks does not matter. On a
processor with AVX-512 VNNI decoding rounds queries and softmax weights too, to 16 bits: some hundredths of that error.
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
    rounds: ClassVar[bool] = True
    form: ClassVar[Form] = INT8
