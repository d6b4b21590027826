"""What the compiled layers (`halves.cpp`) are told of a layer: addresses and sizes, as structures of C.

The tables keep nothing alive: whoever fills them holds the tensors and sees when they move (`nn/addresses.py`).
"""

import ctypes


def _of(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Product(ctypes.Structure):
    """A matrix (outer, inner) in the number format `kind`, and a bias; null where there are none."""

    _fields_ = [*_of(ctypes.c_int64, "kind", "inner", "outer"), *_of(ctypes.c_void_p, "weight", "bias")]


class Norm(ctypes.Structure):
    """A root-mean-square norm; without a weight there is none. `offset`: times 1 + weight, in float32."""

    _fields_ = [("weight", ctypes.c_void_p), ("epsilon", ctypes.c_double), ("offset", ctypes.c_int64)]


class Before(ctypes.Structure):
    """From the hidden states to queries, keys and values; `kind` is that of the hidden states."""

    _fields_ = [
        *_of(ctypes.c_int64, "kind", "width", "heads", "kv", "size"),
        *_of(Norm, "norm", "query_norm", "key_norm"),
        *_of(Product, "query", "key", "value"),
    ]


class After(ctypes.Structure):
    """From what attention read to the layer's output; the branch norms are of what is added.

    `activation`: 0 silu, 1 the tanh form of gelu.
    """

    _fields_ = [
        *_of(ctypes.c_int64, "kind", "width", "activation"),
        *_of(Norm, "attention_branch", "norm", "mlp_branch"),
        *_of(Product, "output", "gate", "up", "down"),
    ]


class Past(ctypes.Structure):
    """Keys and values before those of a cache, which every row sees whole."""

    _fields_ = [
        *_of(ctypes.c_void_p, "keys", "values", "key_scales", "value_scales"),
        *_of(ctypes.c_int64, "kind", "length", "key_stride", "value_stride"),
        *_of(ctypes.c_int64, "key_scale_stride", "value_scale_stride"),
    ]


class Layer(ctypes.Structure):
    """A whole layer: its halves, where its keys and values lie, the first that is seen, its rotation and scale."""

    _fields_ = [
        ("before", Before),
        ("after", After),
        *_of(ctypes.c_void_p, "keys", "values", "key_scales", "value_scales"),
        *_of(ctypes.c_int64, "batch_stride", "head_stride", "scale_batch_stride", "scale_head_stride", "first"),
        ("past", ctypes.POINTER(Past)),
        *_of(ctypes.c_int64, "pasts", "rotation"),
        ("scale", ctypes.c_double),
    ]
