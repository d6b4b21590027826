"""Labels of documents, by a classifier."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.models.model import Model
from handscroll.models.sentences import TOKENS, groups
from handscroll.nn.marks import Marks


@torch.no_grad()
def classified(model: Model, rows: Sequence[Sequence[int]], tokens: int = TOKENS) -> Float[Tensor, "N L"]:
    """Probabilities of `model.config.labels` for each row of tokens, in float32 on the CPU.

    Rows are read in batches of similar length with at most `tokens` tokens; they do not influence each other.

    Raises:
        ConfigError: the model is not a classifier.
        DataError: a row has no tokens.
        CapacityError: a row exceeds the context.
    """
    labels = model.spec.labels
    if not labels:
        raise ConfigError(
            f"this {model.config.family} is not a classifier: train one with objective 'classify' (docs/models.md)"
        )
    for number, row in enumerate(rows):
        if not len(row):
            raise DataError(f"text {number} has no tokens")
        if len(row) > model.config.context:
            raise CapacityError(
                f"text {number} has {len(row)} tokens, the model's context is {model.config.context}; shorten it, or "
                f"lengthen the model (handscroll extend ... --to {len(row)})"
            )
    found = torch.empty(len(rows), len(labels))
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for group in groups(order, [len(row) for row in rows], tokens):
        lengths = torch.tensor([len(rows[number]) for number in group])
        ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
        at = torch.zeros_like(ids, dtype=torch.bool)
        for place, number in enumerate(group):
            ids[place, : len(rows[number])] = torch.as_tensor(rows[number])
            at[place, 0 if model.spec.pool == "first" else len(rows[number]) - 1] = True
        ids, at, lengths = ids.to(model.device), at.to(model.device), lengths.to(model.device)
        marks = Marks.rows(torch.zeros_like(lengths), lengths)
        hidden = model.hidden(model.embed(ids, marks), marks, model.mask(), length=ids.shape[1])
        logits = model.classify(hidden, marks, at)
        found[group] = logits.float().softmax(dim=-1).cpu()
    return found
