"""One vector a text: the hidden states of an encoder, pooled (Reimers & Gurevych 2019, "Sentence-BERT")."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.models.model import Model
from handscroll.nn.marks import PADDING, Marks

POOLINGS = ("mean", "cls")
TOKENS = 8192  # of a batch, padding included


@torch.no_grad()
def pooled(
    model: Model, rows: Sequence[Sequence[int]], pooling: str = "mean", tokens: int = TOKENS
) -> Float[Tensor, "N D"]:
    """The mean of a row's hidden states (special tokens included), or the first one ("cls"); float32 on the CPU.

    Rows are read in batches of similar length, of at most `tokens` tokens; they do not influence each other.

    Raises:
        ConfigError: a causal model, whose tokens have not seen what follows them; an unknown pooling.
        DataError: a row without tokens. CapacityError: a row past the position table.
    """
    if not model.spec.both_ways:
        raise ConfigError(
            f"a {model.config.family} is causal: its tokens have not seen what follows them, so their states are no "
            "vector of the text; take an encoder (bert, roberta)"
        )
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling '{pooling}': allowed are {' and '.join(POOLINGS)}")
    empty = next((number for number, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise DataError(f"text {empty} has no tokens")
    found = torch.empty(len(rows), model.config.width)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for group in groups(order, [len(row) for row in rows], tokens):
        lengths = torch.tensor([len(rows[number]) for number in group])
        ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
        for place, number in enumerate(group):
            ids[place, : len(rows[number])] = torch.as_tensor(rows[number])
        ids, lengths = ids.to(model.device), lengths.to(model.device)
        marks = Marks.rows(torch.zeros_like(lengths), lengths)
        hidden = model.hidden(model.embed(ids, marks), marks, model.mask(), length=ids.shape[1]).float()
        if pooling == "cls":
            found[group] = hidden[:, 0].cpu()
        else:
            real = (marks.tensors(ids.device)[0] != PADDING).unsqueeze(-1)
            found[group] = (hidden.masked_fill(~real, 0.0).sum(dim=1) / lengths[:, None]).cpu()
    return found


def framed(
    model: Model,
    texts: Sequence[Sequence[int]],
    frame: tuple[Sequence[int], Sequence[int]],
    pooling: str = "mean",
    windows: bool = False,
) -> Float[Tensor, "N D"]:
    """`pooled` of texts between the special tokens of `frame`; one that is too long is read in `windows`, if at all.

    Windows are of nearly equal length, each within its own frame; their vectors are averaged, weighted by tokens.

    Raises:
        CapacityError: a text is longer than the context, without `windows`. What `pooled` raises.
    """
    before, after = frame
    rows: list[list[int]] = []
    owner: list[int] = []
    for number, ids in enumerate(texts):
        whole = len(before) + len(ids) + len(after)
        if whole > model.config.context and not windows:
            raise CapacityError(
                f"text {number} has {whole} tokens, the model's context is {model.config.context}; shorten it, give "
                "windows=True (read in windows, their vectors averaged), or lengthen the model "
                f"(handscroll extend ... --to {whole})"
            )
        parts = evenly(ids, model.config.context - len(before) - len(after))
        rows += [[*before, *part, *after] for part in parts]
        owner += [number] * len(parts)
    vectors, owners = pooled(model, rows, pooling), torch.tensor(owner, dtype=torch.int64)
    weights = torch.tensor([float(len(row)) for row in rows])
    found = torch.zeros(len(texts), vectors.shape[1]).index_add_(0, owners, vectors * weights[:, None])
    return found / torch.zeros(len(texts)).index_add_(0, owners, weights)[:, None]


def evenly(ids: Sequence[int], most: int) -> list[Sequence[int]]:
    """`ids` in as few runs of at most `most` as there can be, of nearly equal length."""
    count = max(1, -(-len(ids) // most))
    edges = [len(ids) * number // count for number in range(count + 1)]
    return [ids[a:b] for a, b in pairwise(edges)]


def groups(order: list[int], lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Runs of `order` (by length) that are at most `tokens` when padded to their longest, one row at least."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[number] > tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
