"""The operations of a layer on rows of numbers, besides attention: products with a matrix, `NORM`, `TURN` (rotation),
`GATE` (of an MLP)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from handscroll.kernels import gradient
from handscroll.kernels.formats import Format
from handscroll.kernels.gpu import slots
from handscroll.kernels.native import calls
from handscroll.kernels.registry import Kernel, Operation, always

OFFSET = "it does not multiply by 1 + weight in float32"
Activation = Callable[[Tensor], Tensor]
WIDENED = 1 << 22  # weights that are dequantised at a time, so that the matrix never exists in floats


def _refuses_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    return calls.refuses_product(x, weight, bias)


def _refuses_quantised(x: Tensor, format: Format, raw: Tensor, bias: Tensor | None) -> str:
    return calls.refuses_raw(x, format.number, raw, format.row_size(raw.shape[1]))


def _multiply_quantised(x: Tensor, format: Format, raw: Tensor, bias: Tensor | None) -> Tensor:
    return calls.multiply_raw(x, format.number, raw, bias)


def _refuses_many(x: Tensor, format: Format, raw: Tensor, bias: Tensor | None) -> str:
    return calls.refuses_raw_many(x, format.number, raw, format.row_size(raw.shape[1]))


def _multiply_many(x: Tensor, format: Format, raw: Tensor, bias: Tensor | None) -> Tensor:
    return calls.multiply_raw_many(x, format.number, raw, bias)


def _refuses_widen(format: Format, raw: Tensor, dtype: torch.dtype) -> str:
    return calls.refuses_widen(raw, format.number, dtype)


def _widen(format: Format, raw: Tensor, dtype: torch.dtype) -> Tensor:
    return calls.widen(raw, format.number, format.row_size(raw.shape[-1]), dtype)


def _multiply_dequantised(x: Tensor, format: Format, raw: Tensor, bias: Tensor | None) -> Tensor:
    step = max(1, WIDENED // format.row_size(raw.shape[1]))
    parts = [PRODUCT(x, NUMBERS(format, rows, x.dtype), None) for rows in raw.split(step)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return out if bias is None else out + bias.to(out.dtype)


def _refuses_compiled_norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> str:
    return calls.refuses_norm(x, weight)


def _refuses_gpu_norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> str:
    if offset:
        return OFFSET
    return calls.GRADIENT if gradient.possible() else slots.refuses_norm(x, weight)


def _gpu_norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> Tensor:
    return slots.norm(x, weight, epsilon)


def _refuses_fused_norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> str:
    if offset:
        return OFFSET
    fits = x.device.type == "cuda" and x.dtype == weight.dtype != torch.float64
    return "" if fits else "it is for a GPU, and for a weight in the numbers' own dtype"


def _fused_norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon).to(x.dtype)


def _norm(x: Tensor, weight: Tensor, epsilon: float, offset: bool) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    if offset:
        return (scaled * (1.0 + weight.to(scaled.dtype))).to(x.dtype)
    return weight * scaled.to(x.dtype)


def _refuses_gpu_turn(x: Tensor, cosine: Tensor, sine: Tensor) -> str:
    return calls.GRADIENT if gradient.possible() else slots.refuses_turn(x, cosine)


def _refuses_turn(x: Tensor, cosine: Tensor, sine: Tensor) -> str:
    return calls.refuses_turn(x, cosine, sine)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    size = 2 * cosine.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([TURN(x[..., :size], cosine, sine), x[..., size:]], dim=-1)
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    first, second = x.to(torch.promote_types(x.dtype, cosine.dtype)).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016); foreign configurations call it `gelu_new`."""
    return F.gelu(x, approximate="tanh")


def _refuses_compiled_gate(x: Tensor, y: Tensor, activation: Activation) -> str:
    return calls.refuses_gate(x, y) if activation in GATES else "the activation is not compiled"


def _compiled_gate(x: Tensor, y: Tensor, activation: Activation) -> Tensor:
    return calls.gate(x, y, GATES.index(activation))


def _gate(x: Tensor, y: Tensor, activation: Activation) -> Tensor:
    return activation(x) * y


GATES = (F.silu, gelu_tanh)  # the compiled ones, in the order of their numbers in native/rows.cpp

# x (..., D), weight (N, D), bias (N,) or None -> x times weight transposed, plus bias; sums in float32 at least.
PRODUCT = Operation(
    "product of rows with a matrix",
    Kernel(
        "compiled",
        "a few rows: the matrix is read once, rows do not depend on each other",
        _refuses_product,
        calls.multiply,
    ),
    Kernel("torch", "the matrix product of torch's BLAS, for many rows and for training", always, F.linear),
)
# format, raw uint8 (..., row_bytes), dtype -> the numbers (..., D) in this dtype; computed in float32.
NUMBERS = Operation(
    "numbers of a quantised matrix",
    Kernel("compiled", "one pass over the bytes", _refuses_widen, _widen),
    Kernel("torch", "several loops, any dtype and device", always, Format.dequantise),
)
# x (..., D), format, raw uint8 (N, row_bytes), bias (N,) or None -> the same for a matrix in a number format.
QUANTISED = Operation(
    "product of rows with a quantised matrix",
    Kernel("compiled", "a few rows: the matrix is read once, as it lies", _refuses_quantised, _multiply_quantised),
    Kernel("compiled, many", "many rows: 16 rows of the matrix at a time are unpacked", _refuses_many, _multiply_many),
    Kernel("dequantised", "parts of the matrix, one after the other, any dtype", always, _multiply_dequantised),
)
# x (..., D), weight (D,), epsilon, offset -> x / rms(x) in float32 (Zhang & Sennrich 2019), rounded, times weight. With
# an offset: times 1 + weight in float32, then rounded.
NORM = Operation(
    "root-mean-square norm",
    Kernel("compiled", "one pass over the rows", _refuses_compiled_norm, calls.norm),
    Kernel("gpu", "one pass over a few rows", _refuses_gpu_norm, _gpu_norm),
    Kernel("torch fused", "one pass, of which training keeps x alone", _refuses_fused_norm, _fused_norm),
    Kernel("torch", "five loops, any dtype and device", always, _norm),
)
# x (B, H, T, E), cosine and sine (1 or B, T, R / 2) -> the first R numbers of each head rotated, in float32 at least.
TURN = Operation(
    "rotation of heads",
    Kernel("gpu", "one pass over a few tokens", _refuses_gpu_turn, slots.turn),
    Kernel("compiled", "one pass over the heads", _refuses_turn, calls.turn),
    Kernel("torch", "plain products, any dtype and device", always, _turn),
)
# x (..., D), y (..., D), activation -> activation(x) rounded, times y (Shazeer 2020, arXiv:2002.05202).
GATE = Operation(
    "gate of an MLP",
    Kernel("compiled", "one pass over both halves", _refuses_compiled_gate, _compiled_gate),
    Kernel("torch", "the activation, then a product; any activation, dtype and device", always, _gate),
)
