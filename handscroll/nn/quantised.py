"""Weights in int8 with a scale per output: half of bfloat16's bytes to read for every decoded token. Approximate.

A few rows go through the compiled product, which reads int8; more rows widen the weights once and multiply as ever.
"""

from torch import Tensor, nn

from handscroll.nn.linear import FEW, linear
from handscroll.nn.native import calls
from handscroll.nn.rounding import from_int8, to_int8


class Int8Linear(nn.Module):
    """The projection of a linear layer whose weights (N, D) were rounded. No gradient reaches them."""

    numbers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        numbers, scales = to_int8(weight.detach())
        self.dtype = weight.dtype
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weights that are meant, widened anew at every call."""
        return from_int8(self.numbers, self.scales, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= FEW * x.shape[-1] and not x.requires_grad and calls.can_multiply_int8(x, self.numbers):
            return calls.multiply(x, self.numbers, self.bias, self.scales)
        return linear(x, self.weight, self.bias)


class Int8Embedding(Int8Linear):
    """A token table in int8, one scale a token; as a projection it is the tied head."""

    def forward(self, tokens: Tensor) -> Tensor:
        return from_int8(self.numbers[tokens], self.scales[tokens], self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Logits of hidden states."""
        return super().forward(x)


def quantise(model: nn.Module) -> nn.Module:
    """Replace every linear layer and token table of a model by its rounded form, one after the other, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child.weight, child.bias))
            elif isinstance(child, nn.Embedding) and name == "embedding":
                setattr(parent, name, Int8Embedding(child.weight))
    return model
