"""The published layouts of quantised folders: GPTQ, AWQ, float8 and compressed-tensors.

Each function reads one module, whose tensors `take` finds by the end of their names, and returns None if the module is
not quantised. The sizes of the tensors tell the bits and the groups, so folders that mix them are read as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from handscroll.base.errors import CheckpointError
from handscroll.models.packed.numbers import Packed, nibbles

Take = Callable[[str], Tensor | None]  # the end of a tensor's name -> the tensor, or None
FLOAT8 = (torch.float8_e4m3fn,)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight columns lies in its word of 32 bits


def gptq(take: Take, version: int = 1) -> Packed | None:
    """GPTQ (Frantar et al. 2022) as AutoGPTQ and GPTQModel store it.

    `qweight` (K / P, N) has P numbers of a column in a word, `qzeros` (G, N / P) P of a row, `scales` is (G, N),
    `g_idx` (K,) the group of each row. Version 1 stores zero points minus one.
    """
    qweight = take("qweight")
    if qweight is None:
        return None
    qzeros, scales, order = _need(take, "qzeros"), _need(take, "scales"), take("g_idx")
    _flat("qweight", qweight)
    bits = _bits(scales.shape[1], qzeros.shape[1])
    zeros = nibbles(qzeros, bits, 1)
    if version == 1:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    numbers = nibbles(qweight, bits, 0)
    return _grouped(numbers, zeros, scales, order)


def awq(take: Take) -> Packed | None:
    """AWQ (Lin et al. 2023) as AutoAWQ's "gemm" stores it.

    `qweight` (K, N / 8) and `qzeros` (G, N / 8) have eight columns in a word, the even ones first; `scales` is (G, N).
    """
    qweight = take("qweight")
    if qweight is None:
        return None
    qzeros, scales = take("qzeros"), _need(take, "scales")
    numbers = _in_order(nibbles(_flat("qweight", qweight), 4, 1))
    zeros = torch.full_like(scales, 8, dtype=torch.int16) if qzeros is None else _in_order(nibbles(qzeros, 4, 1))
    return _grouped(numbers, zeros, scales, None)


def _in_order(numbers: Tensor) -> Tensor:
    return numbers.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def _grouped(numbers: Tensor, zeros: Tensor, scales: Tensor, order: Tensor | None) -> Packed:
    """From numbers (K, N), zero points and scales (G, N), and the group of each of the K rows."""
    (inner, rows), groups = numbers.shape, scales.shape[0]
    if order is None and inner % groups:
        raise CheckpointError(f"{inner} columns are no whole number of {groups} groups, and there is no g_idx")
    plain = torch.arange(inner) // max(1, -(-inner // groups))
    order = plain if order is None else order.to(torch.int64)
    if zeros.shape != (groups, rows) or scales.shape[1] != rows or order.shape != (inner,):
        raise CheckpointError(
            f"quantised tensors of {inner} x {rows} numbers, zero points {tuple(zeros.shape)} and scales "
            f"{tuple(scales.shape)} do not fit each other"
        )
    if not bool(((order >= 0) & (order < groups)).all()):
        raise CheckpointError(f"g_idx names groups from {int(order.min())} to {int(order.max())}, there are {groups}")
    numbers = numbers - zeros[order]
    run = None if torch.equal(order, plain) else order
    return Packed(numbers.T.contiguous(), scales.T.contiguous(), run)


def float8(take: Take, block: tuple[int, int] | None = None) -> Packed | None:
    """float8 (E4M3) weights (N, K) with a scale for each block, row or matrix.

    `block` are the rows and columns of a block. `weight_scale_inv` (DeepSeek's layout) and `weight_scale` both multiply
    the weights.
    """
    weight = take("weight")
    if weight is None or weight.dtype not in FLOAT8:
        return None
    _flat("weight", weight)
    scales = next((s for s in (take("weight_scale_inv"), take("weight_scale")) if s is not None), None)
    if scales is None:
        raise CheckpointError("a float8 matrix has neither weight_scale_inv nor weight_scale")
    if not bool(torch.isfinite(weight.to(torch.float32)).all()):
        raise CheckpointError("a float8 matrix holds values that are not a number")
    if block is None or scales.numel() == 1:
        return Packed(weight, _rows_of(scales, weight.shape))
    wanted = tuple(-(-size // each) for size, each in zip(weight.shape, block, strict=True))
    if scales.shape != wanted:
        raise CheckpointError(
            f"scales {tuple(scales.shape)} do not fit a matrix {tuple(weight.shape)} in blocks {block}"
        )
    return Packed(weight, scales.repeat_interleave(block[0], 0)[: len(weight)].contiguous(), width=block[1])


def _rows_of(scales: Tensor, shape: torch.Size) -> Tensor:
    """Scales (N, G) from those of a matrix (), of rows (N,) or (N, 1), or of groups (N, G)."""
    rows, columns = shape
    scales = scales.reshape(-1, 1) if scales.dim() < 2 else scales
    if scales.dim() != 2 or scales.shape[0] not in (1, rows) or not scales.shape[1] or columns % scales.shape[1]:
        raise CheckpointError(f"scales {tuple(scales.shape)} do not fit a matrix {tuple(shape)}")
    return scales.expand(rows, -1).contiguous()


def compressed(take: Take, block: tuple[int, int] | None = None) -> Packed | None:
    """compressed-tensors: packed words (`weight_packed`), whole numbers in int8, or float8.

    Packed numbers have 2^(bits - 1) added. `weight_shape` is (N, K), `weight_scale` (N, G), `weight_zero_point` packed
    along its rows, `weight_g_idx` the group of each column.
    """
    words = take("weight_packed")
    if words is None:
        weight = take("weight")
        if weight is None or weight.dtype != torch.int8:
            return float8(take, block)
        numbers = _flat("weight", weight).to(torch.int16)
        return _shifted(numbers, _need(take, "weight_scale"), take("weight_zero_point"), None)
    sizes = _need(take, "weight_shape", 1).tolist()
    if len(sizes) != 2:
        raise CheckpointError(f"weight_shape is {sizes}; expected two sizes")
    rows, columns = map(int, sizes)
    _flat("weight_packed", words)
    bits = _bits(columns, words.shape[1])
    numbers = nibbles(words, bits, 1)[:, :columns] - (1 << (bits - 1))
    zeros, order = take("weight_zero_point"), take("weight_g_idx")
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = nibbles(zeros, bits, 0)[:rows] - (1 << (bits - 1))
    if numbers.shape != (rows, columns):
        raise CheckpointError(f"packed numbers {tuple(numbers.shape)} are not those of a matrix {rows} x {columns}")
    return _shifted(numbers, _need(take, "weight_scale"), zeros, order)


def _shifted(numbers: Tensor, scales: Tensor, zeros: Tensor | None, order: Tensor | None) -> Packed:
    """Numbers (N, K) minus their zero points."""
    scales = _rows_of(scales, numbers.shape)
    if order is not None:
        order = order.to(torch.int64)
        if order.shape != numbers.shape[1:] or not bool(((order >= 0) & (order < scales.shape[1])).all()):
            raise CheckpointError("weight_g_idx does not name a group for each column")
    found = Packed(numbers, scales, order)
    if zeros is not None:
        zero = Packed(numbers, _rows_of(zeros, numbers.shape), order).scale_of_columns()
        found = Packed(numbers - zero.to(torch.int16), scales, order)
    return found


def _need(take: Take, name: str, dims: int = 2) -> Tensor:
    tensor = take(name)
    if tensor is None:
        raise CheckpointError(f"a quantised matrix has no '{name}'")
    return _flat(name, tensor, (dims,) if dims == 1 or name != "weight_scale" else (0, 1, 2))


def _flat(name: str, tensor: Tensor, dims: tuple[int, ...] = (2,)) -> Tensor:
    if tensor.dim() not in dims or not tensor.numel():
        raise CheckpointError(f"'{name}' has the shape {tuple(tensor.shape)}, which is not that of a matrix")
    return tensor


def _bits(numbers: int, words: int) -> int:
    """Bits of a number, of which a row of `words` words of 32 bits holds `numbers`.

    Raises:
        CheckpointError: they are not 2, 4 or 8.
    """
    found = next((bits for bits in (2, 4, 8) if -(-numbers * bits // 32) == words), None)
    if found is None:
        raise CheckpointError(
            f"{numbers} quantised numbers in {words} words of 32 bits are not of 2, 4 or 8 bits each: take a folder in "
            "4 or 8 bits, or the full-precision checkpoint"
        )
    return found
