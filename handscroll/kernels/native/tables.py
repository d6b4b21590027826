"""The description of a layer for compiled layers (`halves.cpp`): addresses and sizes, as structures of C.

The tables keep no tensor alive: the code that fills them holds the tensors and notices when they move
(`nn/addresses.py`).
"""

import ctypes

from torch import Tensor


def _of(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Product(ctypes.Structure):
    """A matrix (outer, inner) in the number format `kind`, and a bias; a missing one is null."""

    _fields_ = [*_of(ctypes.c_int64, "kind", "inner", "outer"), *_of(ctypes.c_void_p, "weight", "bias")]


class Norm(ctypes.Structure):
    """A root-mean-square norm; a null weight means no norm. `offset`: times 1 + weight, in float32."""

    _fields_ = [("weight", ctypes.c_void_p), ("epsilon", ctypes.c_double), ("offset", ctypes.c_int64)]


class Before(ctypes.Structure):
    """The half from the hidden states to queries, keys and values; `kind` is that of the hidden states."""

    _fields_ = [
        *_of(ctypes.c_int64, "kind", "width", "heads", "kv", "size"),
        *_of(Norm, "norm", "query_norm", "key_norm"),
        *_of(Product, "query", "key", "value"),
    ]


class After(ctypes.Structure):
    """The half from the result of attention to the layer's output; branch norms normalise what is added.

    `activation`: 0 silu, 1 the tanh form of gelu.
    """

    _fields_ = [
        *_of(ctypes.c_int64, "kind", "width", "activation"),
        *_of(Norm, "attention_branch", "norm", "mlp_branch"),
        *_of(Product, "output", "gate", "up", "down"),
    ]


class Run(ctypes.Structure):
    """Keys and values (B, K, length, E) of the dtype number `kind`, and their scales; the strides are those of batch
    and head. See `runs.h`.
    """

    _fields_ = [
        *_of(ctypes.c_void_p, "keys", "values", "key_scales", "value_scales"),
        *_of(ctypes.c_int64, "kind", "length"),
        *_of(ctypes.c_int64 * 2, "key_strides", "value_strides", "key_scale_strides", "value_scale_strides"),
    ]

    @classmethod
    def of(cls, kind: int, keys: Tensor, values: Tensor, scales: tuple[Tensor, Tensor] | None) -> "Run":
        """The run of these tensors; a single batch row is read by all rows."""
        of_rows = [(x.stride(0) if x.shape[0] > 1 else 0, x.stride(1)) for x in (keys, values, *(scales or ()))]
        at = [x.data_ptr() for x in (keys, values, *(scales or ()))]
        none = () if scales else ((0, 0), (0, 0))
        return cls(*at, *(() if scales else (None, None)), kind, keys.shape[2], *of_rows, *none)


class Layer(ctypes.Structure):
    """A whole layer: its halves, the kind and place of its keys and values, the first seen key, rotation and scale."""

    _fields_ = [
        ("before", Before),
        ("after", After),
        ("kind", ctypes.c_int64),
        *_of(ctypes.c_void_p, "keys", "values", "key_scales", "value_scales"),
        *_of(ctypes.c_int64, "batch_stride", "head_stride", "scale_batch_stride", "scale_head_stride", "first"),
        ("past", ctypes.POINTER(Run)),
        *_of(ctypes.c_int64, "pasts", "rotation"),
        ("scale", ctypes.c_double),
    ]
