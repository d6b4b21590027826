"""Projections. For a few rows on a CPU the time is that of reading the weights once; a compiled product does that."""

from torch import Tensor, nn

from handscroll.kernels.rows import PRODUCT


class Linear(nn.Linear):
    """`nn.Linear` through the registry."""

    def forward(self, x: Tensor) -> Tensor:
        return PRODUCT(x, self.weight, self.bias)


class TokenTable(nn.Embedding):
    """A vector (D,) for each of V tokens; tied, it is also the projection to the vocabulary."""

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return PRODUCT(hidden, self.weight, None)
