"""The registry: the first kernel that takes the arguments runs, and what is recorded is what ran."""

import pytest
import torch

from handscroll.kernels.registry import Kernel, Operation, always, recording, without
from handscroll.kernels.rows import NORM, PRODUCT
from handscroll.kernels.runs import GRADIENT, OVER
from handscroll.nn.attend import ATTENTION, attend
from handscroll.nn.bias import ALiBi
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal
from handscroll.nn.span import Span


@pytest.fixture
def halving():
    """An operation of the tests, that no listing keeps."""
    operation = Operation(
        "half",
        Kernel("shift", "whole numbers", lambda n: "" if n % 2 == 0 else f"{n} is odd", lambda n: n >> 1),
        Kernel("divide", "any number", always, lambda n: n / 2),
    )
    yield operation
    Operation.every.remove(operation)


def test_the_first_that_takes_it_runs_and_says_why_the_others_do_not(halving):
    assert (halving(6), halving(7)) == (3, 3.5)
    assert halving.explain(6).kernel == "shift" and halving.explain(6).refused == ()
    assert halving.explain(7).refused == (("shift", "7 is odd"),)
    assert halving.kernel("shift").takes(6) and not halving.kernel("shift").takes(7)


def test_what_is_recorded_is_what_ran(halving):
    with recording() as outer:
        halving(6)
        with recording() as made:
            halving(6), halving(7)
    halving(6)
    assert {choice.kernel: count for choice, count in made.items()} == {"shift": 1, "divide": 1}
    assert sum(outer.values()) == 3


def test_a_kernel_can_be_left_out(halving):
    with without(halving, "shift"):
        assert isinstance(halving(6), float)
    assert isinstance(halving(6), int)


@torch.no_grad()
def attention(tokens, keys, **given):
    q, k = torch.randn(1, 8, tokens, 16), torch.randn(1, 2, keys, 16)
    with recording() as made:
        attend(q, [Span(k, k, Marks.run(0, keys))], Causal(), Marks.run(keys - tokens, tokens), **given)
    return {choice.operation: choice for choice in made}


def test_attention_says_what_it_takes():
    few, many = attention(1, 33), attention(40, 70)
    assert few[ATTENTION.name].kernel == "fold" and many[ATTENTION.name].kernel == "tiles"
    assert dict(many[ATTENTION.name].refused)["fold"] == "more than 16 queries"
    biased = attention(40, 70, bias=ALiBi(8))[OVER.name]
    assert biased.kernel == "torch" and "bias" in dict(biased.refused)["compiled"]


def test_every_operation_has_a_kernel_for_everything():
    wanted = {ATTENTION, GRADIENT, NORM, OVER, PRODUCT}
    assert wanted <= set(Operation.every)
    for operation in Operation.every:
        assert any(kernel.refuses is always for kernel in operation.kernels), operation.name
        assert len({kernel.name for kernel in operation.kernels}) == len(operation.kernels)
