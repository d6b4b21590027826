"""The compiled kernels as functions of tensors. Each has a `refuses_...`: the reason why it does not take them, or "".

All run on the CPU and without gradient, with torch's number of threads.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from handscroll.kernels import gradient
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.native.memory import refuses_memory
from handscroll.kernels.native.tables import Run
from handscroll.kernels.rounding import GROUP

# The numbers of the dtypes of keys and values; uint8 is int4, two a byte. The first two are also formats of a matrix
# (kernels/formats.py).
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3, torch.float16: 4}
NARROW = ((torch.bfloat16,) * 3, (torch.float32, torch.float16, torch.float16))  # queries, keys, values of `prefill`
LANES = 16  # sizes must be multiples of this
WIDEST = 512  # most numbers of an int8 key; the sums of their products are in 32 bits
FEW = 16  # most rows of a product whose matrix is read as it lies
NOT_CPU = "the tensors are not on the CPU"
GRADIENT = "gradients are on, or the pass is repeated with them"
EMPTY = "there is nothing to read"
MANY = f"more than {FEW} tokens"
VECTORS = f"a size is no multiple of {LANES}"
GAPS = "the tensors have gaps"


class KeysValues(Protocol):
    """Keys and values (B, K, S, E), rounded if `scales` are given (`nn/span.py: Span`)."""

    @property
    def keys(self) -> Tensor: ...

    @property
    def values(self) -> Tensor: ...

    @property
    def scales(self) -> tuple[Tensor, Tensor] | None: ...

    def scales_of(self, first: int, last: int) -> tuple[Tensor, Tensor]: ...

    def read(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]: ...


def refuses_decode(q: Tensor, span: KeysValues, first: int = 0) -> str:
    """Why `decode` does not take a run from `first` on, or "".

    It needs a CPU, a known dtype, and contiguous rows of whole vectors.
    """
    keys, values = span.keys, span.values
    if refused := _refuses_floats(q, keys, values):
        return refused
    if not q.numel() or not keys.shape[2]:
        return EMPTY
    if _tracked(q, keys, values):
        return GRADIENT
    if keys.dtype != values.dtype:
        return "keys and values are of two dtypes"
    if span.scales is None:
        if refused := _refuses_pair(q.dtype, keys.dtype):
            return refused
    elif keys.dtype == torch.uint8:
        if first % GROUP or q.shape[3] % GROUP or not all(s[0, 0].is_contiguous() for s in span.scales):
            return "int4 keys are read in whole groups of 32"
    elif keys.dtype != torch.int8 or q.shape[3] > WIDEST:
        return f"rounded keys are int8 of at most {WIDEST} numbers, or int4"
    return _refuses_gaps(keys, values) or _missing()


def decode(
    q: Float[Tensor, "B H T E"], span: KeysValues, first: int, last: int, scale: float = 1.0
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Attention of a few queries, all of which see a whole run of a span: output and log-sum-exp, both float32.

    Query heads share kv heads evenly: those of one kv head are the rows of one pass over its keys. Where several batch
    rows read one run (stride 0), their rows over floats are multiplied in tiles (tall.h). For int8 on a processor with
    AVX-512 VNNI, queries and softmax weights are rounded to 16 bits (integers.h).
    """
    return decode_runs(q, Runs.of([(span, first, last)]), scale)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of keys as the table that `decode_runs` reads. `spans` hold the memory."""

    table: ctypes.Array
    kv: int
    spans: Sequence[KeysValues]

    @classmethod
    def of(cls, runs: Sequence[tuple[KeysValues, int, int]]) -> "Runs":
        """The table of at least one run (span, first, last)."""
        made = []
        for span, first, last in runs:
            keys, values = span.keys[:, :, first:last], span.values[:, :, first:last]
            scales = None if span.scales is None else span.scales_of(first, last)
            made.append(Run.of(KINDS[keys.dtype], keys, values, scales))
        return cls((Run * len(made))(*made), runs[0][0].keys.shape[1], [span for span, _, _ in runs])


def decode_runs(
    q: Float[Tensor, "B H T E"], runs: Runs, scale: float = 1.0, many: bool = False
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """`decode` over several runs together, such as the parts of a saved reading.

    With `many`, the rows of one batch row over floats are multiplied in tiles too: a row has other last bits than with
    few others.
    """
    found = library()
    assert found is not None
    batch, heads, count, size = q.shape
    q, narrow = q.contiguous(), int(q.dtype == torch.bfloat16)
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    rows = heads // runs.kv * count
    shape = _numbers(len(runs.table), batch, runs.kv, rows, size, torch.get_num_threads(), 1, int(many))
    found.handscroll_decode(ctypes.addressof(runs.table), narrow, _at(q), scale, shape, _at(out), _at(lse))
    return out, lse


def refuses_pages(q: Tensor, keys: Tensor, values: Tensor) -> str:
    """Why `paged` does not take them; it needs a CPU, whole vectors, and a contiguous pool (K, slots, E)."""
    if refused := _refuses_floats(q, keys, values):
        return refused
    if keys.device.type != "cpu":
        return NOT_CPU
    if refused := _refuses_pair(q.dtype, keys.dtype):
        return refused
    if _tracked(q, keys, values):
        return GRADIENT
    if not q.numel() or q.shape[-1] % LANES:
        return VECTORS
    return "" if keys.is_contiguous() and values.is_contiguous() and library() is not None else _missing() or GAPS


def paged(  # noqa: PLR0913 - where the keys lie, and how they are read
    q: Float[Tensor, "B K R E"],
    keys: Float[Tensor, "K slots E"],
    values: Float[Tensor, "K slots E"],
    page: int,
    table: Int[Tensor, "pages"],
    spans: Int[Tensor, "B 3"],
    scale: float = 1.0,
    many: bool = False,
) -> tuple[Float[Tensor, "B K R E"], Float[Tensor, "B K R"]]:
    """Attention of R query rows of each kv head of row b over tokens first .. last - 1 of its own pages.

    A page is `page` slots of the pool. `spans` holds for each row where its pages begin in `table`, first and last.
    Pages that several rows share are read once. Output and log-sum-exp are float32. The result of a row does not depend
    on the other rows; with `many` its last bits do, since many rows over the same pages are multiplied in tiles
    (tall.h).
    """
    found = library()
    assert found is not None
    batch, kv, rows, size = q.shape
    q = q.contiguous()
    out, lse = _floats(*q.shape), _floats(*q.shape[:3])
    numbers = _numbers(batch, kv, rows, size, page, keys.shape[1], torch.get_num_threads(), int(many))
    at = [_at(x) for x in (keys, values, table, spans)]
    kinds = KINDS[keys.dtype], int(q.dtype == torch.bfloat16)
    found.handscroll_paged(*kinds, _at(q), scale, *at, numbers, _at(out), _at(lse))
    return out, lse


def join(
    out: Float[Tensor, "B H E"],
    lse: Float[Tensor, "B H"],
    more: Float[Tensor, "H n E"],
    more_lse: Float[Tensor, "H n"],
    rows: Sequence[int],
) -> None:
    """Join attention of some batch rows over other keys into `out` and `lse`, in place; all are float32, contiguous.

    `rows` are their numbers. The result of a row does not depend on the other rows.
    """
    found = library()
    assert found is not None
    heads, count, size = more.shape
    shape = _numbers(count, heads, size)
    found.handscroll_join(_at(more), _at(more_lse), _numbers(*rows), shape, _at(out), _at(lse))


def refuses_prefill(q: Tensor, keys: Tensor, values: Tensor) -> str:
    """Why `prefill` does not take them.

    It needs bfloat16, or float32 queries over float16, on a CPU that multiplies bfloat16 (AVX-512 BF16).
    """
    if not (q.is_cpu and keys.is_cpu and values.is_cpu):
        return NOT_CPU
    if refused := refuses_memory(q, keys, values):
        return refused
    if (q.dtype, keys.dtype, values.dtype) not in NARROW:
        return "it multiplies bfloat16, or float32 queries and float16 keys"
    if any(x.stride(3) != 1 for x in (q, keys, values)):
        return GAPS
    if not q.numel() or not keys.shape[2]:
        return EMPTY
    if _tracked(q, keys, values):
        return GRADIENT
    return _refuses_gaps(keys, values) or ("" if _narrow_products() else _missing() or "no AVX-512 BF16 here")


def prefill(
    q: Float[Tensor, "B H T E"],
    keys: Float[Tensor, "B K S E"],
    values: Float[Tensor, "B K S E"],
    scale: float,
    square: bool,
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H T"]]:
    """Attention of T queries over S keys in bfloat16; `square`: query t sees keys 0 .. S - T + t, otherwise all.

    A float16 key is the sum of two bfloat16 numbers, and a float32 query is taken as the sum of two, which keeps 16 of
    its 24 bits: a rounding of either moves the logits (docs/log.md). float16 values are rounded to bfloat16, and so are
    the weights before they multiply the values, as in torch's fused kernel; scores, sums and the log-sum-exp are
    float32. The output lies in memory as (B, T, H, E), which the next projection reads.
    """
    found = library()
    assert found is not None
    batch, heads, count, size = q.shape
    out = torch.empty(batch, count, heads, size, dtype=q.dtype, device="cpu").transpose(1, 2)
    lse = _floats(batch, heads, count)
    shape = (batch, heads, keys.shape[1], count, keys.shape[2], size, int(square), torch.get_num_threads())
    strides = (*q.stride()[:3], *keys.stride()[:2], *values.stride()[:2], *out.stride()[:3])
    numbers = _numbers(*shape, *strides)
    found.handscroll_prefill(KINDS[keys.dtype], _at(q), _at(keys), _at(values), scale, numbers, _at(out), _at(lse))
    return out, lse


def refuses_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str:
    """Why `multiply` does not take them; it needs few contiguous rows in the weight's dtype and whole vectors."""
    if gradient.possible():
        return GRADIENT
    if x.numel() > FEW * x.shape[-1]:
        return MANY
    if refused := _refuses_floats(x, weight, bias):
        return refused
    if x.dtype != weight.dtype:
        return "the weights are in another dtype"
    return _refuses_matrix(x, weight, weight.shape[1])


def refuses_raw(x: Tensor, number: int, raw: Tensor, inner: int) -> str:
    """The same for `multiply_raw` with a matrix (N, row_bytes) of `inner` numbers a row; it computes no gradient."""
    if x.requires_grad:
        return GRADIENT
    if x.numel() > FEW * x.shape[-1]:
        return MANY
    return _refuses_floats(x, raw) or _refuses_matrix(x, raw, inner) or unread(number)


def refuses_raw_many(x: Tensor, number: int, raw: Tensor, inner: int) -> str:
    """Why `multiply_raw_many` does not take them; it needs a reader of whole numbers (native/units.h)."""
    if x.requires_grad:
        return GRADIENT
    if refused := _refuses_floats(x, raw) or _refuses_matrix(x, raw, inner):
        return refused
    return (
        "" if _tiled(number) else "the format has no reader of whole numbers, or the processor no AVX-512 VNNI and VBMI"
    )


def multiply(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, "N D"], bias: Float[Tensor, "N"] | None
) -> Float[Tensor, "*rows N"]:
    """x times weight transposed plus bias, with float32 sums; the weights are read once per 4 rows.

    A row's result does not depend on the other rows. In bfloat16 the weights are read once per 8 rows if the processor
    can multiply bfloat16.
    """
    return multiply_raw(x, KINDS[weight.dtype], weight, bias)


def multiply_raw(
    x: Float[Tensor, "*rows D"], number: int, raw: Tensor, bias: Float[Tensor, "N"] | None
) -> Float[Tensor, "*rows N"]:
    """The same for a matrix (N, row_bytes) in the number format with this `number` (kernels/formats.py).

    With AVX-512 VNNI, every 64 numbers of x are rounded to 16 bits (with more rows than `alike` says, every 256), and
    the weights are those of the format (quantised.h).
    """
    return _multiply_raw("product", x, number, raw, bias)


def multiply_raw_many(
    x: Float[Tensor, "*rows D"], number: int, raw: Tensor, bias: Float[Tensor, "N"] | None
) -> Float[Tensor, "*rows N"]:
    """The same for many rows: 16 rows of the matrix at a time are unpacked; every 256 numbers of x share a scale."""
    return _multiply_raw("many", x, number, raw, bias)


def _multiply_raw(name: str, x: Tensor, number: int, raw: Tensor, bias: Tensor | None) -> Tensor:
    found = library()
    assert found is not None
    outer, inner = raw.shape[0], x.shape[-1]
    out = torch.empty(*x.shape[:-1], outer, dtype=x.dtype, device="cpu")
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    shape = _numbers(x.numel() // inner, inner, outer, torch.get_num_threads())
    x, narrow = x.contiguous(), int(x.dtype == torch.bfloat16)
    call = getattr(found, f"handscroll_{name}")
    call(number, narrow, _at(x), _at(raw), _at(bias), shape, _at(out))
    return out


def refuses_widen(raw: Tensor, number: int, dtype: torch.dtype) -> str:
    """Why `widen` does not take a matrix in a number format, or ""."""
    if raw.device.type != "cpu":
        return NOT_CPU
    if dtype not in (torch.float32, torch.bfloat16):
        return "another dtype is wanted than float32 or bfloat16"
    if not raw.numel():
        return EMPTY
    if refused := refuses_memory(raw):
        return refused
    return _missing() or unread(number) if raw.is_contiguous() else GAPS


def widen(raw: Tensor, number: int, size: int, dtype: torch.dtype) -> Float[Tensor, "*rows D"]:
    """The numbers of raw uint8 (..., row_bytes) in the number format with this `number`; a row has `size` of them."""
    found = library()
    assert found is not None
    out = torch.empty(*raw.shape[:-1], size, dtype=dtype, device="cpu")
    shape = _numbers(out.numel() // size, size, torch.get_num_threads())
    found.handscroll_widen(number, int(dtype == torch.bfloat16), _at(raw), shape, _at(out))
    return out


def alike(number: int) -> int:
    """With up to so many rows, no bit of a row of `multiply_raw` depends on how many there are."""
    return _tiled(number) or FEW


@cache
def unread(number: int) -> str:
    """Why the compiled kernels do not read the number format with this `number`, or ""."""
    found = library()
    known = found is None or number < found.handscroll_formats()
    return "" if known else "native/formats.h has no reader of the format"


def refuses_norm(x: Tensor, weight: Tensor) -> str:
    """Why `norm` does not take them; it needs contiguous rows (..., D) in the dtype of the weight."""
    if x.dtype != weight.dtype:
        return "the weight is in another dtype"
    if weight.shape != x.shape[-1:] or weight.device != x.device:
        return "the weight has another size than the rows, or lies on another device"
    if not (x.is_contiguous() and weight.is_contiguous()):
        return GAPS
    return VECTORS if x.shape[-1] % LANES else _refuses_rows(x, weight)


def norm(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, "D"], epsilon: float, offset: bool = False
) -> Float[Tensor, "*rows D"]:
    """Root-mean-square norm times weight, in one pass over each row; it rounds where `nn/norm.py` rounds."""
    found = library()
    assert found is not None
    out, width = torch.empty_like(x), x.shape[-1]
    numbers = _numbers(x.numel() // width, width, offset, torch.get_num_threads())
    found.handscroll_norm(KINDS[x.dtype], _at(x), _at(weight), epsilon, numbers, _at(out))
    return out


def refuses_turn(x: Tensor, cosine: Tensor, sine: Tensor) -> str:
    """Why `turn` does not take them; it needs heads (B, H, T, E), float32 tables, half heads of whole vectors."""
    if cosine.dtype != torch.float32 or not cosine.is_contiguous():
        return "the tables are not float32 without gaps"
    if sine.dtype != cosine.dtype or sine.shape != cosine.shape or sine.device != cosine.device:
        return "the two tables differ in dtype or shape, or lie on two devices"
    if x.shape[-1] != 2 * cosine.shape[-1]:
        return "only a part of each head is rotated"
    if cosine.shape[1] != x.shape[2] or cosine.shape[0] not in (1, x.shape[0]) or cosine.device != x.device:
        return "the tables are not for these tokens, or lie on another device"
    if x.stride(-1) != 1:
        return GAPS
    return VECTORS if x.shape[-1] % (2 * LANES) else _refuses_rows(x, cosine, sine)


def turn(
    x: Float[Tensor, "B H T E"], cosine: Float[Tensor, "b T half"], sine: Float[Tensor, "b T half"]
) -> Float[Tensor, "B H T E"]:
    """x rotated by the tables of one row or of every row; computed in float32."""
    found = library()
    assert found is not None
    out, sine = torch.empty(x.shape, dtype=x.dtype, device="cpu"), sine.contiguous()
    numbers, strides = _numbers(*x.shape, cosine.shape[0], torch.get_num_threads()), _numbers(*x.stride()[:3])
    found.handscroll_turn(KINDS[x.dtype], _at(x), _at(cosine), _at(sine), numbers, strides, _at(out))
    return out


def refuses_gate(x: Tensor, y: Tensor) -> str:
    """Why `gate` does not take them; it needs two contiguous tensors (..., D) of one dtype."""
    if x.dtype != y.dtype or x.shape != y.shape or x.device != y.device:
        return "the halves differ in dtype or shape, or lie on two devices"
    if not (x.is_contiguous() and y.is_contiguous()):
        return GAPS
    return VECTORS if x.shape[-1] % LANES else _refuses_rows(x, y)


def gate(x: Float[Tensor, "*rows D"], y: Float[Tensor, "*rows D"], activation: int) -> Float[Tensor, "*rows D"]:
    """The activation of x (0: SiLU, 1: the tanh form of GELU) times y; the activation is rounded to the dtype first."""
    found = library()
    assert found is not None
    out, width = torch.empty_like(x), x.shape[-1]
    numbers = _numbers(x.numel() // width, width, torch.get_num_threads())
    found.handscroll_gate(KINDS[x.dtype], activation, _at(x), _at(y), numbers, _at(out))
    return out


def _refuses_rows(x: Tensor, *others: Tensor) -> str:
    """Why rows are not on the CPU, may get a gradient, or are none; "" if all is well."""
    if gradient.possible():
        return GRADIENT
    if refused := _refuses_floats(x, *others):
        return refused
    return _missing() if x.numel() else EMPTY


@cache
def _tiled(number: int) -> int:
    """The rows after which products with a format are of whole numbers and made in tiles; 0: never."""
    found = library()
    return 0 if found is None else int(found.handscroll_fewer(number))


@cache
def _narrow_products() -> bool:
    found = library()
    return found is not None and bool(found.handscroll_has_prefill())


def _refuses_floats(x: Tensor, *others: Tensor | None) -> str:
    """Why the numbers of x are not read, or the memory of x or of what is read with it; "" if all is well."""
    if not x.is_cpu:
        return NOT_CPU
    if x.dtype not in (torch.float32, torch.bfloat16):
        return "it computes in float32 and bfloat16 only"
    return refuses_memory(x, *others)


def _refuses_pair(queries: torch.dtype, keys: torch.dtype) -> str:
    """Why plain keys are not read with these queries, or ""."""
    pair = queries == keys or (queries == torch.float32 and keys == torch.float16)
    return "" if pair else "keys and queries are of two dtypes (only float32 queries read float16 keys)"


def _refuses_matrix(x: Tensor, weight: Tensor, inner: int) -> str:
    """Why rows and a matrix of `inner` columns are not matching whole vectors on the CPU, or ""."""
    if not weight.is_cpu:
        return NOT_CPU
    if not x.numel() or x.shape[-1] != inner or inner % LANES:
        return VECTORS
    return _missing() if weight.is_contiguous() else GAPS


def _refuses_gaps(*tensors: Tensor) -> str:
    """Why rows are not whole vectors, or why the (S, E) of a head is not contiguous; "" if all is well."""
    for x in tensors:
        if x.shape[3] % LANES:
            return VECTORS
        if x.stride(3) != 1 or (x.stride(2) != x.shape[3] and x.shape[2] != 1):
            return GAPS
    return ""


def _missing() -> str:
    return "" if library() is not None else f"there are no compiled kernels: {reason()}"


def _tracked(*tensors: Tensor) -> bool:
    """Whether any of them needs a gradient."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _floats(*shape: int) -> Tensor:
    """An empty float32 tensor on the CPU, independent of torch's default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _numbers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)
