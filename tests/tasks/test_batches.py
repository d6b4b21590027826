"""Updates of whole examples: each example once an epoch, packed without seeing each other, resumed exactly."""

import itertools

import numpy as np
import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.data.batch import collate
from handscroll.data.row import IGNORED, Row
from handscroll.objectives.causal import NextToken
from handscroll.tasks.batches import ExampleUpdates, joined, packed
from tests.models.heads import PLAIN


def example(number: int, size: int) -> Row:
    tokens = np.arange(size) + 10 * number + 5
    return Row(tokens, np.where(np.arange(size) < size - 1, np.roll(tokens, -1), IGNORED), 0, 0)


EXAMPLES = [example(number, size) for number, size in enumerate((3, 5, 2, 6, 4, 7, 1, 3))]


def test_every_example_comes_once_an_epoch_and_a_run_resumes_exactly():
    stream = ExampleUpdates(EXAMPLES, 4, 8, 0, "x")
    updates = list(itertools.islice(stream, 4))
    seen = [[t for batch in update for t in batch.tokens.flatten().tolist()] for update, _ in updates]
    every = sorted(token for row in EXAMPLES for token in row.tokens.tolist())
    assert sorted(seen[0] + seen[1]) == every == sorted(seen[2] + seen[3]) and seen[:2] != seen[2:]
    again = next(stream.resume(updates[1][1]))[0]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(again, updates[2][0], strict=True))
    assert all(batch.tokens.shape[1] <= 8 for update, _ in updates for batch in update)


def test_packed_examples_have_the_loss_of_each_alone():
    model, objective = PLAIN["llama"].build(torch.float64), None
    objective = NextToken().objective(model)

    def loss(row: Row) -> float:
        batch = collate([row])
        marks = batch.marks()
        hidden = model.hidden(model.embed(batch.tokens, marks), marks, objective.mask(model, marks), length=16)
        return objective.loss(model, hidden, batch).total.item()

    examples = [example(number, size) for number, size in enumerate((3, 5, 2, 6))]
    together = sum(loss(row) for row in packed(examples, 16))
    assert together == pytest.approx(sum(loss(row) for row in examples), rel=1e-12)
    assert len(packed(examples, 16)) == 1 and len(packed(examples, 8)) == 2


def test_rows_that_have_segments_of_their_own_keep_them_apart():
    two = joined([example(0, 2), example(1, 3)])
    both = joined([two, example(2, 2)])
    assert both.segment is not None and both.segment.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert both.positions is not None and both.positions.tolist() == [0, 1, 0, 1, 2, 0, 1]


def test_examples_are_never_cut():
    with pytest.raises(ConfigError, match="never cut"):
        ExampleUpdates(EXAMPLES, 4, 6, 0, "x")
