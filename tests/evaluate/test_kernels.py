"""What `handscroll info --kernels` prints: every family has something to say, and it is what ran."""

import pytest
import torch

from handscroll.evaluate.kernels import lines, situations, usual
from handscroll.kernels.native.calls import GRADIENT
from handscroll.kernels.native.library import library, reason
from handscroll.nn.quantised import quantise
from tests.conformance.checks import random
from tests.conformance.families import FORMS


@pytest.mark.parametrize("form", FORMS)
def test_every_family_is_explained(form):
    model = random(FORMS[form])
    text = "\n".join(lines(model))
    assert "all layers: " in text
    assert ("one new token" in text) == model.spec.cached


def test_the_refusals_are_those_of_the_run():
    made = dict(situations(random(FORMS["llama"])))
    seen = {choice.operation: choice for choice in made["reading 32 tokens"]}
    assert seen["attention"].kernel == "tiles" and dict(seen["attention"].refused)["fold"] == "more than 16 queries"
    learned = {choice.operation: choice for choice in made["training on 32 tokens"]}
    assert dict(learned["product of rows with a matrix"].refused)["compiled"] == GRADIENT


@pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
@pytest.mark.parametrize(("weights", "format"), [("", "F32"), ("int8", "int8"), ("int4", "Q4_1")])
def test_a_call_of_all_layers_says_what_it_does_inside(weights, format):
    model = usual(torch.float32)
    if weights:
        quantise(model, weights)
    found = list(lines(model))
    begin = found.index("one new token")
    [inside] = [line for line in found if line.startswith("      inside it: ")]
    assert begin < found.index(inside) and found[found.index(inside) - 1].strip().startswith(("all layers: one", "not"))
    assert f"14 products with matrices in {format}," in inside  # q, k, v, output, gate, up, down of two layers
    assert "2 queries of a kv head" in inside


def test_layers_one_by_one_say_nothing_of_a_call():
    assert not any("inside it" in line for line in lines(random(FORMS["gpt2"])))
