"""The two feed-forward blocks: gated (Llama form) and plain (GPT-2, BERT)."""

from functools import partial

import torch.nn.functional as F
from torch import nn

from handscroll.nn.linear import Linear
from handscroll.nn.shapes import Embeddings

ACTIVATIONS = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu}


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.gate = Linear(width, hidden, bias=bias)
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MLP(nn.Module):
    """down(act(up x)); the tanh form of GELU (Hendrycks & Gimpel 2016), as GPT-2 has it, unless another is named."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu-tanh"):
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(self.activation(self.up(x)))
