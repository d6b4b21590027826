"""The compiled norms, rotations and gates against float64 and torch, and what they leave to torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from handscroll.kernels import gradient
from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording, without
from handscroll.kernels.rows import GATE, GATES
from handscroll.nn.norm import OffsetRMSNorm, RMSNorm
from handscroll.nn.rope import Rotation

needs_library = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 576), (8, 1, 64), (2, 8, 16), (1, 9, 1, 64), (2, 300, 96)])
@pytest.mark.parametrize("kind", [RMSNorm, OffsetRMSNorm])
def test_norms_are_those_of_torch(kind, dtype, shape):
    """Against float64, rounded where the norm is rounded."""
    norm = kind(shape[-1], 1e-5).to(dtype)
    x = random(*shape, dtype=dtype) * 3
    with torch.no_grad():
        norm.weight.copy_(random(shape[-1], seed=1))
        assert not calls.refuses_norm(x, norm.weight)
        found = norm(x)
    wanted = (
        (norm.weight.double() + norm.offset) * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    )
    limit = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), wanted, rtol=limit, atol=limit)
    torch.testing.assert_close(
        found, norm(x.requires_grad_()).detach(), rtol=2 * limit, atol=limit
    )  # torch's own loops


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 9, 1, 64), (8, 3, 1, 32), (2, 2, 8, 96), (2, 3, 200, 64)])
@pytest.mark.parametrize("rows", [1, None])
def test_rotations_are_those_of_torch(dtype, shape, rows):
    batch, heads, count, size = shape
    angles = 50 * random(rows or batch, count, size // 2, seed=2)
    rotation = Rotation(angles.cos(), angles.sin())
    x = random(batch, count, heads, size, dtype=dtype).transpose(1, 2)  # as attention splits it
    for back in (False, True):
        with torch.no_grad():
            assert not calls.refuses_turn(x, rotation.cosine, rotation.sine)
            found = rotation.turn(x, back)
        first, second = x.double().chunk(2, dim=-1)
        cosine, sine = rotation.cosine.double()[:, None], rotation.sine.double()[:, None] * (-1 if back else 1)
        wanted = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        limit = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found.double(), wanted, rtol=limit, atol=limit)


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 7, 80), (2, 300, 96)])
@pytest.mark.parametrize("activation", GATES)
def test_gates_are_those_of_torch(activation, shape, dtype):
    """The activation is rounded before the product, as torch rounds it between its two loops."""
    x, y = 4 * random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    x[0, 0, :6] = torch.tensor([0.0, -0.0, 200.0, -200.0, math.inf, math.nan])
    assert not calls.refuses_gate(x, y)
    found = GATE(x, y, activation)
    wanted = activation(x.double()).to(dtype).double() * y.double()
    limit = 2e-6 if dtype == torch.float32 else 1.2e-2
    torch.testing.assert_close(found.double(), wanted, rtol=limit, atol=limit, equal_nan=True)
    with without(GATE, "compiled"):
        torch.testing.assert_close(found, GATE(x, y, activation), rtol=limit, atol=limit, equal_nan=True)


@needs_library
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_work_between_products_has_the_same_bits_with_any_number_of_rows_and_threads(monkeypatch, dtype):
    x, weight = random(1, 3, 600, 64, dtype=dtype), random(64, dtype=dtype)
    tables = random(1, 600, 32, seed=2), random(1, 600, 32, seed=3)

    def made(first, last):
        cosine, sine = (table[:, first:last] for table in tables)
        part = x[:, :, first:last].contiguous()
        return calls.norm(part, weight, 1e-5), calls.turn(part, cosine, sine), calls.gate(part, part, 0)

    whole = made(0, 600)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for first, last in [(0, 600), (5, 6), (37, 300)]:
        for got, want in zip(made(first, last), whole, strict=True):
            assert torch.equal(got, want[:, :, first:last])


@needs_library
def test_a_pass_that_is_repeated_with_gradient_is_computed_as_with_gradient():
    x, weight, table = random(1, 40, 64), torch.ones(64), torch.ones(1, 40, 32)
    refused = (
        lambda: calls.refuses_norm(x, weight),
        lambda: calls.refuses_turn(x[:, None], table, table),
        lambda: calls.refuses_gate(x, x),
    )
    assert all(refuses() for refuses in refused)
    with torch.no_grad():
        assert not any(refuses() for refuses in refused)
        with gradient.repeated(), gradient.repeated():
            assert all(refuses() for refuses in refused)
        assert not any(refuses() for refuses in refused)


@torch.no_grad()
def test_norms_and_rotations_that_are_left_to_torch():
    weight, table = torch.ones(64), torch.ones(1, 1, 32)
    few = random(1, 1, 64)
    assert calls.refuses_norm(few.double(), weight.double())
    assert calls.refuses_norm(few.bfloat16(), weight)  # the product is in the dtype of the weight then
    assert calls.refuses_norm(random(2, 1, 128)[..., ::2], weight)
    assert calls.refuses_norm(few, torch.ones(128)[::2]) and calls.refuses_norm(few, torch.ones(1))
    assert calls.refuses_norm(random(1, 1, 24), torch.ones(24))
    with torch.enable_grad():
        assert calls.refuses_norm(few, weight)
    tables = ((table, table.double()), (table, table.repeat(3, 1, 1)), (table, table.to("meta")))
    for cosine, sine in (*((one, one) for one in (table.double(), torch.ones(1, 1, 24))), *tables):
        assert calls.refuses_turn(random(1, 2, 1, 2 * cosine.shape[-1]), cosine, sine)
    for x, cosine in ((random(1, 2, 5, 64), table), (random(2, 2, 1, 64), table.repeat(3, 1, 1))):
        assert calls.refuses_turn(x, cosine, cosine)
    assert calls.refuses_gate(few, few.to("meta"))
    assert calls.refuses_gate(few, few.bfloat16()) and calls.refuses_gate(few, few[..., :32])
    assert calls.refuses_gate(few[..., ::2], few[..., ::2]) and calls.refuses_gate(few[..., :24], few[..., :24])
    with recording() as made:
        GATE(few, few, F.relu)
    assert next(iter(made)).kernel == "torch"
