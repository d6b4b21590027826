"""A decoder layer around its attention, compiled: for a few tokens on a CPU, without gradient.

A layer is about fifteen calls, and with one token each call takes longer than its work. Here a layer is two calls with
the attention between them, for any cache and any format of the weights. The arithmetic is that of the calls that they
replace. A layer describes itself (`table`), so a layer of any form either has a description or is computed by torch.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.kernels import gradient
from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import FEW, GRADIENT, KINDS, MANY, NOT_CPU
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.native.memory import refuses_memory
from handscroll.nn.addresses import Addresses, Unfit, table
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings

_DTYPES = {kind: dtype for dtype, kind in KINDS.items()}


@dataclass(frozen=True, eq=False)
class Form:
    """A layer's description of itself: its halves, and how its attention reads.

    `positions` is the number of its rotation in the context, `window` the number of tokens that it sees (None: all),
    and `cap` the bound of its scores (None: there is none).
    """

    before: tables.Before
    after: tables.After
    scale: float
    positions: int = 0
    window: int | None = None
    cap: float | None = None


class Kept:
    """State that is stored in a module's `vars` and freed with the module.

    A copy of the module begins without it.
    """

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Compiled(Kept):
    """The halves of one layer, valid while its modules and weights stay at their `addresses`.

    `before(x, rotation)` returns rotated queries (B, H, T, E), and keys and values (B, K, T, E). `after(x, read)`
    returns the output of the layer, from its input and from the result of the attention (B, T, H x E).
    """

    form: Form

    def __init__(self, layer: nn.Module):
        self.addresses, self.unfit = Addresses(), ""
        found = library()
        try:
            if found is None:
                raise Unfit(f"there are no compiled kernels: {reason()}")
            self._library, self.form = found, table(layer, self.addresses)
            first = self.form.before
            self.dtype, self.heads, self.kv, self.size = _DTYPES[first.kind], first.heads, first.kv, first.size
        except Unfit as error:
            self.unfit = str(error)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that the layers of one call must have in common."""
        first = self.form.before
        return first.kind, first.width, first.heads, first.kv, first.size

    def refuses(self, x: Embeddings, rotation: Rotation | None) -> str:
        """The reason why it does not take these hidden states (B, T, D) under this rotation; "" if it does."""
        if self.unfit:
            return self.unfit
        if rotation is None or rotation.bands:
            return "positions are no rotation, or there are distance bands"
        if x.dtype != self.dtype or not x.is_contiguous():
            return "the hidden states are in another dtype than the weights, or are not contiguous"
        if rotation.cosine.dtype != torch.float32 or rotation.cosine.shape[-1] * 2 != self.size:
            return "only a part of each head is rotated"
        return "a module has a hook" if self.addresses.hooked() else ""

    def before(self, x: Embeddings, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        size, dtype = self.size, self.dtype
        q = torch.empty((batch, self.heads, tokens, size), dtype=dtype, device="cpu")
        k = torch.empty((batch, self.kv, tokens, size), dtype=dtype, device="cpu")
        v = torch.empty((batch, tokens, self.kv, size), dtype=dtype, device="cpu")
        cosine, sine = rotation.cosine.contiguous(), rotation.sine.contiguous()
        shape = (ctypes.c_int64 * 4)(batch, tokens, cosine.shape[0], torch.get_num_threads())
        self._library.handscroll_before(
            ctypes.addressof(self.form.before),
            x.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            shape,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
        )
        return q, k, v.transpose(1, 2)

    def after(self, x: Embeddings, read: Embeddings) -> Embeddings:
        read, out = read.contiguous(), torch.empty_like(x)
        shape = (ctypes.c_int64 * 2)(x.shape[0] * x.shape[1], torch.get_num_threads())
        about = ctypes.addressof(self.form.after)
        self._library.handscroll_after(about, x.data_ptr(), read.data_ptr(), shape, out.data_ptr())
        return out


def compiled(layer: nn.Module) -> Compiled:
    """The halves of a layer as it is now; they may be unusable (`refuses`)."""
    known: Compiled | None = vars(layer).get("_compiled")
    if known is None or not known.addresses.fresh():
        known = vars(layer)["_compiled"] = Compiled(layer)
    return known


def refuses_pass(x: Embeddings, context: Any) -> str:
    """The reason why no compiled code takes this pass, for any layers: it needs a few tokens on a CPU, no gradient."""
    if not 0 < x.numel() <= FEW * x.shape[-1]:
        return MANY
    if not x.is_cpu:
        return NOT_CPU
    if gradient.possible():
        return GRADIENT
    if torch.is_autocast_enabled("cpu") or context.noise is not None:
        return "there is dropout, or several precisions (autocast)"
    return refuses_memory(x)
