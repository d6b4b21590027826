"""Which piece of the data the gradient certificate is made on."""

from dataclasses import replace

import pytest

from handscroll.base.errors import ConfigError
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.objectives.causal import Causal
from handscroll.train.step import Memory
from handscroll.train.strategies.certificate import certify
from tests.train.strategies.common import LLAMA, batch

MEMORY = Memory(strategy="staged", stage_layers=2, chunk=64)


def long():
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 512, "trained": 512}
    return Llama(LlamaConfig(**LLAMA, positions=positions))


def scarce(kind, *places):
    """Two rows of 400 tokens with these targets alone."""
    whole = batch(kind, 2, 400)
    targets = whole.targets.clone().fill_(-100)
    for row, column in places:
        targets[row, column] = 7
    return replace(whole, targets=targets)


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("places", [[(0, 350)], [(1, 399)], [(1, 2), (1, 300)]], ids=str)
def test_the_piece_holds_targets_wherever_they_are(kind, places, tmp_path):
    """Labels at the end of long documents, and answers far behind their facts."""
    certificate = certify(long(), MEMORY, scarce(kind, *places), Causal(), tmp_path)
    assert certificate.passed and certificate.tokens == 288


def test_rows_without_any_target_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no row of the first update of the longest stage has a target"):
        certify(long(), MEMORY, scarce("plain"), Causal(), tmp_path)
