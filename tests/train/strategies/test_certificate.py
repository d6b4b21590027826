"""Which piece of the data the gradient certificate is made on."""

from dataclasses import replace

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.lstm import LSTM, LSTMConfig
from handscroll.nn.init import initialise
from handscroll.objectives.causal import Causal
from handscroll.plan.machine import Machine
from handscroll.train import planned
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


def test_both_steps_train_a_model_that_was_loaded_for_reading(monkeypatch, tmp_path):
    """cuDNN computes no gradients of a recurrent layer in evaluation mode."""
    model, modes = LSTM(LSTMConfig(vocab=67, width=32, layers=2, trained=512)).eval(), []
    initialise(model, "normal", 2, torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        LSTM, "embed", lambda self, tokens, marks: modes.append(self.training) or self.embedding(tokens)
    )
    assert certify(model, Memory(strategy="chunk-outer", chunk=64), batch("plain", 2, 400), Causal(), tmp_path).passed
    assert all(modes) and modes and not model.training


@pytest.mark.parametrize("card", [None, 3 * 10**9])
def test_the_memory_of_the_device_must_hold_the_certificate(monkeypatch, card):
    """With a card, its memory counts, less what tensors take of it already."""
    monkeypatch.setattr(planned, "this_machine", lambda: Machine(memory=(1 if card is None else 50) * 10**9, disk=0))
    monkeypatch.setattr(planned, "resident_bytes", lambda: 0)
    monkeypatch.setattr(planned, "card_bytes", lambda: card)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 * 10**9)
    device = torch.device("cpu" if card is None else "cuda")
    place, room = ("memory", 900) if card is None else ("GPU memory", 910)
    planned.afford(8 * 10**8, "the certificate", "leave it out", device)
    with pytest.raises(CapacityError, match=f"the certificate takes 1,000 MB of {place}, but only {room} MB"):
        planned.afford(10**9, "the certificate", "leave it out", device)


def test_rows_without_any_target_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no row of the first update of the longest stage has a target"):
        certify(long(), MEMORY, scarce("plain"), Causal(), tmp_path)
