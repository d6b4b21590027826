"""What the head of a model says of texts: numbers and probabilities of labels, labels of tokens, answers to questions.

A text longer than the context is refused unless it may be read in windows, which is an approximation: no window sees
another. Nothing is cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from handscroll.base.errors import ConfigError, DataError
from handscroll.models.documents import head_of, judged
from handscroll.models.model import Model
from handscroll.text.framed import Framed, Text, several
from handscroll.text.tokenizer import Tokenizer

OVERLAP = 0.25  # of a window, shared with the next one, where tokens are judged
LONGEST = 64  # tokens of an answer


class Tag(NamedTuple):
    """The label of one token: characters `start` to `end` of the text, its likeliest label and the probability."""

    start: int
    end: int
    text: str
    label: str
    score: float


class Answer(NamedTuple):
    """A part of a text that answers a question. `score` is the sum of the two logits of its ends."""

    start: int
    end: int
    text: str
    score: float


def scored(model: Model, tokenizer: Tokenizer, texts: Sequence[Text], windows: bool = False) -> Float[Tensor, "N L"]:
    """The outputs of a head for whole texts, one a label, as they are (logits, rewards, regression values).

    With `windows`, those of a long text are the mean over its windows, weighted by their tokens.
    """
    head_of(model, "text")
    rows, owners = several(tokenizer, texts, model.config.context, windows)
    outputs = judged(model, rows)
    found = torch.zeros(len(texts), model.spec.head.outputs)  # type: ignore[union-attr]
    weights = torch.zeros(len(texts))
    for row, owner, output in zip(rows, owners, outputs, strict=True):
        found[owner] += len(row.ids) * output
        weights[owner] += len(row.ids)
    return found / weights[:, None]


def probabilities(
    model: Model, tokenizer: Tokenizer, texts: Sequence[Text], windows: bool = False
) -> Float[Tensor, "N L"]:
    """The probabilities of the labels: they add up to 1, or each stands alone where several labels may be right.

    Raises:
        ConfigError: the head gives plain numbers.
    """
    head = head_of(model, "text")
    if head.problem == "number":
        raise ConfigError(
            f"the head of this model gives {head.words}, and no probabilities of labels: use lm.scores(texts)"
        )
    outputs = scored(model, tokenizer, texts, windows)
    return outputs.sigmoid() if head.problem == "several" else outputs.softmax(dim=-1)


def tagged(model: Model, tokenizer: Tokenizer, texts: Sequence[str], windows: bool = False) -> list[list[Tag]]:
    """For each text the label of every token, in order; special tokens have none.

    In windows, each token is judged in the one where it stands farthest from an edge.
    """
    head = head_of(model, "tokens")
    rows, owners = several(tokenizer, texts, model.config.context, windows, _overlap(model, windows))
    outputs = judged(model, rows)
    chances = [part.sigmoid() if head.problem == "several" else part.softmax(dim=-1) for part in outputs]
    best: list[dict[int, tuple[int, tuple[int, int], Tensor]]] = [{} for _ in texts]
    for row, owner, chance in zip(rows, owners, chances, strict=True):
        inside = [at for at, part in enumerate(row.parts) if part is not None]
        for number, at in enumerate(inside):
            room = min(number, len(inside) - 1 - number)
            known = best[owner].get(row.first + number)
            if known is None or room > known[0]:
                best[owner][row.first + number] = (room, row.spans[at], chance[at])
    return [
        [_tag(text, span, chance, head.labels) for _, (_, span, chance) in sorted(found.items())]
        for text, found in zip(texts, best, strict=True)
    ]


def _tag(text: str, span: tuple[int, int], chance: Tensor, labels: tuple[str, ...]) -> Tag:
    number, span = int(chance.argmax()), _trimmed(text, span)
    return Tag(*span, text[slice(*span)], labels[number], float(chance[number]))


def _trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the blanks around it, which many tokenizers count to the word behind them."""
    first, last = span
    while first < last and text[first].isspace():
        first += 1
    while first < last and text[last - 1].isspace():
        last -= 1
    return first, last


def answered(
    model: Model, tokenizer: Tokenizer, question: str, text: str, count: int = 1, windows: bool = False
) -> list[Answer]:
    """The `count` best answers to a question that stand in a text, of at most 64 tokens each, best first.

    With `windows` a long text is read in windows that overlap, and the best answers of all of them are taken; those of
    different windows compete by their logits.

    Raises:
        ConfigError: the model has no head for answers.
    """
    head_of(model, "answer")
    if count < 1:
        raise ConfigError(f"count is {count}: ask for at least one answer")
    rows, _ = several(tokenizer, [(question, text)], model.config.context, windows, _overlap(model, windows) // 2)
    found: dict[tuple[int, int], float] = {}
    for row, output in zip(rows, judged(model, rows), strict=True):
        for span, score in _spans(row, output):
            span = _trimmed(text, span)
            found[span] = max(score, found.get(span, score))
    if not found:
        raise DataError("the text has no tokens in which an answer could stand")
    best = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:count]
    return [Answer(*span, text[slice(*span)], score) for span, score in best]


def _spans(row: Framed, output: Float[Tensor, "T 2"]) -> list[tuple[tuple[int, int], float]]:
    """The likeliest spans of a row as (characters, score): of the 20 best beginnings the best ends behind them."""
    inside = torch.tensor([part == 1 for part in row.parts])
    if not bool(inside.any()):
        return []
    starts, ends = output.masked_fill(~inside[:, None], float("-inf")).unbind(dim=1)
    found = []
    for first in starts.topk(min(20, int(inside.sum()))).indices.tolist():
        last = first + int(ends[first : first + LONGEST].argmax())
        found.append(((row.spans[first][0], row.spans[last][1]), float(starts[first] + ends[last])))
    return found


def _overlap(model: Model, windows: bool) -> int:
    return int(OVERLAP * model.config.context) if windows else 0


def entities(tags: Sequence[Tag], text: str) -> list[Tag]:
    """Tags of one text joined to names: tokens in a row whose labels differ only in B- and I- (and without "O").

    A label B- begins a new name. The score is the lowest of its tokens.
    """
    found: list[Tag] = []
    before = None
    for tag in tags:
        kind, begins = _kind(tag.label), tag.label.startswith(("B-", "S-", "U-"))
        if kind == "O":
            before = None
            continue
        if before == kind and not begins:
            last = found.pop()
            joined = Tag(last.start, tag.end, text[last.start : tag.end], kind, min(last.score, tag.score))
            found.append(joined)
        else:
            found.append(tag._replace(label=kind))
        before = kind
    return found


def _kind(label: str) -> str:
    return label[2:] if label[1:2] == "-" else label
