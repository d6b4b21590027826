"""Blocks of the GGUF number formats in plain torch: (..., bytes) uint8 -> (..., numbers) float32, and back.

Each function reads one layout of ggml-common.h (llama.cpp), in the order of operations of its reference code, so that
the numbers are the same to the last bit. The `_k` formats are blocks of 256 numbers in groups of 16 or 32; the scales
of the groups are themselves small whole numbers.
"""

import torch
from torch import Tensor


def _half(raw: Tensor, first: int) -> Tensor:
    """The float16 number at byte `first` of each block, as (..., 1) float32."""
    return raw[..., first : first + 2].contiguous().view(torch.float16).to(torch.float32)


def _nibbles(raw: Tensor) -> Tensor:
    """(..., n) bytes -> (..., 2 n): the low four bits of all bytes, then the high four bits."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _shifted(raw: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """(..., n) bytes -> (..., len(shifts), n): the masked bits of all bytes at each shift."""
    return torch.stack([raw >> shift & mask for shift in shifts], dim=-2)


def _bits(raw: Tensor) -> Tensor:
    """(..., n) bytes -> (..., 8 n) bits, the lowest of each byte first."""
    return _shifted(raw, tuple(range(8)), 1).transpose(-1, -2).flatten(-2)


def q4_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * (_nibbles(raw[..., 2:]).to(torch.float32) - 8)


def q4_1(raw: Tensor) -> Tensor:
    return _half(raw, 0) * _nibbles(raw[..., 4:]).to(torch.float32) + _half(raw, 2)


def q5_0(raw: Tensor) -> Tensor:
    numbers = _nibbles(raw[..., 6:]) | _bits(raw[..., 2:6]) << 4
    return _half(raw, 0) * (numbers.to(torch.float32) - 16)


def q5_1(raw: Tensor) -> Tensor:
    numbers = _nibbles(raw[..., 8:]) | _bits(raw[..., 4:8]) << 4
    return _half(raw, 0) * numbers.to(torch.float32) + _half(raw, 2)


def q8_0(raw: Tensor) -> Tensor:
    return _half(raw, 0) * raw[..., 2:].view(torch.int8).to(torch.float32)


def fp8(raw: Tensor) -> Tensor:
    scale = raw[..., :4].contiguous().view(torch.float32)
    return raw[..., 4:].contiguous().view(torch.float8_e4m3fn).to(torch.float32) * scale


def q2_k(raw: Tensor) -> Tensor:
    """16 bytes with a scale (low bits) and a lowest number (high bits) each, 64 bytes of numbers, a scale for both."""
    scales, numbers = raw[..., :16], raw[..., 16:80].unflatten(-1, (2, 32))
    numbers = _shifted(numbers, (0, 2, 4, 6), 3).flatten(-3).unflatten(-1, (16, 16)).to(torch.float32)
    step = _half(raw, 80) * (scales & 15).to(torch.float32)
    low = _half(raw, 82) * (scales >> 4).to(torch.float32)
    return (step.unsqueeze(-1) * numbers - low.unsqueeze(-1)).flatten(-2)


def q3_k(raw: Tensor) -> Tensor:
    """32 bytes of high bits (0 means -4), 64 bytes of two low bits, 12 bytes of sixteen 6-bit scales, a scale."""
    low = _shifted(raw[..., 32:96].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    high = _shifted(raw[..., :32], tuple(range(8)), 1).flatten(-2)
    numbers = (low.to(torch.float32) - 4 * (1 - high.to(torch.float32))).unflatten(-1, (16, 16))
    packed = raw[..., 96:108]
    scales = _nibbles(packed[..., :8]) | _shifted(packed[..., 8:], (0, 2, 4, 6), 3).flatten(-2) << 4
    step = _half(raw, 108) * (scales.to(torch.float32) - 32)
    return (step.unsqueeze(-1) * numbers).flatten(-2)


def _scales_and_lows(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 12) -> eight 6-bit scales and eight lowest numbers.

    The high bits of the last four are stored with the first four.
    """
    first, second, both = packed.unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat((first & 63, both & 15 | first >> 6 << 4), dim=-1)
    return scales.to(torch.float32), torch.cat((second & 63, both >> 4 | second >> 6 << 4), dim=-1).to(torch.float32)


def _k_of_32(raw: Tensor, numbers: Tensor) -> Tensor:
    """Numbers (..., 8, 32) times the scales at the beginning of a Q4_K or Q5_K block."""
    scales, lows = _scales_and_lows(raw[..., 4:16])
    step, low = _half(raw, 0) * scales, _half(raw, 2) * lows
    return (step.unsqueeze(-1) * numbers.to(torch.float32) - low.unsqueeze(-1)).flatten(-2)


def q4_k(raw: Tensor) -> Tensor:
    return _k_of_32(raw, _shifted(raw[..., 16:].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3, -2))


def q5_k(raw: Tensor) -> Tensor:
    low = _shifted(raw[..., 48:].unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3, -2)
    return _k_of_32(raw, low | _shifted(raw[..., 16:48], tuple(range(8)), 1) << 4)


def q6_k(raw: Tensor) -> Tensor:
    """128 bytes of four low bits, 64 bytes of two high bits, sixteen int8 scales, a scale."""
    low = _shifted(raw[..., :128].unflatten(-1, (2, 64)), (0, 4), 15).flatten(-3)
    high = _shifted(raw[..., 128:192].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    numbers = ((low | high << 4).to(torch.float32) - 32).unflatten(-1, (16, 16))
    step = _half(raw, 208) * raw[..., 192:208].view(torch.int8).to(torch.float32)
    return (step.unsqueeze(-1) * numbers).flatten(-2)


def _as_halves(x: Tensor) -> Tensor:
    """(..., 1) float32 -> (..., 2) bytes of float16."""
    return x.to(torch.float16).contiguous().view(torch.uint8)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1 / x)


def _packed(numbers: Tensor) -> Tensor:
    """(..., 2 n) of 0 .. 15 -> (..., n) bytes, the inverse of `_nibbles`."""
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4


def to_q4_0(wide: Tensor) -> Tensor:
    """Round a block; the number of the largest magnitude becomes -8."""
    largest = wide.gather(-1, wide.abs().argmax(dim=-1, keepdim=True))
    scale = largest / -8
    numbers = (wide * _inverse(scale) + 8.5).floor_().clamp_(0, 15)
    return torch.cat((_as_halves(scale), _packed(numbers)), dim=-1)


def to_q4_1(wide: Tensor) -> Tensor:
    """Round a block to numbers 0 .. 15, from its lowest number to its highest."""
    lowest = wide.amin(dim=-1, keepdim=True)
    scale = (wide.amax(dim=-1, keepdim=True) - lowest) / 15
    numbers = ((wide - lowest) * _inverse(scale) + 0.5).floor_().clamp_(0, 15)
    return torch.cat((_as_halves(scale), _as_halves(lowest), _packed(numbers)), dim=-1)


def to_q8_0(wide: Tensor) -> Tensor:
    """Round a block; the largest magnitude becomes 127, and halves are rounded away from zero."""
    scale = wide.abs().amax(dim=-1, keepdim=True) / 127
    numbers = wide * _inverse(scale)
    numbers = (numbers.sign() * (numbers.abs() + 0.5).floor_()).clamp_(-127, 127)
    return torch.cat((_as_halves(scale), numbers.to(torch.int8).view(torch.uint8)), dim=-1)
