"""Packed examples on the strategies for long rows: the gradients of rows with one example each, and no leak."""

import numpy as np
import pytest
import torch

from handscroll.data.batch import collate
from handscroll.data.encoded import Encoded
from handscroll.data.row import IGNORED
from handscroll.objectives.causal import Causal
from handscroll.tasks.batches import joined, packed
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


@pytest.mark.parametrize(
    "strategy", [Plain(), Staged(5, 0, 0, None), Staged(5, 1, 0, None)], ids=["plain", "chunk-outer", "layer-outer"]
)
def test_packed_rows_have_the_loss_and_gradients_of_single_ones(strategy):
    """Also where a chunk's edge cuts through an example."""
    examples = examples_of([7, 3, 12, 5, 9, 2, 16, 4, 6])
    rows = [one.row() for one in examples]
    together = packed(rows, 16)
    assert len(together) < len(rows)
    model = tiny(0).train()
    want = gradients(model, Step(Plain()), rows)
    got = gradients(model, Step(strategy), together)
    assert got[1] == want[1] == sum(one.counted for one in examples)
    assert got[0] == pytest.approx(want[0], rel=1e-13)
    assert float((got[2] - want[2]).norm() / want[2].norm()) < 1e-13


def test_no_example_sees_another():
    """Other tokens in the first example leave the losses of the second as they were, to the bit."""
    first, other, second = examples_of([6, 6, 8])
    model = tiny(1)
    losses = []
    for one in (first, other):
        row = joined([one.row(), second.row()])
        row.targets[:6] = IGNORED
        batch = collate([row])
        marks = batch.marks()
        objective = Causal()
        hidden = model.hidden(model.embed(batch.tokens, marks), marks, objective.mask(model, marks), length=16)
        losses.append(float(objective.loss(model, hidden, batch).total.detach()))
    assert losses[0] == losses[1]
