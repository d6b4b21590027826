"""Matrices that adapters change while they are used: LoRA over weights in any format, which stay as they are.

A matrix W (N, D) becomes (1 + gain) * W + scale * B A. LoRA is B A alone; DoRA (Liu et al. 2024, arXiv:2402.09353) also
has a `gain` for each row; a bias may have a `shift`. Several adapters add up: their A and B are joined into one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AT_ONCE = 1 << 22  # numbers of a matrix that are widened at a time


class Update(nn.Module):
    """The change of a matrix (N, D): A (R, D), B (N, R), and perhaps a gain and a shift (N,).

    A and B are parameters in training and buffers otherwise. `folded` is a scale that is in B already.
    """

    a: Tensor
    b: Tensor
    gain: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scale: float = 1.0,
        gain: Tensor | None = None,
        shift: Tensor | None = None,
        folded: float = 1.0,
    ):
        super().__init__()
        self.scale, self.folded = scale, folded
        for name, tensor in (("a", a), ("b", b)):
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.register_buffer("gain", gain)
        self.register_buffer("shift", shift)

    def of(self, out: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The changed product, from the product `out` (..., N) of x (..., D) with W, in which `bias` is included."""
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)  # updates are float32 even if the base is in half precision
        if self.gain is not None:
            gain = self.gain.to(out.dtype)
            out = out + gain * (out if bias is None else out - bias.to(out.dtype))
        # Scaling the narrow tensor avoids another tensor as wide as the output.
        out = out + F.linear(F.linear(x, a) * self.scale, b)
        return out if self.shift is None else out + self.shift.to(out.dtype)

    def looked_up(self, out: Tensor, tokens: Tensor) -> Tensor:
        """The changed rows, from the rows `out` (..., D) of W for `tokens`."""
        return out + ((self.b[tokens] * self.scale) @ self.a).to(out.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """The changed matrix in the dtype of `weight`; it needs memory for one more matrix at most."""
        out = torch.empty_like(weight)
        step = max(1, AT_ONCE // max(1, weight.shape[1]))
        for first in range(0, len(weight), step):
            rows = slice(first, first + step)
            wide = weight[rows].to(torch.promote_types(weight.dtype, torch.float32))
            if self.gain is not None:
                wide = wide * (1 + self.gain[rows]).to(wide.dtype).unsqueeze(1)
            out[rows] = wide + (self.b[rows] * self.scale @ self.a).to(wide.dtype)
        return out


class Adapted(nn.Module):
    """A linear layer, float or quantised, with an update."""

    base: Any
    update: Update

    def __init__(self, base: nn.Module, update: Update):
        super().__init__()
        self.base, self.update = base, update

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer below."""
        return self.base.bias

    @property
    def weight(self) -> Tensor:
        """The changed weights (N, D), computed at every call."""
        return self.update.merged(self.base.weight)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, of which nothing is computed."""
        return dtype_of(self.base)

    def forward(self, x: Tensor) -> Tensor:
        return self.update.of(self.base(x), x, self.bias)


def dtype_of(layer: Any) -> torch.dtype:
    """The dtype of a layer's weights; a layer that computes its weights says it, and none are computed."""
    dtype: torch.dtype = layer.weight.dtype if isinstance(layer, nn.Linear) else layer.dtype
    return dtype


class AdaptedTable(nn.Module):
    """A token table with an update of what is looked up, another of the tied head, and rows of its own.

    `rows` are token ids (n,) and the vectors (n, D) that replace theirs, in both uses of the table.
    """

    base: Any
    lookup: Update | None
    head: Update | None
    ids: Tensor | None
    vectors: Tensor

    def __init__(
        self,
        base: nn.Module,
        lookup: Update | None = None,
        head: Update | None = None,
        rows: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.base, self.lookup, self.head = base, lookup, head
        ids, vectors = rows or (None, None)
        self.register_buffer("ids", ids)
        self.register_buffer("vectors", vectors)

    def forward(self, tokens: Tensor) -> Tensor:
        out = self.base(tokens)
        if self.lookup is not None:
            out = self.lookup.looked_up(out, tokens)
        if self.ids is None:
            return out
        place = torch.searchsorted(self.ids, tokens).clamp_max(len(self.ids) - 1)
        own = (self.ids[place] == tokens).unsqueeze(-1)
        return torch.where(own, self.vectors[place].to(out.dtype), out)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self._changed(self.base.project(hidden), hidden)

    def _changed(self, out: Tensor, hidden: Tensor) -> Tensor:
        if self.head is not None:
            out = self.head.of(out, hidden)
        if self.ids is not None:
            out = out.index_copy(-1, self.ids, F.linear(hidden, self.vectors.to(hidden.dtype)))
        return out

    def merged(self, update: Update | None) -> Tensor:
        """The table (V, D) with one of its updates, and its own rows."""
        weight = self.base.weight.detach()
        weight = weight if update is None else update.merged(weight)
        return weight if self.ids is None else weight.index_copy(0, self.ids, self.vectors.to(weight.dtype))

    @property
    def weight(self) -> Tensor:
        """The changed head (V, D), computed at every call."""
        return self.merged(self.head)


class AdaptedHead(AdaptedTable):
    """A head of its own, a projection without a bias, with rows of its own and perhaps an update."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self._changed(self.base(hidden), hidden)
