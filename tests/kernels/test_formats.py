"""Number formats of weights: every layout read and written as the `gguf` library does it, to the last bit."""

import gguf
import numpy as np
import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.kernels.formats import BY_GGML, FORMATS, WRITTEN, Format, format_of
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording
from handscroll.kernels.rows import NUMBERS
from tests.kernels.material import random_raw

OF_FILES = sorted(one.name for one in BY_GGML.values())


def kind(one: Format) -> gguf.GGMLQuantizationType:
    assert one.ggml is not None
    return gguf.GGMLQuantizationType(one.ggml)


@pytest.mark.parametrize("name", OF_FILES)
def test_reads_what_the_library_reads(name):
    one = FORMATS[name]
    raw = random_raw(name, 7, 1024)
    want = gguf.dequantize(raw.numpy(), kind(one))
    found = one.dequantise(raw)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), want)
    assert gguf.GGML_QUANT_SIZES[kind(one)] == (one.block, one.block_bytes)
    assert one.row_bytes(1024) == raw.shape[1] and one.row_size(raw.shape[1]) == 1024
    assert torch.equal(one.dequantise(raw, torch.bfloat16), torch.from_numpy(want).to(torch.bfloat16))


@pytest.mark.parametrize("name", [name for name in WRITTEN if FORMATS[name].ggml is not None])
def test_writes_what_the_library_writes(name):
    one = FORMATS[name]
    wide = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 512)).astype(np.float32))
    wide[2, :64] = 0
    wide[3, 5] = 300
    with np.errstate(divide="ignore", invalid="ignore"):  # the library divides by scales of zero before it masks them
        want = gguf.quantize(wide.numpy(), kind(one))
    assert np.array_equal(one.quantise(wide).numpy(), want.view(np.uint8).reshape(9, -1))


def test_rows_are_dequantised_some_at_a_time(monkeypatch):
    raw = random_raw("Q4_K", 50, 512)
    whole = FORMATS["Q4_K"].dequantise(raw)
    monkeypatch.setattr("handscroll.kernels.formats.AT_ONCE", 3 * 512)
    assert torch.equal(FORMATS["Q4_K"].dequantise(raw), whole)
    assert torch.equal(FORMATS["Q4_K"].dequantise(raw.view(2, 25, -1)), whole.view(2, 25, -1))
    written = FORMATS["Q8_0"].quantise(whole)
    assert (FORMATS["Q8_0"].dequantise(written) - whole).abs().max() <= whole.abs().max() / 200


def test_int8_keeps_a_scale_a_row():
    wide = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    raw = FORMATS["int8"].quantise(wide)
    assert raw.shape == (5, 52)
    assert ((FORMATS["int8"].dequantise(raw) - wide).abs() <= wide.abs().amax(1, keepdim=True) / 253).all()


def test_refusals():
    with pytest.raises(ConfigError, match="Q4_0"):
        FORMATS["Q4_0"].quantise(torch.zeros(2, 48))
    with pytest.raises(ConfigError, match="can only be read"):
        FORMATS["Q4_K"].quantise(torch.zeros(2, 256))
    with pytest.raises(ConfigError, match="Q8_0"):
        format_of("Q8-0")


@pytest.mark.skipif(library() is None, reason=reason())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_compiled_numbers_are_those_of_torch(name, dtype):
    raw = random_raw(name, 21, 768)
    with recording() as made:
        found = NUMBERS(FORMATS[name], raw.view(3, 7, -1), dtype)
    assert [choice.kernel for choice in made] == ["compiled"]
    assert torch.equal(found, FORMATS[name].dequantise(raw, dtype).view(3, 7, 768))
    assert torch.equal(NUMBERS(FORMATS[name], raw[::2], dtype), found.view(21, 768)[::2])  # with gaps: torch


@pytest.mark.skipif(library() is None, reason=reason())
def test_what_is_no_number_in_float8_is_none_when_compiled():
    """A damaged weight stays visible: read as 480 it would be a large number among small ones."""
    raw = random_raw("FP8", 3, 64)
    raw[0, 4], raw[1, 40 + 20] = 0x7F, 0xFF
    with recording() as made:
        found = NUMBERS(FORMATS["FP8"], raw, torch.float32)
    assert [choice.kernel for choice in made] == ["compiled"]
    assert found.isnan().nonzero().tolist() == [[0, 0], [1, 52]]
    assert torch.equal(found.nan_to_num(0), FORMATS["FP8"].dequantise(raw).nan_to_num(0))
