"""YaRN whose factor follows the declared length of the request, in buckets; short requests stay exact."""

import math
from typing import ClassVar

from torch import Tensor

from handscroll.nn.scaling.base import Factor, Positive, Scaling, Tokens, plain_frequencies
from handscroll.nn.scaling.yarn import YaRN


class DynamicYaRN(Scaling):
    """YaRN (`yarn.py`) with the smallest factor s = 2^k that the declared length needs, and at most `factor`.

    Up to the trained length s is 1: frequencies and attention are those of the checkpoint, bit for bit. The attention
    factor is 1 + 0.1 `sharpening` ln s. Source: Peng et al. 2023, arXiv:2309.00071, section 3.4 and appendix B.1
    ("dynamic scaling"). There s follows the length token by token, which makes cached keys invalid; here s is fixed for
    the request. Limits: a request that outgrows its bucket has to be read again (`generate/conversation.py`).
    """

    name: ClassVar[str] = "dynamic-yarn"
    depends_on_length: ClassVar[bool] = True
    factor: Factor
    original: Tokens
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    sharpening: Positive = 1.0

    def stretch(self, length: int | None) -> float:
        """The factor s for a request of `length` tokens."""
        return min(self.declared(length or 1) / self.original, self.factor)

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); the errors of YaRN's ramp, at every length."""
        fixed = {"original": self.original, "beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
        stretch = self.stretch(length)
        scaled = YaRN(factor=stretch, truncate=False, **fixed).inverse_frequencies(head_size, base, length)
        return plain_frequencies(head_size, base) if stretch == 1.0 else scaled

    def attention_factor(self, length: int | None) -> float:
        """1 for short requests; see the formula of the class."""
        return 1.0 + 0.1 * self.sharpening * math.log(self.stretch(length))

    def bucket(self, length: int | None) -> int:
        """0 up to the trained length, then the number of tokens up to which the request may grow."""
        return 0 if self.stretch(length) == 1.0 else math.ceil(self.stretch(length) * self.original)

    def declared(self, length: int) -> int:
        """The trained length times the next power of two."""
        whole = self.original
        while whole < length:
            whole *= 2
        return whole
