"""Sentence vectors: the pooled hidden states of an encoder (Reimers & Gurevych 2019, "Sentence-BERT")."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError, nearest
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import PADDING, Marks

POOLINGS = ("cls", "max", "mean", "sqrt", "last")  # several joined by "+" are put one after the other
TOKENS = 8192  # most tokens of a batch, including padding
SHORT = 2048  # where others go on between two batches


@torch.no_grad()
def pooled(
    model: Model,
    rows: Sequence[Sequence[int]],
    pooling: str = "mean",
    tokens: int = TOKENS,
    between: Callable[[], None] = lambda: None,
) -> Float[Tensor, "N D"]:
    """One vector a row, in float32 on the CPU, of its hidden states (with special tokens): their "mean", "max", the sum
    over the root of their number ("sqrt"), the first ("cls") or the last one ("last").

    Rows are read in batches of similar length with at most `tokens` tokens; they do not influence each other. `between`
    is called after every batch.

    Raises:
        ConfigError: the model is causal, so that only the last token has seen the whole text, or the pooling is
            unknown.
        DataError: a row has no tokens.
        CapacityError: a row exceeds the position table.
    """
    modes = pooling.split("+")
    if wrong := [mode for mode in modes if mode not in POOLINGS]:
        raise ConfigError(f"unknown pooling '{wrong[0]}': {nearest(wrong[0], POOLINGS)}")
    if not model.spec.both_ways and modes != ["last"]:
        raise ConfigError(
            f"a {model.config.family} is causal: its tokens have not seen what follows them, so only the state of the "
            "last one is a vector of the whole text (pooling 'last', if the model was trained so); or use an encoder"
        )
    empty = next((number for number, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise DataError(f"text {empty} has no tokens")
    found = torch.empty(len(rows), len(modes) * model.config.width)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for group in groups(order, [len(row) for row in rows], tokens):
        lengths = torch.tensor([len(rows[number]) for number in group])
        ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.int64)
        for place, number in enumerate(group):
            ids[place, : len(rows[number])] = torch.as_tensor(rows[number])
        ids, lengths = ids.to(model.device), lengths.to(model.device)
        marks = Marks.rows(torch.zeros_like(lengths), lengths)
        hidden = model.hidden(model.embed(ids, marks), marks, model.mask(), length=ids.shape[1]).float()
        real = (marks.tensors(ids.device)[0] != PADDING).unsqueeze(-1)
        found[group] = torch.cat([pool(hidden, real, lengths, mode) for mode in modes], dim=1).cpu()
        between()
    return finite(found)


def pool(hidden: Tensor, real: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """The vectors (B, D) of the hidden states (B, T, D); `real` (B, T, 1) are no padding."""
    if mode == "cls":
        return hidden[:, 0]
    if mode == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~real, -torch.inf).amax(dim=1)
    return hidden.masked_fill(~real, 0.0).sum(dim=1) / (lengths[:, None] ** (0.5 if mode == "sqrt" else 1.0))


def framed(
    model: Model,
    texts: Sequence[Sequence[int]],
    frame: tuple[Sequence[int], Sequence[int]],
    pooling: str = "mean",
    windows: bool = False,
    between: Callable[[], None] | None = None,
) -> Float[Tensor, "N D"]:
    """`pooled` for texts between the special tokens of `frame`; with `windows`, a text that is too long is read in
    windows.

    Windows have nearly equal length, each with its own frame. Their vectors are averaged, weighted by tokens. `between`
    is called after every few of them.

    Raises:
        CapacityError: a text is longer than the context, and `windows` is False. The errors of `pooled` are raised too.
    """
    before, after = frame
    rows: list[list[int]] = []
    owner: list[int] = []
    for number, ids in enumerate(texts):
        whole = len(before) + len(ids) + len(after)
        if whole > model.config.context and not windows:
            raise CapacityError(
                f"text {number} has {whole} tokens, the model's context is {model.config.context}; shorten it, give "
                "windows=True (it is read in windows, and their vectors are averaged), or lengthen the model "
                f"(handscroll extend ... --to {whole})"
            )
        parts = evenly(ids, model.config.context - len(before) - len(after))
        rows += [[*before, *part, *after] for part in parts]
        owner += [number] * len(parts)
    vectors = pooled(model, rows, pooling) if between is None else pooled(model, rows, pooling, SHORT, between)
    owners = torch.tensor(owner, dtype=torch.int64)
    weights = torch.tensor([float(len(row)) for row in rows])
    found = torch.zeros(len(texts), vectors.shape[1]).index_add_(0, owners, vectors * weights[:, None])
    return found / torch.zeros(len(texts)).index_add_(0, owners, weights)[:, None]


def evenly(ids: Sequence[int], most: int) -> list[Sequence[int]]:
    """Split `ids` into the fewest runs of at most `most` tokens, of nearly equal length."""
    count = max(1, -(-len(ids) // most))
    edges = [len(ids) * number // count for number in range(count + 1)]
    return [ids[a:b] for a, b in pairwise(edges)]


def groups(order: list[int], lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Split `order` (sorted by length) into groups of at most `tokens` tokens when padded, and at least one row."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[number] > tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
