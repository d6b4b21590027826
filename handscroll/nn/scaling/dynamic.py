"""An NTK-aware base that grows with the declared length of the request."""

from typing import ClassVar

from torch import Tensor

from handscroll.nn.scaling.base import Factor, Scaling, Tokens, plain_frequencies
from handscroll.nn.scaling.ntk import ntk_exponent


class DynamicNTK(Scaling):
    """base' = base * (s * L / L0 - (s - 1))^(d / (d - 2)) for a declared length L > L0, else the trained base.

    Source: emozilla 2023, "Dynamically Scaled RoPE" (r/LocalLLaMA), with bloc97's exponent; Peng et al. 2023,
    arXiv:2309.00071, section 3.3 and appendix B.1. It is called `dynamic` in foreign configurations. Limits: the length
    is the declared one, fixed for the request. `transformers` recomputes the base when a text grows past the longest
    length seen so far, and leaves cached keys in the older rotation. The two agree when the whole text is given at
    once.
    """

    name: ClassVar[str] = "dynamic-ntk"
    depends_on_length: ClassVar[bool] = True
    factor: Factor
    original: Tokens

    def inverse_frequencies(self, head_size: int, base: float, length: int | None) -> Tensor:
        """Float64 (head_size / 2,); the errors of `plain_frequencies` and `ntk_exponent`."""
        plain_frequencies(head_size, base)  # refuses a bad base before the power is taken
        stretched = max(length or 0, self.original) / self.original
        growth = self.factor * stretched - (self.factor - 1.0)
        return plain_frequencies(head_size, base * growth ** ntk_exponent(head_size))

    def bucket(self, length: int | None) -> int:
        """0 up to the trained length; beyond it every length has its own frequencies."""
        return length if length is not None and length > self.original else 0

    def declared(self, length: int) -> int:
        """The trained length times the next power of two, so that a saved reading serves questions of many lengths."""
        whole = self.original
        while whole < length:
            whole *= 2
        return whole
