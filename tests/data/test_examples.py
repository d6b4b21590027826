"""Packed examples: whole, resumable, and with the loss and the gradients of rows with one example each."""

import json

import numpy as np
import pytest
import torch

from handscroll.base.errors import DataError
from handscroll.data.batch import collate
from handscroll.data.encoded import Encoded
from handscroll.data.examples import Examples
from handscroll.data.row import IGNORED
from handscroll.objectives.causal import Causal
from handscroll.train.step import Step
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.staged import Staged
from tests.generate.material import tiny


def examples_of(sizes, seed=0, vocab=4):
    drawn = np.random.default_rng(seed)
    return [
        Encoded(drawn.integers(0, vocab, size).tolist(), [False, *(drawn.random(size - 1) < 0.6).tolist()])
        for size in sizes
    ]


def gradients(model, step, rows):
    model.zero_grad()
    loss = step(model, [collate([row]) for row in rows], Causal())
    return float(loss.total), loss.count, torch.cat([p.grad.flatten() for p in model.parameters()])


SIZES = [7, 3, 12, 5, 9, 2, 16, 4, 6]


@pytest.mark.parametrize(
    "strategy", [Plain(), Staged(5, 0, 0, None), Staged(5, 1, 0, None)], ids=["plain", "chunk-outer", "layer-outer"]
)
def test_packed_rows_have_the_loss_and_gradients_of_single_ones(strategy):
    """Also on the long-context strategies, whose chunks cut through examples."""
    examples = examples_of(SIZES)
    packed, single = Examples(examples, 16), Examples(examples, 16, pack=False)
    assert packed.rows() == 5 < single.rows()
    model = tiny(0).train()
    want = gradients(model, Step(Plain()), [row for row, _ in single])
    got = gradients(model, Step(strategy), [row for row, _ in packed])
    assert got[1] == want[1] == sum(one.counted for one in examples)
    assert got[0] == pytest.approx(want[0], rel=1e-13)
    assert float((got[2] - want[2]).norm() / want[2].norm()) < 1e-13


def test_no_example_sees_another():
    """Other tokens in the first example leave the losses of the second as they were, to the bit."""
    first, other, second = examples_of([6, 6, 8], vocab=4)
    model = tiny(1)
    losses = []
    for one in (first, other):
        row = Examples([one, second], 16).row([0, 1])
        row.targets[:6] = IGNORED
        batch = collate([row])
        marks = batch.marks()
        objective = Causal()
        hidden = model.hidden(model.embed(batch.tokens, marks), marks, objective.mask(model, marks), length=16)
        losses.append(float(objective.loss(model, hidden, batch).total.detach()))
    assert losses[0] == losses[1]


def test_every_example_is_in_every_epoch_once_and_a_run_resumes():
    examples = examples_of(SIZES)
    stream = Examples(examples, 16, seed=3, epochs=2)
    items = list(stream)
    for number, (_, state) in enumerate(items):
        rest = list(stream.resume(json.loads(json.dumps(state))))
        assert [row.tokens.tolist() for row, _ in rest] == [row.tokens.tolist() for row, _ in items[number + 1 :]]
    for epoch in (0, 1):
        layout = stream._layout(epoch)
        assert sorted(number for row in layout for number in row) == list(range(len(SIZES)))
        assert all(sum(SIZES[number] for number in row) <= 16 for row in layout)
    assert stream._layout(0) != stream._layout(1)
    with pytest.raises(DataError, match="9 examples of up to 16 tokens for 15"):
        Examples(examples, 15)


def test_many_examples_fill_their_rows():
    sizes = np.random.default_rng(0).integers(2, 700, 3000).tolist()
    packed = Examples([Encoded([1] * size, [True] * size) for size in sizes], 1024, seed=0)
    assert sum(sizes) / (packed.rows() * 1024) > 0.97
