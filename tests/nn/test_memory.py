"""Compiled kernels leave to torch what torch follows: traces, transforms, forward gradients, fake and other tensors."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import Parameter

from handscroll.kernels.formats import FORMATS
from handscroll.kernels.native import calls
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.native.memory import FOLLOWED, LAZY, OTHER_CLASS, refuses_memory
from handscroll.kernels.registry import without
from handscroll.kernels.rows import GATE, NORM, NUMBERS, PRODUCT, TURN
from handscroll.nn.compiled.layer import refuses_pass
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span


class Other(torch.Tensor):
    """A tensor of another class, as libraries for quantised weights make them."""

    @classmethod
    def over(cls, x):
        return x.as_subclass(cls)


pytestmark = [
    pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}"),
    # torch warns of its own use of torch.jit, and of Python conditions on sizes, which a trace takes as they are
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"),
]
WEIGHT, TABLE = torch.linspace(0.5, 2, 64), torch.linspace(-1, 1, 32).reshape(1, 1, 32)
MATRIX = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
WORK = {
    "norm": lambda x: NORM(x, WEIGHT, 1e-6, False),
    "gate": lambda x: GATE(x, x.flip(0), F.silu),
    "turn": lambda x: TURN(x[None, None, :1], TABLE, TABLE),
    "product": lambda x: PRODUCT(x, MATRIX, None),
}


def numbers():
    return torch.linspace(-2, 2, 3 * 64).reshape(3, 64)


@pytest.fixture(params=WORK)
def work(request):
    """An operation, and the same by torch alone."""
    operations = {"norm": NORM, "gate": GATE, "turn": TURN, "product": PRODUCT}

    def plain(x):
        with without(operations[request.param], "compiled"):
            return WORK[request.param](x)

    with torch.no_grad():
        yield WORK[request.param], plain


def test_forward_gradients_are_kept(work):
    run, plain = work
    with forward_ad.dual_level():
        x = forward_ad.make_dual(numbers(), torch.ones(3, 64))
        found, wanted = (forward_ad.unpack_dual(one(x)).tangent for one in (run, plain))
    assert found is not None and torch.equal(found, wanted)


def test_a_trace_holds_the_work_itself(work):
    run, plain = work
    traced = torch.jit.trace(run, (numbers(),), check_trace=False)
    other = numbers() * 3 + 1
    torch.testing.assert_close(traced(other), plain(other))


def test_an_exported_program_holds_the_work_itself(work):
    run, plain = work

    class Module(torch.nn.Module):
        def forward(self, x):
            return run(x)

    other = numbers() * 3 + 1
    torch.testing.assert_close(torch.export.export(Module(), (numbers(),)).module()(other), plain(other))


def test_transforms_of_functions_go_through(work):
    run, plain = work
    rows = torch.stack([numbers(), 2 * numbers()])
    torch.testing.assert_close(torch.func.vmap(run)(rows), torch.stack([plain(row) for row in rows]))
    found, wanted = (torch.func.jvp(one, (numbers(),), (torch.ones(3, 64),)) for one in (run, plain))
    torch.testing.assert_close(found, wanted)


def test_fake_tensors_have_shapes_alone(work):
    run, plain = work
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert run(torch.empty(3, 64)).shape == plain(torch.empty(3, 64)).shape


def test_numbers_that_are_kept_with_the_opposite_sign(work):
    run, plain = work
    x = torch._neg_view(numbers())
    torch.testing.assert_close(run(x), plain(-numbers()))


@torch.no_grad()
@pytest.mark.parametrize("odd", [torch._neg_view, lambda x: torch._efficientzerotensor(*x.shape), Other.over])
def test_no_operand_is_read_whose_memory_does_not_hold_its_numbers(odd):
    x, q, key = numbers(), numbers()[None, None], numbers()[None, None]
    span = Span(key, key, Marks.run(0, 3))
    raw = torch.zeros(64, 68, dtype=torch.uint8)
    refusals = {
        calls.refuses_gate: (x, x),
        calls.refuses_norm: (x, WEIGHT),
        calls.refuses_turn: (q[:, :, :1], TABLE, TABLE),
        calls.refuses_product: (x, MATRIX, WEIGHT),
        calls.refuses_pages: (q, key[0], key[0]),
        lambda q, keys, values: calls.refuses_decode(q, replace(span, keys=keys, values=values)): (q, key, key),
        lambda x, raw: calls.refuses_raw(x, FORMATS["Q8_0"].number, raw, 64): (x, raw),
    }
    for refuses, given in refusals.items():
        assert not refuses(*given)
        for at in range(len(given)):
            if given[at] is not raw or odd is Other.over:  # bytes have no sign
                assert refuses(*given[:at], odd(given[at]), *given[at + 1 :]) in (OTHER_CLASS, LAZY)


def test_numbers_of_a_quantised_matrix_are_left_to_torch_too():
    layout, raw = FORMATS["Q8_0"], torch.zeros(5, 68, dtype=torch.uint8)
    with torch.no_grad():
        assert not calls.refuses_widen(raw, layout.number, torch.float32)
        with forward_ad.dual_level():
            assert calls.refuses_widen(raw, layout.number, torch.float32) == FOLLOWED
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert NUMBERS(layout, torch.zeros(5, 68, dtype=torch.uint8), torch.float32).shape == (5, 64)


def test_the_call_that_runs_whole_layers_is_left_to_torch_too():
    x, context = numbers()[None], SimpleNamespace(noise=None)
    with torch.no_grad():
        assert not refuses_pass(x, context)
        with forward_ad.dual_level():
            assert refuses_pass(x, context) == FOLLOWED


def test_attention_is_left_to_torch_too():
    assert not refuses_memory(numbers()) and not refuses_memory(Parameter(numbers()), None)
    q = numbers().bfloat16().reshape(1, 1, 3, 64)
    for given in ((Other.over(q), q, q), (q, Other.over(q), q), (q, q, Other.over(q))):
        assert calls.refuses_prefill(*given) == OTHER_CLASS
