"""What the head of a model says of rows of tokens: one row of numbers a text, or one a token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.models.model import Model
from handscroll.models.sentences import TOKENS, groups
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.text.framed import Framed


def head_of(model: Model, *kinds: str) -> HeadSpec:
    """The head of a model, of one of the `kinds` (`HeadSpec.kind`).

    Raises:
        ConfigError: the model has another head, or none.
    """
    head, family = model.spec.head, model.config.family
    if head is not None and head.kind in kinds:
        return head
    wanted = " or ".join(HeadSpec.model_construct(kind=kind, labels=()).name for kind in kinds)
    if head is None:
        own = "has a head for tokens, and no head" if model.spec.predicts else "is a bare model, without a head"
        raise ConfigError(
            f"this {family} {own} for {wanted}: it is not a classifier. Load a model that has one, or train one with "
            "objective 'classify' (docs/models.md)"
        )
    raise ConfigError(f"this {family} has no head for {wanted}; its head: {head.words}")


@torch.no_grad()
def judged(model: Model, rows: Sequence[Framed], tokens: int = TOKENS) -> list[Tensor]:
    """The outputs of the head for each row, in float32 on the CPU: (N,) for a text, (T, N) for its tokens.

    Rows are read in batches of similar length with at most `tokens` tokens; they do not influence each other.
    """
    head = head_of(model, "text", "tokens", "answer")
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    for group in groups(order, [len(row.ids) for row in rows], tokens):
        lengths = torch.tensor([len(rows[number].ids) for number in group])
        ids, kinds = (torch.zeros(len(group), int(lengths.max()), dtype=torch.int64) for _ in range(2))
        for place, number in enumerate(group):
            size = len(rows[number].ids)
            ids[place, :size], kinds[place, :size] = torch.tensor(rows[number].ids), torch.tensor(rows[number].kinds)
        steps = torch.arange(ids.shape[1])
        index = torch.where(steps < lengths[:, None], steps, -1)
        here = [tensor.to(model.device) for tensor in (ids, index, kinds)]
        marks = Marks.of(here[1], kinds=here[2])
        hidden = model.hidden(model.embed(here[0], marks), marks, model.mask(), length=ids.shape[1])
        if head.kind == "text":
            at = torch.zeros_like(ids, dtype=torch.bool)
            at[torch.arange(len(group)), _read_at(ids, index, head)] = True
            outputs = list(model.classify(hidden, marks, at.to(model.device)).float().cpu())
        else:
            outputs = [row[:size] for row, size in zip(model.judge(hidden).float().cpu(), lengths, strict=True)]
        for number, output in zip(group, outputs, strict=True):
            found[number] = finite(output)
    return found


def _read_at(ids: Tensor, index: Tensor, head: HeadSpec) -> Tensor:
    """The place (B,) of each row whose state is read; the last one passes over padding tokens of the text itself."""
    if head.pool != "last":
        return torch.zeros(len(ids), dtype=torch.int64)
    real = index if head.pad is None else torch.where(ids == head.pad, 0, index)
    return real.amax(dim=1).clamp_min(0)
