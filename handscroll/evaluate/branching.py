"""One reading for many questions: a text is read once, and each question goes on from it in a branch of its own.

A branch reads the keys and values of its text in place, without a copy. It is exact for every model that reads forward:
a windowed layer hands on the tokens of its window, a recurrent one its state, and quantised weights stay as they lie.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.cache.cache import Cache
from handscroll.generate.check import declared
from handscroll.generate.prefill import hidden_chunks, prefill_chunk
from handscroll.lm import LM
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks

Ids = Sequence[int] | Sequence[Sequence[int]] | Tensor
"""Token ids (T,), or those of several rows (B, T)."""
OnRead = Callable[[int], None]


@dataclass
class Tally:
    """The tokens that a model has processed, those of every row counted; `on_read` is called with each chunk's."""

    tokens: int = 0
    on_read: OnRead | None = None

    def add(self, count: int) -> None:
        """Count the tokens of a chunk."""
        self.tokens += count
        if self.on_read is not None:
            self.on_read(count)


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text that a model has read, and from which more is read.

    `declared` is the length that the whole request declares. A prefix and its branches count their tokens in one
    `tally`.
    """

    model: Model
    cache: Cache
    declared: int
    tally: Tally = field(default_factory=Tally)

    @property
    def length(self) -> int:
        """Tokens of the text so far, in each row."""
        return self.cache.length

    def branch(self, capacity: int = 0) -> Self:
        """A prefix that goes on after this text, with room for `capacity` tokens.

        A branch of one row may go on with any number of rows. This prefix must not read on while a branch is in use.
        """
        return replace(self, cache=self.cache.branch(capacity))

    @torch.no_grad()
    def read(self, ids: Ids, last: int = 1) -> Tensor:
        """Read more tokens, the same number in every row; returns the hidden states (B, last, D) of the last ones.

        Raises:
            DataError: there are fewer than `last` tokens. CapacityError: a position is past a learned table.
        """
        tokens = torch.as_tensor(ids, dtype=torch.long, device=self.model.device)
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        count = tokens.shape[1]
        if not 1 <= last <= count:
            raise DataError(f"the states of the last {last} tokens are asked for, but {count} tokens are read")
        marks, tail = Marks.run(self.length, count), []
        chunks = hidden_chunks(self.model, tokens, marks, self.cache, self.declared, prefill_chunk(tokens.device))
        for first, end, hidden in chunks:
            wanted = max(first, count - last)
            if wanted < end:
                tail.append(hidden[:, wanted - first :])
            self.tally.add(len(tokens) * (end - first))
        return torch.cat(tail, dim=1)


def begin(model: Model, reach: int, capacity: int = 0, on_read: OnRead | None = None) -> Prefix:
    """The beginning of a text that will have at most `reach` tokens with everything that branches add.

    `on_read(count)` is called after every chunk of `count` tokens.

    Raises:
        ConfigError: the model does not read from left to right, reads a source, or has no head for tokens.
    """
    model.spec.require("a reading that several questions share", forward=True, one_text=True, head=True)
    return Prefix(model, model.new_cache(capacity), declared(model, reach)[0], Tally(on_read=on_read))


def read(lm: LM, ids: Sequence[int] | Tensor, reach: int | None = None) -> Prefix:
    """Read a text once, for questions that branch off it.

    `reach` is the length of text, question and answer together (default: that of the text). A scaling that depends on
    the length is fixed by it, so it must be the same for readings that are compared.

    >>> prefix = read(lm, lm.encode(book), reach=8192)
    >>> answer_by_argmax(prefix.branch(), question, answer)

    Raises:
        DataError: there are no tokens, or more than `reach`. ConfigError: as `begin`.
    """
    count = len(ids) if not isinstance(ids, Tensor) else ids.shape[-1]
    if not 0 < count <= (reach or count):
        raise DataError(f"a text of {count} tokens cannot be read for {reach} tokens; give a text, and room for it")
    prefix = begin(lm.model, reach or count, count)
    prefix.read(ids)
    return prefix


def matches(branch: Prefix, questions: Ids, answers: Ids) -> list[bool]:
    """Whether greedy decoding after each question (B, q) writes the whole answer (B, a); one forward decides all rows.

    Question and answer are read together, and each token of the answer must be the likeliest one where it is predicted.
    That is the same as a greedy match: as long as decoding was right it has read the same tokens, and one wrong token
    ends both. The branch has read question and answer afterwards, except the last token.

    Raises:
        DataError: a question or an answer is empty.
    """
    asked, wanted = (torch.as_tensor(ids, dtype=torch.long) for ids in (questions, answers))
    asked, wanted = (ids[None] if ids.dim() == 1 else ids for ids in (asked, wanted))
    if not asked.shape[1] or not wanted.shape[1]:
        raise DataError(
            f"a question of {asked.shape[1]} tokens with an answer of {wanted.shape[1]} decides nothing: give at least "
            "one token each"
        )
    hidden = branch.read(torch.cat([asked, wanted[:, :-1]], dim=1), wanted.shape[1])
    return (likeliest(branch.model, hidden) == wanted).all(dim=1).tolist()


def answer_by_argmax(branch: Prefix, question: Ids, answer: Ids) -> bool:
    """`matches` for one question; the branch is used up."""
    return matches(branch, question, answer)[0]


def greedy(branch: Prefix, question: Sequence[int] | Tensor, most: int, ends: Collection[int] = ()) -> list[int]:
    """The likeliest continuation after a question, at most `most` tokens; a token of `ends` ends it and is left out."""
    state, found = branch.read(question), []
    while len(found) < most:
        token = int(likeliest(branch.model, state))
        if token in ends:
            break
        found.append(token)
        if len(found) < most:
            state = branch.read([token])
    return found


@torch.no_grad()
def likeliest(model: Model, hidden: Tensor) -> Tensor:
    """The likeliest next token (B, T) after hidden states (B, T, D), on the CPU."""
    return finite(model.logits(hidden)).argmax(dim=-1).cpu()
