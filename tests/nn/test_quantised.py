"""Projections and token tables over the raw bytes of a number format."""

import pytest
import torch
import torch.nn.functional as F

from handscroll.kernels.formats import FORMATS
from handscroll.nn.quantised import Quantised, QuantisedTable
from tests.kernels.material import random_raw


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_projection_is_that_of_the_dequantised_weights(name, monkeypatch):
    raw, bias = random_raw(name, 50, 512), torch.randn(50)
    layer = Quantised(FORMATS[name], raw, bias)
    monkeypatch.setattr("handscroll.nn.quantised.WIDENED", 512 * 16)  # four parts, the last of them short
    wide = FORMATS[name].dequantise(raw)
    for count in (1, 3, 40):
        x = torch.randn(2, count, 512)
        torch.testing.assert_close(layer(x), F.linear(x, wide, bias), rtol=1e-4, atol=1e-4)


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
