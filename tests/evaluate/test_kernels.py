"""What `handscroll info --kernels` prints: every family has something to say, and it is what ran."""

import pytest

from handscroll.evaluate.kernels import lines, situations
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
    assert dict(learned["product of rows with a matrix"].refused)["compiled"] == "a gradient is wanted"
