"""Batched decoding: takes requests of different lengths and gives, at each step, the new token of every live row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.cache.cache import REWIND, Cache
from handscroll.cache.table import cache_of
from handscroll.generate.check import checked, declared
from handscroll.generate.chooser import Chooser, NewToken, check_stops, next_tokens
from handscroll.generate.prefill import prefill, prefill_chunk
from handscroll.generate.request import Request
from handscroll.generate.source import under_sources
from handscroll.generate.speculative import speculate
from handscroll.generate.stream import Decodes
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows that are read and continued together: their numbers and requests, and their declared length.

    With `alike` all rows continue one prompt, which is read once.
    """

    rows: tuple[int, ...]
    requests: tuple[Request, ...]
    length: int
    alike: bool = False

    @property
    def new(self) -> int:
        return max(request.sampling.max_tokens for request in self.requests)


def decode(model: Model, requests: Sequence[Request], tokenizer: Decodes | None = None) -> Iterator[list[NewToken]]:
    """Continue every request. Each item of the iterator is one step: the new tokens of the live rows.

    A row is one continuation; the `samples` of the first request are the first rows. A row ends with an end token
    (which is yielded), after max_tokens, at a stop string, or when nothing can follow under its constraint. Rows do not
    influence each other: each has its own random stream. Rows are decoded one group after the other if their
    length-dependent scaling, their caches or their max_tokens differ; so are samples and drafts. The cache is reserved
    once for prompt + max_tokens. For an encoder-decoder every prompt is a source, which is encoded as a whole; its new
    text begins with the model's start token, which is not yielded.

    `tokenizer` turns new tokens into text; stop strings need it.

    Limits: a finished row keeps its place in the batch until the last row ends, because compacting would copy the cache
    and hold it twice. A row equals the same row alone up to the rounding of batched matrix products.

    Raises (at the call, before any work): the errors of `checked`, and
        ConfigError: a request has stop strings, and there is no tokenizer.
    """
    for request in requests:
        check_stops(request, tokenizer)
    begun = [checked(model, request, number) for number, request in enumerate(requests)]
    return (step for group in _groups(model, begun) for step in _run(model, group, tokenizer))


@torch.no_grad()
def follow(model: Model, cache: Cache, choosers: Sequence[Chooser], length: int) -> Iterator[list[NewToken]]:
    """Continue prompts that all begin with the tokens that `cache` holds, each at least one token longer.

    The rows go on in a branch: `cache` is not written and serves again. Steps are those of `decode`. `length` is the
    declared length of all rows. Whoever iterates may end a row early by setting the `finish` of its chooser.
    """
    requests = tuple(chooser.request for chooser in choosers)
    group = _Group(tuple(range(len(requests))), requests, length)
    tokens, marks = _rest(requests, cache.length, model.device)
    own = cache.branch(marks.length + group.new - 1)
    hidden = prefill(model, tokens, marks, own, length, prefill_chunk(model.device))
    yield from _continue(model, hidden, own, choosers, group)


@torch.no_grad()
def read_prompt(model: Model, request: Request) -> tuple[Request, int, Tensor, Cache]:
    """Check a request whose cache is exact, and read its prompt.

    Returns the request with its checked ids, its declared length, the hidden state (1, 1, D) of the last token, and a
    cache that holds the prompt and has no room for more.
    """
    request = checked(model, request)
    length, _ = declared(model, len(request.prompt) + request.sampling.max_tokens)
    hidden, cache = _read(model, [request], length, 0)
    return request, length, hidden, cache


def _groups(model: Model, requests: Sequence[Request]) -> list[_Group]:
    """Group the rows that may be read together, in the order of their first appearance."""
    groups: dict[tuple[object, ...], _Group] = {}
    row = 0
    for request in requests:
        length, tables = declared(model, len(request.prompt) + request.sampling.max_tokens)
        rows = tuple(range(row, row + request.samples))
        row += request.samples
        if request.samples > 1 or request.draft is not None:
            groups["alike", rows] = _Group(rows, (request,) * len(rows), length, alike=True)
            continue
        key = (tables, request.sampling.max_tokens, request.policy, request.chunk, id(request.reading))
        before = groups.get(key, _Group((), (), 0))
        groups[key] = _Group(before.rows + rows, (*before.requests, request), max(length, before.length))
    return list(groups.values())


@torch.no_grad()
def _run(model: Model, group: _Group, tokenizer: Decodes | None) -> Iterator[list[NewToken]]:
    """Read the prompts of a group and continue them."""
    new, count, first = group.new, len(group.rows), group.requests[0]
    before = None
    if model.spec.encoder:
        prompts = [request.prompt for request in group.requests]
        model, before = under_sources(model, prompts[:1] if group.alike else prompts), ()
        begin = tuple(replace(request, prompt=[model.config.start]) for request in group.requests)
        group = replace(group, requests=begin)
    choosers = [
        Chooser(request, model, row, tokenizer, before) for row, request in zip(group.rows, group.requests, strict=True)
    ]
    if not group.alike:
        hidden, cache = _read(model, group.requests, group.length, new - 1)
        try:
            yield from _continue(model, hidden, cache, choosers, group)
        finally:
            _report(cache, group.requests)
        return
    hidden, cache = _read(model, group.requests[:1], group.length, new - 1 if count == 1 else 0)
    if first.draft is None:
        cache = cache if count == 1 else cache.branch(new - 1)
        yield from _continue(model, hidden.expand(count, -1, -1), cache, choosers, group)
        return
    for chooser in choosers:
        own = cache if count == 1 else cache.branch(new)
        yield from speculate(model, hidden, own, chooser, group.length, first.draft)


def _read(model: Model, requests: Sequence[Request], length: int, room: int) -> tuple[Tensor, Cache]:
    """Read the prompts; returns the hidden state (B, 1, D) of each last token, and the cache.

    The cache has room for `room` more tokens a row. The requests share their reading, policy and chunk.
    """
    reading = requests[0].reading
    tokens, marks = _rest(requests, 0 if reading is None else reading.length, model.device)
    cache = _new_cache(model, requests[0], marks.length + room)
    return prefill(model, tokens, marks, cache, length, requests[0].chunk or prefill_chunk(model.device)), cache


def _rest(requests: Sequence[Request], before: int, device: torch.device) -> tuple[Tensor, Marks]:
    """The tokens (B, T) of the prompts after the first `before`, padded on the right, and their marks."""
    lengths = torch.tensor([len(request.prompt) for request in requests], device=device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(lengths), longest - before, dtype=torch.long, device=device)
    for row, request in enumerate(requests):
        tokens[row, : len(request.prompt) - before] = torch.tensor(request.prompt[before:], device=device)
    even = bool((lengths == longest).all())  # plain marks keep the kernels on their fast path
    starts = torch.full_like(lengths, before)
    return tokens, Marks.run(before, longest - before) if even else Marks.rows(starts, lengths - before)


def _new_cache(model: Model, request: Request, room: int) -> Cache:
    past = {} if request.reading is None else request.reading.past(model.device)
    rewind = REWIND if request.draft is None else max(REWIND, request.draft.longest + 1)
    return model.new_cache(room, cache_of(request.policy), rewind=rewind, **past)


def _continue(
    model: Model, hidden: Tensor, cache: Cache, choosers: Sequence[Chooser], group: _Group
) -> Iterator[list[NewToken]]:
    """Choose one token for every live row at each step, until the last row has ended."""
    device = model.device
    lengths = torch.tensor([len(request.prompt) for request in group.requests], device=device)
    longest = int(lengths.max())
    even = bool((lengths == longest).all())
    for step in range(group.new):
        live = [place for place, chooser in enumerate(choosers) if chooser.finish is None]
        logits = finite(model.logits(hidden)[:, -1])
        logits = logits if len(live) == len(choosers) else logits[live]
        chosen = next_tokens([choosers[place] for place in live], logits)
        steps = zip(live, chosen, logits, strict=True)
        yield [choosers[place].take(token, scores) for place, token, scores in steps]
        if all(chooser.finish is not None for chooser in choosers):
            return
        read = [0] * len(choosers)  # a row that has ended may read any token
        for place, token in zip(live, chosen, strict=True):
            read[place] = token
        new = torch.tensor(read, device=device)[:, None]
        here = Marks.run(longest + step, 1) if even else Marks.of((lengths + step)[:, None])
        hidden = model.hidden(model.embed(new, here), here, model.mask(), cache, group.length)


def _report(cache: Cache, requests: Sequence[Request]) -> None:
    """Pass the report of the cache to every `on_report` of the requests."""
    report = cache.report()
    for listener in dict.fromkeys(request.on_report for request in requests):
        if listener is not None and report:
            listener(report)
