"""Projections and token tables over the raw bytes of a number format."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from handscroll.kernels.formats import FORMATS
from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording
from handscroll.nn.linear import Linear, TokenTable
from handscroll.nn.quantised import PROJECTIONS, Quantised, QuantisedTable, quantise
from tests.kernels.material import random_raw


def assert_near(got, want, x, wide):
    """Inputs in 16 bits are off by up to 1 / 65,024 of the largest."""
    limit = x.abs().amax() * wide.abs().sum(dim=1) / 30_000
    assert bool(((got - want).abs() <= limit).all())


# The formats with a reader of whole numbers (native/units.h).
WHOLE = ["int8", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
needs_library = pytest.mark.skipif(library() is None, reason=reason())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_projection_is_that_of_the_dequantised_weights(name, monkeypatch):
    raw, bias = random_raw(name, 50, 512), torch.randn(50)
    layer = Quantised(FORMATS[name], raw, bias)
    monkeypatch.setattr("handscroll.kernels.rows.WIDENED", 512 * 16)  # four parts, the last of them short
    wide = FORMATS[name].dequantise(raw)
    for count in (1, 3, 40):
        x = torch.randn(2, count, 512)
        assert_near(layer(x), F.linear(x, wide, bias), x, wide)


def test_the_bytes_are_those_that_were_given():
    raw = random_raw("Q4_K", 8, 256)
    layer = Quantised(FORMATS["Q4_K"], raw)
    assert layer.raw.data_ptr() == raw.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_looks_up_rows_and_projects(dtype):
    table = QuantisedTable(FORMATS["Q5_0"], random_raw("Q5_0", 40, 64), dtype=dtype)
    tokens = torch.tensor([[3, 39], [0, 3]])
    assert torch.equal(table(tokens), F.embedding(tokens, table.weight))
    hidden = torch.randn(1, 2, 64).to(dtype)
    torch.testing.assert_close(table.project(hidden), F.linear(hidden, table.weight), rtol=2e-2, atol=2e-2)


def test_a_gradient_goes_through_to_the_input():
    layer = Quantised.of(FORMATS["Q8_0"], torch.randn(8, 32))
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1))


def test_training_in_bfloat16_multiplies_in_bfloat16():
    layer = Quantised.of(FORMATS["Q8_0"], torch.randn(96, 64))
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), F.linear(x, layer.weight), rtol=2e-2, atol=0.1)
    given = torch.randn(5, 96).bfloat16()
    out.backward(given)
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, given.float() @ layer.weight, rtol=2e-2, atol=0.3)
    assert not torch.equal(x.grad, given.float() @ layer.weight)


@needs_library
@pytest.mark.parametrize("inner", [256, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_compiled_products_are_those_of_the_dequantised_weights(name, dtype, inner):
    """Against float64; bfloat16 rounds the output."""
    layer = Quantised(FORMATS[name], random_raw(name, 48, inner), torch.randn(48), dtype)
    wide = layer.format.dequantise(layer.raw).double()
    for rows in (1, 2, 4, 5, 7, 8, 11, 16):
        x = torch.randn(rows, inner).to(dtype)
        want = x.double() @ wide.T + layer.bias.double()
        got = calls.multiply_raw(x, layer.format.number, layer.raw, layer.bias)
        if dtype == torch.bfloat16:
            assert bool(
                ((got.double() - want).abs() <= want.abs() / 200 + x.abs().amax() * wide.abs().sum(1) / 30_000).all()
            )
        else:
            assert_near(got.double(), want, x, wide)
        assert torch.equal(got, layer(x))
        most = calls.alike(layer.format.number)
        alone = x[:1] if rows <= most else x[: most + 1]
        assert torch.equal(got[:1], layer(alone)[:1])  # a row does not depend on the others


@needs_library
@pytest.mark.parametrize("name", ["int8", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_last_row_ends_where_the_matrix_ends(name, tmp_path):
    """A mapped file ends with its last block; rows of an odd number of blocks end within a vector."""
    for inner in (32, 96, 608):
        raw = random_raw(name, 16, inner)
        padded = torch.full((raw.numel() + 4096,), 255, dtype=torch.uint8)
        padded[: raw.numel()] = raw.flatten()
        one = FORMATS[name]
        for rows in (3, 6):
            x = torch.randn(rows, inner)
            got = calls.multiply_raw(x, one.number, padded[: raw.numel()].view_as(raw), None)
            wide = one.dequantise(raw)
            assert_near(got, x @ wide.T, x, wide)


@needs_library
def test_what_is_no_number_stays_so():
    layer = Quantised(FORMATS["Q4_K"], random_raw("Q4_K", 16, 512))
    for wrong in (float("nan"), float("inf")):
        for rows in (2, 6):
            x = torch.randn(rows, 512)
            x[1, 300] = wrong
            got = layer(x)
            assert bool(got[0].isfinite().all()) and not bool(got[1].isfinite().any())


@pytest.mark.parametrize("weights", sorted(PROJECTIONS))
def test_a_model_is_rounded_in_place(weights):
    block = nn.ModuleDict({"up": Linear(64, 96), "projection": Linear(64, 32, bias=False), "table": TokenTable(20, 64)})
    wide = {name: child.weight.detach().clone() for name, child in block.items()}
    assert quantise(block, weights) is block
    assert block["up"].format is PROJECTIONS[weights] and block["projection"].format is PROJECTIONS["int8"]
    assert type(block["table"]) is QuantisedTable
    for name, child in block.items():
        assert (child.weight - wide[name]).abs().max() <= (wide[name].max() - wide[name].min()) / 29


@needs_library
def test_every_format_with_a_reader_of_whole_numbers_is_read_by_it_or_none_is():
    refused = {name: refused_many(name) for name in FORMATS}
    assert [name for name in FORMATS if not refused[name]] in (WHOLE, [])
    assert all("AVX-512 VNNI" in sentence for sentence in refused.values() if sentence)
    assert {calls.alike(FORMATS[name].number) for name in FORMATS if refused[name]} == {calls.FEW}


def refused_many(name: str) -> str:
    return calls.refuses_raw_many(torch.randn(1, 256), FORMATS[name].number, random_raw(name, 2, 256), 256)


@needs_library
@pytest.mark.parametrize("inner", [256, 1280])
@pytest.mark.parametrize("name", WHOLE)
def test_many_rows_are_multiplied_without_a_matrix_of_floats(name, inner):
    one, raw = FORMATS[name], random_raw(name, 40, inner)
    if refused_many(name):
        pytest.skip("no products of whole numbers here")
    layer, wide = Quantised(one, raw, torch.randn(40)), one.dequantise(raw)
    x = torch.randn(3, 7, inner)
    x[0, 0, 5] = 40
    with recording() as made:
        got = layer(x)
    assert [choice.kernel for choice in made] == ["compiled, many"]
    assert_near(got.double(), x.double() @ wide.double().T + layer.bias.double(), x, wide)
    assert torch.equal(got[0, :1], calls.multiply_raw_many(x[0, :1], one.number, raw, layer.bias))
    narrow = Quantised(one, raw, layer.bias, torch.bfloat16)(x.to(torch.bfloat16))
    torch.testing.assert_close(narrow.float(), got, rtol=2e-2, atol=0.02 * float(got.abs().max()))
    x[1, 2, 3] = float("nan")
    got = layer(x)
    assert bool(got[1, 2].isnan().all()) and int(got.isnan().sum()) == 40


@needs_library
@pytest.mark.parametrize("name", ["int8", "Q4_0", "Q5_0", "Q8_0"])
def test_many_rows_of_an_odd_number_of_blocks(name):
    for inner in (32, 96, 608):
        raw = random_raw(name, 24, inner)
        x, wide = torch.randn(20, inner), FORMATS[name].dequantise(raw)
        assert_near(Quantised(FORMATS[name], raw)(x), x @ wide.T, x, wide)
