"""Does packing leak? Documents that share a row must not change each other's logits or losses.

Packed training fails in silence: with a lost mask, positions that go on or a target across the seam the loss still
falls. The test needs no knowledge of the model or of the packing. It changes one document at a time, first its tokens
and then its size, and compares what the model says of all the others, token by token.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from handscroll.base.errors import DataError
from handscroll.data.batch import collate
from handscroll.data.pack import pack
from handscroll.data.row import IGNORED
from handscroll.evaluate.certificate import certify
from handscroll.models.model import Model
from handscroll.objectives.objective import Objective

Packing = Callable[[Sequence[list[int]]], Sequence[Tensor]]
"""What a model says of documents that are packed together: for each one a tensor (tokens, ...) of logits and losses."""
Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
TOLERANCE = 1e-4  # of the largest number in the outputs; kernels that tile a row otherwise round otherwise


@dataclass(frozen=True)
class Leak:
    """Document `into` changed at its token `at` when document `source` did, by at most `change`.

    `by` says what changed in the source, its tokens or its size. `loss` says that only losses changed: a target lies
    across the seam.
    """

    source: int
    into: int
    by: Literal["tokens", "size"]
    change: float
    at: int
    loss: bool

    def __str__(self) -> str:
        what = "the losses" if self.loss else "the outputs"
        return (
            f"the {self.by} of document {self.source} change {what} of document {self.into}, first at its token "
            f"{self.at}, by up to {self.change:.2g}"
        )


def leaks(
    packing: Packing, documents: Sequence[list[int]], tolerance: float = TOLERANCE, sizes: bool = True, seed: int = 0
) -> list[Leak]:
    """Every leak between documents; empty if there is none.

    `sizes` also shortens each document by a token. Positions that go on from one document to the next show then, unless
    they only count by their differences (rotary ones do, and no harm is done).

    Raises:
        DataError: there are fewer than two documents of at least 3 tokens, or the outputs say nothing of them.
    """
    if len(documents) < 2 or min(map(len, documents)) < 3:
        raise DataError("a leak needs two documents at least, of 3 tokens or more")
    draw = random.Random(seed)
    before, found = packing(documents), list[Leak]()
    _check_shapes(before, documents)
    symbols = sorted({token for document in documents for token in document})
    for source, document in enumerate(documents):
        other = [draw.choice([token for token in symbols if token != was]) for was in document]
        changed: list[tuple[Literal["tokens", "size"], list[int]]] = [("tokens", other)]
        if sizes:
            changed.append(("size", document[:-1]))
        for by, new in changed:
            after = packing([*documents[:source], new, *documents[source + 1 :]])
            if by == "tokens" and _change(before[source], after[source], tolerance) is None:
                raise DataError(
                    f"other tokens in document {source} change nothing of what is said of it, so the test cannot see a "
                    "leak: give the outputs of each document in the order of the documents"
                )
            for into in range(len(documents)):
                change = None if into == source else _change(before[into], after[into], tolerance)
                if change is not None:
                    found.append(Leak(source, into, by, *change))
    return found


def drawn(vocab: int, count: int = 4, size: int = 24, avoid: Collection[int] = (), seed: int = 0) -> list[list[int]]:
    """Random documents of about `size` tokens below `vocab`, without the tokens of `avoid` (the special ones)."""
    draw = random.Random(seed)
    known = sorted(set(range(vocab)) - set(avoid))
    return [[draw.choice(known) for _ in range(max(3, size - 3 * number))] for number in range(count)]


def ours(model: Model, objective: Objective, row: int) -> Packing:
    """The packing of our own training: rows of `row` tokens (`data/pack.py`), the mask and the targets of an objective.

    Of a model that reads in both directions the logits are compared, as its losses hide tokens at random.
    """
    model.spec.require("a test of packed rows", one_text=True, head=True)

    @torch.no_grad()
    def run(documents: Sequence[list[int]]) -> list[Tensor]:
        arrays = [np.array(document) for document in documents]
        if sum(map(len, arrays)) > row:
            raise DataError(f"documents of {sum(map(len, arrays))} tokens do not fit into a row of {row}")
        batch = collate(list(pack(arrays, row))).to(model.device)
        marks, mask = batch.marks(), objective.mask(model, batch.marks())
        logits = model.logits(model.hidden(model.embed(batch.tokens, marks), marks, mask, length=marks.length))[0]
        losses = torch.zeros(len(logits)) if model.spec.both_ways else _losses(logits, batch.targets[0])
        said = torch.cat([logits, losses[:, None].to(logits)], dim=1)[: sum(map(len, arrays))]
        return list(said.split([len(array) for array in arrays]))

    return run


def foreign(model: Callable[..., Any], collator: Collator) -> Packing:
    """Any `transformers` model and collator: features with `input_ids` in, a batch for the model out.

    The model is called as it is given. Many keep a cache unless told not to, and then do not see from positions alone
    that a row is packed: `partial(model, use_cache=False)` is how a trainer calls them.

    The documents are looked for in the batch, so the collator may put other tokens between them. A label counts for the
    document of its own token, and is predicted by the token before it, as these models do.

    Raises (when it runs):
        DataError: a document is not whole in one row of the batch.
    """

    @torch.no_grad()
    def run(documents: Sequence[list[int]]) -> list[Tensor]:
        batch = dict(collator([{"input_ids": list(document)} for document in documents]))
        labels = batch.pop("labels", None)
        given = {name: value for name, value in batch.items() if value is not None}
        tokens, logits = torch.as_tensor(given["input_ids"]), model(**given).logits
        losses = torch.zeros(tokens.shape)
        if labels is not None:
            for row, scores, wanted in zip(losses, logits, torch.as_tensor(labels), strict=True):
                row[1:] = _losses(scores[:-1], wanted[1:])
        said = torch.cat([logits, losses[..., None].to(logits)], dim=-1)
        return [said[row, first : first + len(one)] for one, (row, first) in _places(tokens, documents)]

    return run


def leak_record(model: str, packing: Packing, documents: Sequence[list[int]], label: str) -> dict[str, Any]:
    """The JSON record of a test."""
    found = leaks(packing, documents)
    ids = [token for document in documents for token in document]
    return {
        "kind": "leak",
        "model": model,
        "label": label,
        "documents": [len(document) for document in documents],
        "tolerance": TOLERANCE,
        "leaks": [asdict(leak) for leak in found],
        "said": [str(leak) for leak in found],
        "certificate": certify(ids, len(ids)).record(),
    }


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, 0 where it does not count."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")


def _places(tokens: Tensor, documents: Sequence[list[int]]) -> list[tuple[list[int], tuple[int, int]]]:
    """Row and first column of each document."""
    rows, found = tokens.tolist(), []
    for number, document in enumerate(documents):
        size = len(document)
        starts = (
            (n, first)
            for n, row in enumerate(rows)
            for first in range(len(row) - size + 1)
            if row[first : first + size] == document
        )
        place = next(starts, None)
        if place is None:
            raise DataError(
                f"document {number} of {size} tokens is not whole in a row of the batch ({len(rows)} rows of "
                f"{len(rows[0])} tokens): give shorter documents, or a collator that does not cut"
            )
        found.append((document, place))
    return found


def _change(before: Tensor, after: Tensor, tolerance: float) -> tuple[float, int, bool] | None:
    """The largest change, the first token that changed, and whether only losses did; None if there is none."""
    size = min(len(before), len(after))
    apart = (before[:size].double() - after[:size].double()).abs().flatten(1)
    scale = max(1.0, float(before.abs().max()))
    changed = apart > tolerance * scale
    if not bool(changed.any()):
        return None
    first = int(changed.any(dim=1).nonzero()[0])
    return float(apart.max()), first, not bool(changed[:, :-1].any())


def _check_shapes(said: Sequence[Tensor], documents: Sequence[list[int]]) -> None:
    if [len(one) for one in said] != [len(document) for document in documents]:
        raise DataError(
            f"outputs of {[len(one) for one in said]} tokens for documents of {list(map(len, documents))}: give one "
            "output for each token of each document"
        )
