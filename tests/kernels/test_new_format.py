"""A number format that is added in part (docs/adding/format.md) gives the right numbers, or does not compile."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from handscroll.kernels.formats import FORMATS, Format
from handscroll.kernels.native import library as native
from handscroll.kernels.native.library import COMPILERS, library, reason
from handscroll.kernels.registry import recording
from handscroll.kernels.rows import NUMBERS
from handscroll.nn.addresses import Addresses, Unfit
from handscroll.nn.quantised import Quantised

COMPILER = next((path for path in map(shutil.which, COMPILERS) if path), "")
USED = """
#include "units.h"
void read(const uint8_t* b, float* y) {
    of_format(F32, [&](auto kind) { widen_block<kind>(b, y); });
}
"""
WHOLE = """
#if defined(WHOLE)
void read_whole(const uint8_t* b) { Unit<F16>::each(b, 1, [](int, __m512i, __m512, __m512) {}); }
#else
#error "no AVX-512 VNNI: has `chunks` but no reader"
#endif
"""


def read(raw: torch.Tensor) -> torch.Tensor:
    blocks = raw.unflatten(1, (-1, 66))
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    return (scales * blocks[..., 2:].view(torch.int8).float()).flatten(1)


NEW = Format("X8", len(FORMATS), 64, 66, read)  # a float16 scale and 64 numbers, in no compiled kernel


def raw_of(rows: int, blocks: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(rows)
    scales = torch.randn(rows, blocks, 1, generator=random).half().view(torch.uint8)
    numbers = torch.randint(0, 256, (rows, blocks, 64), dtype=torch.uint8, generator=random)
    return torch.cat((scales, numbers), -1).flatten(1)


def test_the_number_of_a_format_is_its_place_in_the_table():
    assert [one.number for one in FORMATS.values()] == list(range(len(FORMATS)))


@pytest.mark.skipif(library() is None, reason=reason())
def test_the_compiled_kernels_know_every_format():
    found = library()
    assert found is not None and found.handscroll_formats() == len(FORMATS)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_format_without_a_compiled_reader_is_multiplied_by_torch(count):
    raw, bias, x = raw_of(48, 4), torch.randn(48), torch.randn(count, 256)
    layer = Quantised(NEW, raw, bias)
    with recording() as made:
        found = layer(x)
    assert next(iter(made)).kernel == "dequantised"
    torch.testing.assert_close(found, F.linear(x, read(raw), bias), rtol=1e-4, atol=1e-3)
    assert torch.equal(layer.weight, read(raw))


@pytest.mark.skipif(library() is None, reason=reason())
def test_compiled_kernels_refuse_a_format_that_they_cannot_read():
    raw = raw_of(48, 4)
    with recording() as made:
        NUMBERS(NEW, raw, torch.float32)
    ((name, why),) = next(iter(made)).refused
    assert name == "compiled" and "native/formats.h" in why
    with pytest.raises(Unfit, match=r"native/formats\.h"):
        Quantised(NEW, raw).table(Addresses(), torch.float32)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("", "", USED, ""),
        ("FP8, FORMATS }", "FP8, X8, FORMATS }", USED, "needs its line in LAYOUTS"),
        ("FP8, FORMATS }", "FP8, X8, FORMATS }", USED, "has no reader in widen_block"),
        ("{32, 36}, ", "{24, 28}, ", USED, "a multiple of 16"),
        ("{32, 34, false, 1, 32}", "{32, 34, false, 1, 8}", USED, "see Layout"),
        ("", "", USED + WHOLE, "has `chunks` but no reader"),
    ],
    ids=["nothing", "no line", "no reader", "another block", "another group", "no reader of whole numbers"],
)
def test_what_is_missing_of_a_format_does_not_compile(tmp_path, old, new, code, message):
    for path in Path(native.__file__).parent.glob("*.h"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / "formats.h").read_text()
    assert old in text
    (tmp_path / "formats.h").write_text(text.replace(old, new, 1) if old else text)
    (tmp_path / "used.cpp").write_text(code)
    words = [COMPILER, "-std=c++17", "-march=native", "-fsyntax-only", str(tmp_path / "used.cpp")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode != 0) == bool(message) and message in done.stderr, done.stderr
