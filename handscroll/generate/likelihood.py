"""The likelihood of given continuations after given contexts, many at once, as multiple-choice tasks need it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.cache.cache import Cache
from handscroll.generate.check import check_length, declared, started
from handscroll.generate.prefill import hidden_chunks, prefill, prefill_chunk, shared_beginning
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.objectives.head import chunk_rows
from handscroll.text.tokenizer import Tokenizer

TOGETHER = 4096  # most tokens of one batch, including padding
WORTH = 128  # a shared context must save so many tokens: a separate forward costs about as much

Pair = tuple[Sequence[int], Sequence[int]]


class Likelihood(NamedTuple):
    """The natural log-probability of a continuation after its context, summed over its `tokens`.

    `greedy` says whether each token is the likeliest one of the model.
    """

    logprob: float
    greedy: bool
    tokens: int


class _Row(NamedTuple):
    """A pair with its number: context and continuation, which are not empty, and their declared length."""

    number: int
    context: list[int]
    continuation: list[int]
    length: int
    tables: int  # the key of the rotary tables

    @property
    def fed(self) -> list[int]:
        """The tokens to read: all except the last, whose prediction is not needed."""
        return self.context + self.continuation[:-1]


@torch.no_grad()
def loglikelihood(model: Model, pairs: Sequence[Pair], beyond: bool = False) -> list[Likelihood]:
    """The likelihood of every pair (context, continuation) of token ids, in order.

    The results are exact up to the rounding of batches. Rows of similar length are read together. A long beginning
    that several pairs share (examples before a question), and a long context of several continuations, are read once,
    and they share its keys and values. An empty context begins with the model's bos.

    Raises:
        CapacityError: a pair is longer than the context (unless `beyond`) or than a learned table. DataError: a
            continuation is empty, a context is empty and the model has no bos, or a token id is outside the vocabulary.
            ConfigError: the model does not read from left to right, or is an encoder-decoder.
    """
    model.spec.require("a likelihood", one_text=True, forward=True, head=True)
    rows = [_row(model, number, pair, beyond) for number, pair in enumerate(pairs)]
    found: dict[int, Likelihood] = {}
    able = model.spec.cached and not model.spec.recurrent
    for shared, family in _families(rows) if able else [(0, rows)]:
        found |= _family(model, family, _begin(model, family, shared))
    return [found[number] for number in range(len(rows))]


def split_pair(tokenizer: Tokenizer, context: str | Sequence[int], continuation: str | Sequence[int]) -> Pair:
    """The token ids of a context and of its continuation.

    Two texts are encoded together. The blanks at the end of the context go to the continuation, because a token often
    begins with its blank. The tokens after those of the context alone belong to the continuation. Where a token lies
    over the border ("th" and "e cat"), each text is encoded by itself, so that the continuation is scored from its
    first character on. (lm-eval counts the tokens of the context there too, and leaves some characters out.)
    """
    if not isinstance(context, str) or not isinstance(continuation, str):
        first = tokenizer.encode(context) if isinstance(context, str) else context
        if isinstance(continuation, str):
            continuation = tokenizer.encode(continuation, special=False, follows=bool(len(first)))
        return first, continuation
    before, _ = tokenizer.frame()
    kept = context.rstrip()
    rest = context[len(kept) :] + continuation
    first, ids = tokenizer.encode(kept, special=False), tokenizer.encode(kept + rest, special=False)
    if ids[: len(first)] != first:
        ids = first + tokenizer.encode(rest, special=False, follows=True)
    return [*before, *first], ids[len(first) :]


def _row(model: Model, number: int, pair: Pair, beyond: bool) -> _Row:
    context, continuation = started(model, number, pair[0]), list(pair[1])
    if not continuation:
        raise DataError(f"pair {number} has an empty continuation; give at least one token")
    started(model, number, continuation)  # refuses ids outside the vocabulary
    check_length(model, number, len(context), len(continuation), beyond)
    return _Row(number, context, continuation, *declared(model, len(context) + len(continuation)))


def _families(rows: Sequence[_Row]) -> list[tuple[int, list[_Row]]]:
    """Rows with the same rotary tables whose contexts begin alike, and how many tokens it is worth to read once for
    them; all others at the end, with 0. A row joins if the beginning loses no more than half by it."""
    families: list[tuple[int, list[_Row]]] = []
    for row in sorted(rows, key=lambda row: (row.tables, row.context)):
        # The last token of a context is read with its row, because the first new one is predicted from it.
        alike, most = 0, len(row.context) - 1
        shared, family = families[-1] if families else (0, [])
        if family and row.tables == family[0].tables:
            alike = min(shared, most, shared_beginning(family[0].context, row.context))
        if alike >= WORTH and 2 * alike >= shared:
            family.append(row)
            families[-1] = alike, family
        else:
            families.append((most, [row]))
    alone = [family[0] for _, family in families if len(family) == 1]
    return [*(one for one in families if len(one[1]) > 1), *([(0, alone)] if alone else [])]


def _begin(model: Model, rows: Sequence[_Row], shared: int) -> Cache | None:
    """A cache that holds the first `shared` tokens of the rows."""
    if not shared:
        return None
    cache = model.new_cache(shared)
    tokens, length = torch.tensor([rows[0].context[:shared]], device=model.device), max(row.length for row in rows)
    for _ in hidden_chunks(model, tokens, Marks.run(0, shared), cache, length, _chunk(model)):
        pass
    return cache


def _family(model: Model, rows: Sequence[_Row], start: Cache | None) -> dict[int, Likelihood]:
    """The likelihoods of rows that go on after what `start` holds."""
    before = 0 if start is None else start.length
    groups: dict[tuple[int, tuple[int, ...]], list[_Row]] = {}
    for row in rows:
        groups.setdefault((row.tables, tuple(row.context)), []).append(row)
    shared = [group for group in groups.values() if (len(group) - 1) * (len(group[0].context) - before) >= WORTH]
    known = {row.number for group in shared for row in group}
    found: dict[int, Likelihood] = {}
    for group in shared:
        found |= _after_one_context(model, group, start)
    for batch in _batches([row for row in rows if row.number not in known], before):
        found |= _whole(model, batch, start)
    return found


def _batches(rows: Sequence[_Row], before: int) -> Iterator[list[_Row]]:
    """Batches of rows with the same rotary tables and similar lengths, each of at most `TOGETHER` tokens after the
    first `before`."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (row.tables, len(row.fed))):
        if batch and (row.tables != batch[0].tables or (len(batch) + 1) * (len(row.fed) - before) > TOGETHER):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _whole(model: Model, rows: Sequence[_Row], start: Cache | None) -> dict[int, Likelihood]:
    """The likelihoods of rows, each read by itself after what `start` holds."""
    before = 0 if start is None else start.length
    tokens, marks = _padded([row.fed[before:] for row in rows], before, model.device)
    cache = model.new_cache(tokens.shape[1]) if start is None else start.branch(tokens.shape[1])
    length = max(row.length for row in rows)
    firsts = [len(row.context) - 1 - before for row in rows]
    lasts = [len(row.fed) - before for row in rows]
    return _scored(model, rows, _ends(hidden_chunks(model, tokens, marks, cache, length, _chunk(model)), firsts, lasts))


def _after_one_context(model: Model, rows: Sequence[_Row], start: Cache | None) -> dict[int, Likelihood]:
    """The likelihoods of continuations of one context, which is read once."""
    context, length = rows[0].context, max(row.length for row in rows)
    before = 0 if start is None else start.length
    rest = len(context) - before
    cache = model.new_cache(rest) if start is None else start.branch(rest)
    begin = torch.tensor([context[before:]], device=model.device)
    first = prefill(model, begin, Marks.run(before, rest), cache, length, _chunk(model))[0]
    fed = [row.continuation[:-1] for row in rows]
    parts = [[first] for _ in rows]
    if longest := max(map(len, fed)):
        # A continuation of one token has nothing left to read; its row reads that token, and the result is not used.
        tokens, marks = _padded([row.continuation[:-1] or row.continuation for row in rows], len(context), model.device)
        chunks = hidden_chunks(model, tokens, marks, cache.branch(longest), length, _chunk(model))
        for part, more in zip(parts, _ends(chunks, [0] * len(rows), list(map(len, fed))), strict=True):
            part.append(more)
    return _scored(model, rows, [torch.cat(part) for part in parts])


def _ends(chunks: Iterator[tuple[int, int, Tensor]], firsts: Sequence[int], lasts: Sequence[int]) -> list[Tensor]:
    """The hidden states (n, D) of every row from its `first` place to its `last`, without the end."""
    parts: list[list[Tensor]] = [[] for _ in firsts]
    for begin, end, hidden in chunks:
        for row, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            parts[row].append(hidden[row, max(first - begin, 0) : max(min(last, end) - begin, 0)].clone())
    return [torch.cat(part) for part in parts]


def _scored(model: Model, rows: Sequence[_Row], states: Sequence[Tensor]) -> dict[int, Likelihood]:
    """The likelihoods from the hidden states that predict each token of the continuations."""
    logprobs, likeliest = logprobs_of(
        model, torch.cat(list(states)), torch.tensor([token for row in rows for token in row.continuation])
    )
    sizes = [len(row.continuation) for row in rows]
    each = zip(rows, logprobs.split(sizes), likeliest.split(sizes), strict=True)
    return {row.number: Likelihood(float(some.sum()), bool(same.all()), len(some)) for row, some, same in each}


def logprobs_of(model: Model, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability (T,) of `targets` (T,) after the hidden states (T, D), and whether each is the likeliest."""
    targets = targets.to(hidden.device)
    count = chunk_rows(model.config.vocab, len(targets), hidden.device.type)
    logprobs, likeliest = [], []
    for part, wanted in zip(hidden.split(count), targets.split(count), strict=True):
        logits = finite(model.logits(part[None])[0])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprobs.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(dim=1))
        likeliest.append(logits.argmax(dim=1) == wanted)
    return torch.cat(logprobs), torch.cat(likeliest)


def _padded(rows: Sequence[Sequence[int]], start: int, device: torch.device) -> tuple[Tensor, Marks]:
    """Tokens (B, T), padded on the right, and their marks, which count from `start`."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row, device=device)
    if bool((lengths == longest).all()):
        return tokens, Marks.run(start, longest)
    return tokens, Marks.rows(torch.full_like(lengths, start), lengths)


def _chunk(model: Model) -> int:
    return prefill_chunk(model.device)
