"""The two halves of a decoder layer around its attention, compiled: for a few tokens on a CPU, without gradient.

A layer of the Llama form (root-mean-square norms, rotation, gated MLP) is some fifteen calls, and with one token each
takes longer than its work. Here it is two calls and the attention between them, whatever the cache and the precision of
the weights; the arithmetic is that of the calls they replace.
"""

import ctypes
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handscroll.kernels.native.calls import FEW, KINDS, LANES
from handscroll.kernels.native.library import library
from handscroll.kernels.rounding import GROUP
from handscroll.nn.attention import Attention
from handscroll.nn.linear import Linear
from handscroll.nn.mlp import GatedMLP
from handscroll.nn.norm import RMSNorm
from handscroll.nn.quantised import Rounded
from handscroll.nn.rope import Rotation
from handscroll.nn.shapes import Embeddings


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "inner", "outer")),
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "bias")),
    ]


class _Before(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "width", "heads", "kv", "size")),
        *((name, ctypes.c_double) for name in ("epsilon", "head_epsilon")),
        *((name, ctypes.c_void_p) for name in ("norm", "query_norm", "key_norm")),
        *((name, _Product) for name in ("query", "key", "value")),
    ]


class _After(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "width")),
        ("epsilon", ctypes.c_double),
        ("norm", ctypes.c_void_p),
        *((name, _Product) for name in ("output", "gate", "up", "down")),
    ]


class PastTable(ctypes.Structure):
    """Keys and values before those of a cache, which every row sees whole."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int64) for name in ("kind", "length", "key_stride", "value_stride")),
        *((name, ctypes.c_int64) for name in ("key_scale_stride", "value_scale_stride")),
    ]


class LayerTable(ctypes.Structure):
    """A layer as `handscroll_step` reads it: its halves, and where its keys and values lie."""

    _fields_ = [
        ("before", _Before),
        ("after", _After),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int64) for name in ("batch_stride", "head_stride")),
        *((name, ctypes.c_int64) for name in ("scale_batch_stride", "scale_head_stride", "first")),
        ("past", ctypes.POINTER(PastTable)),
        ("pasts", ctypes.c_int64),
    ]


class Places:
    """Where modules and tensors were found: what held each, by which name; and the hooks of those modules.

    In columns, since a token asks them of every layer, from memory that the weights may just have pushed out of the
    processor's.
    """

    def __init__(self, parts: "Iterable[Places]" = ()):
        parts = list(parts)
        self._holders: list[dict[str, Any]] = [x for part in parts for x in part._holders]
        self._names: list[str] = [x for part in parts for x in part._names]
        self._found: list[Any] = [x for part in parts for x in part._found]
        self._tensors: list[Tensor] = [x for part in parts for x in part._tensors]
        self._pointers: list[int] = [x for part in parts for x in part._pointers]
        self._hooks: list[dict[int, Any]] = [x for part in parts for x in part._hooks]

    def fresh(self) -> bool:
        """Whether nothing was replaced or moved since."""
        same = all(map(is_, map(dict.get, self._holders, self._names), self._found))
        return same and list(map(Tensor.data_ptr, self._tensors)) == self._pointers

    def hooked(self) -> bool:
        """Whether a module wants somebody called, which only its own forward does."""
        return any(self._hooks)

    def module(self, parent: nn.Module, name: str) -> Any:
        module = parent._modules.get(name)
        self._place(parent._modules, name, module)
        if module is not None:
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        return module

    def tensor(self, module: nn.Module, name: str) -> Tensor | None:
        for holder in (module._parameters, module._buffers):
            if name in holder:
                tensor = holder[name]
                self._place(holder, name, tensor)
                if tensor is not None:
                    self._tensors.append(tensor)
                    self._pointers.append(tensor.data_ptr())
                return tensor
        return None

    def _place(self, holder: dict[str, Any], name: str, found: Any) -> None:
        self._holders.append(holder)
        self._names.append(name)
        self._found.append(found)


class Kept:
    """What a module keeps of itself (`vars(module)`), so that it goes when the module goes; a copy begins without."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Halves(Kept):
    """The halves of one layer, as long as its modules and weights stay where they are (`places`).

    `before(x, rotation)` gives queries (B, H, T, E), keys and values (B, K, T, E), rotated; `after(x, read)` the output
    of the layer, of its input and of what the attention read (B, T, H x E).
    """

    def __init__(self, layer: nn.Module):
        self.places = Places()
        self.dtype = torch.float32
        self.sizes: tuple[int, ...] | None = None  # kind, width, heads, kv heads, head size: of all layers of a stack
        self.usable = self._read(layer)

    def takes(self, x: Embeddings, rotation: Rotation | None) -> bool:
        """Whether these hidden states (B, T, D) are few, in the weights' dtype, and turned by one rotation."""
        return (
            self.usable
            and rotation is not None
            and not rotation.bands
            and x.dtype == self.dtype
            and 0 < x.shape[0] * x.shape[1] <= FEW
            and rotation.cosine.dtype == torch.float32
            and rotation.cosine.shape[-1] * 2 == self.size
            and x.is_contiguous()
        )

    def before(self, x: Embeddings, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        size, dtype = self.size, self.dtype
        q = torch.empty((batch, self.heads, tokens, size), dtype=dtype, device="cpu")
        k = torch.empty((batch, self.kv, tokens, size), dtype=dtype, device="cpu")
        v = torch.empty((batch, tokens, self.kv, size), dtype=dtype, device="cpu")
        cosine, sine = rotation.cosine.contiguous(), rotation.sine.contiguous()
        shape = (ctypes.c_int64 * 4)(batch, tokens, cosine.shape[0], torch.get_num_threads())
        self._library.handscroll_before(
            ctypes.addressof(self.first),
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
        about = ctypes.addressof(self.second)
        self._library.handscroll_after(about, x.data_ptr(), read.data_ptr(), shape, out.data_ptr())
        return out

    def _read(self, layer: nn.Module) -> bool:
        """Fill the tables of addresses; False where a part is none of those that are compiled."""
        found = library()
        parts = {name: self.places.module(layer, name) for name in ("attention_norm", "attention", "mlp_norm", "mlp")}
        attention, mlp = parts["attention"], parts["mlp"]
        unused = ("attention_branch_norm", "attention_sum_norm", "mlp_branch_norm", "mlp_sum_norm")
        if any(type(self.places.module(layer, name)) is not nn.Identity for name in unused):
            return False
        if found is None or type(attention) is not Attention or type(mlp) is not GatedMLP or layer.cross is not None:
            return False
        if attention.shape.scale is not None or attention.shape.cap is not None or mlp.activation is not F.silu:
            return False
        self._library, shape = found, attention.shape
        self.heads, self.kv, self.size = shape.heads, shape.kv_heads, shape.head_size
        norms = [self._norm(parts[name]) for name in ("attention_norm", "mlp_norm")]
        heads = [self._norm(self.places.module(attention, f"{name}_norm")) for name in ("query", "key")]
        if shape.norm_eps is None:
            heads = [None, None]
        elif None in heads:
            return False
        if norms[0] is None or norms[1] is None:
            return False
        self.dtype = norms[0].dtype
        if self.dtype not in (torch.float32, torch.bfloat16) or self.size % (2 * LANES):
            return False
        products = [self._product(self.places.module(attention, name)) for name in ("query", "key", "value", "output")]
        products += [self._product(self.places.module(mlp, name)) for name in ("gate", "up", "down")]
        alike = all(norm is None or norm.dtype == self.dtype for norm in (*norms, *heads))
        if not alike or None in products:
            return False
        query, key, value, output, gate, up, down = products
        kind, width, epsilon = KINDS[self.dtype], shape.width, float(shape.norm_eps or 0.0)
        first, second = (float(parts[name].eps) for name in ("attention_norm", "mlp_norm"))
        addresses = [None if norm is None else norm.data_ptr() for norm in (*norms, *heads)]
        self.sizes, epsilons = (kind, width, self.heads, self.kv, self.size), (first, epsilon)
        self.first = _Before(*self.sizes, *epsilons, addresses[0], *addresses[2:], query, key, value)
        self.second = _After(kind, width, second, addresses[1], output, gate, up, down)
        return True

    def _norm(self, module: Any) -> Tensor | None:
        if type(module) is not RMSNorm:
            return None
        weight = self.places.tensor(module, "weight")
        return weight if weight is not None and _plain(weight) and weight.shape[0] % LANES == 0 else None

    def _product(self, module: Any) -> _Product | None:
        """The addresses of a projection, or None: another kind of module, or sizes that are not compiled."""
        if type(module) is Linear:
            weight, scales = self.places.tensor(module, "weight"), None
            fits = weight is not None and weight.dtype == self.dtype
        elif isinstance(module, Rounded):
            weight, scales = self.places.tensor(module, "numbers"), self.places.tensor(module, "scales")
            wanted = {torch.int8: torch.float32, torch.uint8: torch.bfloat16}
            fits = weight is not None and scales is not None and scales.dtype == wanted.get(weight.dtype)
            fits = fits and module.dtype == self.dtype
        else:
            return None
        bias = self.places.tensor(module, "bias")
        if not fits or weight is None or not all(t is None or _plain(t) for t in (weight, scales, bias)):
            return None
        inner = weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)
        if inner % (GROUP if weight.dtype == torch.uint8 else LANES) or weight.shape[0] % LANES:
            return None
        if bias is not None and bias.dtype != self.dtype:
            return None
        addresses = (None if t is None else t.data_ptr() for t in (weight, scales, bias))
        return _Product(KINDS[weight.dtype], inner, weight.shape[0], *addresses)


def halves(layer: nn.Module, x: Embeddings, rotation: Rotation | None) -> Halves | None:
    """The compiled halves of a decoder layer for these hidden states, where there are any.

    `layer` is a `Block`.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    found = halves_of(layer)
    return found if found.takes(x, rotation) and not found.places.hooked() else None


def halves_of(layer: nn.Module) -> Halves:
    """Those of a layer as it is now, whether or not they can be used."""
    known: Halves | None = vars(layer).get("_halves")
    if known is None or not known.places.fresh():
        known = vars(layer)["_halves"] = Halves(layer)
    return known


def _plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.is_contiguous()
