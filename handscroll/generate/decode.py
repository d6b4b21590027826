"""Batched decoding: prompts of different lengths in, per step the new token of every live row out."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.full import Cache
from handscroll.cache.reading.reading import Reading
from handscroll.cache.table import REWINDABLE, cache_of
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import Drafts
from handscroll.generate.prefill import CHUNK, prefill
from handscroll.generate.rows import NewToken, Request, Rows
from handscroll.generate.sample import Sampling
from handscroll.generate.source import check_source, only_whole, under_sources
from handscroll.generate.speculative import speculate
from handscroll.models.model import Model
from handscroll.nn.marks import Marks


@dataclass(frozen=True)
class _Group:
    """Rows that share one declared length: their numbers and prompts. `alike`: it is one prompt, to be read once."""

    numbers: tuple[int, ...]
    prompts: tuple[list[int], ...]
    length: int
    alike: bool = False


@dataclass(frozen=True, eq=False)
class _Keeping:
    """How the prompt is read and what is kept of it."""

    chunk: int
    reading: Reading | None
    kind: Callable[..., Cache]
    on_report: Callable[[str], None] | None

    def cache(self, model: Model, room: int) -> Cache:
        if self.reading is None:
            return model.new_cache(room) if self.kind is Cache else self.kind(model.config.layers, capacity=room)
        return self.reading.cache(room, model.device, self.kind)


def decode(  # noqa: PLR0913 - what is asked, how it ends, what is known already
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos: Collection[int] = (),
    on_token: Callable[[int, int], bool] | None = None,
    beyond: bool = False,
    chunk: int = CHUNK,
    reading: Reading | None = None,
    policy: str = "full",
    samples: int = 1,
    logprobs: int | None = None,
    constraint: Constraint | None = None,
    drafts: Drafts | None = None,
    on_report: Callable[[str], None] | None = None,
) -> Iterator[list[NewToken]]:
    """Continue every prompt; each item of the iterator is one step: the new tokens of the rows still live.

    A row ends with a token of `eos` (which is yielded), after `sampling.max_tokens`, when `on_token(row, token)`
    returns True (stop strings; it is not called for end tokens), or when nothing can follow under `constraint`. Rows do
    not influence each other: each has its own random stream, and rows whose length-dependent scaling would differ are
    decoded in turn, not together. The cache is reserved once for prompt + max_tokens. An empty prompt
    begins with the model's bos. For an encoder-decoder every prompt is a source, encoded whole, and what is decoded
    begins with the model's start token, which is not yielded; caches that forget, readings and drafts are refused.

    Args:
        beyond: allow prompt + max_tokens past `model.config.context`, on your own responsibility.
        chunk: prompt tokens per forward.
        reading: what every prompt begins with and need not be read again.
        policy: what the cache keeps (`cache/table.py`), with options; those that are not exact say so.
        on_report: called at the end with what the cache has to say (the recall of a retrieval).
        samples: continuations of each prompt: rows samples * prompt, ... Each prompt is read once, its keys and values
            are shared, and prompts are continued in turn. A row draws what it would draw if it were read alone.
        logprobs: how many of the likeliest tokens are told with each new one (0: only its own log-probability).
        constraint: a grammar that the new text of every row follows (`constrain.py`).
        drafts: who guesses for speculative decoding (`speculative.py`); rows are then continued in turn.

    Limits: a finished row keeps its place in the batch until the last one ends (compacting would
    copy the cache and hold it twice). Equal to a row alone up to the rounding of batched matrix products.

    Raises (at the call, before any work):
        CapacityError: a request is longer than the model's context, or than a learned position table.
        DataError: an empty prompt without a bos, or a token id outside the vocabulary.
        ConfigError: the model is an encoder, `chunk` or `samples` is below 1, an unknown policy or option, a reading
            for a request of another length, or things that exclude each other (see the message).
    """
    if chunk < 1:
        raise ConfigError(f"the prefill chunk is {chunk} tokens; it must be at least 1 ({CHUNK} is usual)")
    if samples < 1 or (logprobs is not None and logprobs < 0):
        raise ConfigError(f"samples is {samples} and logprobs {logprobs}; they must be at least 1 and 0")
    keeping = _Keeping(chunk, reading, cache_of(policy), on_report)
    if (samples > 1 or drafts is not None) and policy not in REWINDABLE:
        raise ConfigError(f"several samples and drafts need a cache that can be shared and cut back: not '{policy}'")
    if model.spec.recurrent and (policy != "full" or drafts is not None or reading is not None):
        raise ConfigError(
            f"family '{model.config.family}' keeps a state of constant size: no cache policy, draft or saved reading "
            "applies to it; leave them out"
        )
    if constraint is not None and (sampling.stop or sampling.ignore_eos):
        raise ConfigError("a constraint says how the text ends; remove stop strings and ignore_eos")
    begun = [started(model, number, prompt) for number, prompt in enumerate(prompts)]
    if model.spec.encoder:
        only_whole(policy, reading=reading, drafts=drafts)
    for number, prompt in enumerate(begun):
        check_length(model, number, len(prompt), sampling.max_tokens, beyond)
        if drafts is not None:
            drafts.check(model, len(prompt) + sampling.max_tokens, beyond)
    ends = frozenset() if sampling.ignore_eos else frozenset(eos)
    request = Request(sampling, ends, on_token, constraint, logprobs)
    if samples == 1 and drafts is None:
        groups = _groups(model, begun, sampling.max_tokens)
    else:
        groups = [_alike(model, number, prompt, sampling.max_tokens, samples) for number, prompt in enumerate(begun)]
    if reading is not None:
        _check_reading(model, reading, groups)
    return (step for group in groups for step in _run(model, group, request, keeping, drafts))


@torch.no_grad()
def read_prompt(
    model: Model, prompt: Sequence[int], new: int, beyond: bool, chunk: int, reading: Reading | None
) -> tuple[list[int], int, Tensor, Cache]:
    """Check and read one prompt for `new` tokens; arguments and errors: those of `decode`.

    Returns its ids, the declared length of the request, the hidden state (1, 1, D) of the last token, and an exact
    cache of it without room for more.
    """
    tokens = started(model, 0, prompt)
    check_length(model, 0, len(tokens), new, beyond)
    (group,) = _groups(model, [tokens], new)
    if reading is not None:
        _check_reading(model, reading, [group])
    hidden, cache = _read(model, [tokens], group.length, _Keeping(chunk, reading, Cache, None), 0)
    return tokens, group.length, hidden, cache


def started(model: Model, number: int, prompt: Sequence[int]) -> list[int]:
    """The ids of prompt `number`, or the model's bos for an empty one; the errors are those of `decode`."""
    config = model.config
    model.spec.require("decoding", forward=True)
    ids = [int(token) for token in prompt] or ([] if config.bos is None else [config.bos])
    if not ids:
        raise DataError(f"prompt {number} is empty and the model has no bos token to begin with; give some text")
    wrong = next((token for token in ids if not 0 <= token < config.vocab), None)
    if wrong is not None:
        raise DataError(
            f"prompt {number} holds token id {wrong}, but the model's vocabulary is 0 to {config.vocab - 1}; "
            "was it encoded with this model's tokenizer?"
        )
    return ids


def check_length(model: Model, number: int, prompt: int, new: int, beyond: bool) -> None:
    """Refuse prompt `number` of `prompt` tokens where `new` more do not fit; the errors are those of `decode`."""
    if model.spec.encoder:
        check_source(model, number, prompt, new, beyond)
        return
    context, total = model.config.context, prompt + new
    if total > context and not beyond:
        room = f"ask for at most {context - prompt} new tokens" if prompt < context else "shorten the prompt"
        raise CapacityError(
            f"prompt {number} has {prompt} tokens and {new} more are asked for: {total} in all, but the model's "
            f"context is {context}; {room}, or lengthen the model first (handscroll extend ... --to {total})"
        )
    # A learned position table cannot be exceeded at all, and says so itself: here, not in the middle of the text.
    # The last new token is never read back, hence total - 2.
    model.embed(torch.zeros(1, 1, dtype=torch.long, device=model.device), Marks.run(total - 2, 1))


def _check_reading(model: Model, reading: Reading, groups: list[_Group]) -> None:
    """Every prompt begins with the reading, goes on after it, and has the scaling that it was read with."""
    begin, spec = reading.tokens.tolist(), model.spec
    for group in groups:
        for number, prompt in zip(group.numbers, group.prompts, strict=True):
            if len(prompt) <= len(begin) or prompt[: len(begin)] != begin:
                raise DataError(
                    f"prompt {number} does not go on from the reading: its first {len(begin)} tokens must be those "
                    "of the reading, and at least one must follow"
                )
        bucket = spec.bucket(group.length)
        if bucket != reading.identity.bucket:
            raise ConfigError(
                f"the text was read for requests of up to {reading.identity.bucket} tokens, this one has "
                f"{group.length}: the model's scaling depends on the length, so read the text again"
            )


def _groups(model: Model, prompts: list[list[int]], new: int) -> list[_Group]:
    """Rows whose declared lengths give the same rotary tables, in order of first appearance.

    Batch invariance: under a length-dependent scaling one declared length for all rows would let a long
    neighbour change a short row's text.
    """
    spec = model.spec
    buckets: dict[int, list[int]] = {}
    declared: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        length = spec.declared(len(prompt) + new)
        bucket = spec.bucket(length)
        buckets.setdefault(bucket, []).append(number)
        declared[bucket] = max(length, declared.get(bucket, 0))
    return [
        _Group(tuple(rows), tuple(prompts[row] for row in rows), declared[bucket]) for bucket, rows in buckets.items()
    ]


def _alike(model: Model, number: int, prompt: list[int], new: int, samples: int) -> _Group:
    """The samples of one prompt."""
    (group,) = _groups(model, [prompt], new)
    numbers = range(number * samples, (number + 1) * samples)
    return _Group(tuple(numbers), (prompt,) * samples, group.length, alike=True)


@torch.no_grad()
def _run(
    model: Model, group: _Group, request: Request, keeping: _Keeping, drafts: Drafts | None
) -> Iterator[list[NewToken]]:
    """Read the prompts of a group and continue them."""
    vocab, new = model.config.vocab, request.sampling.max_tokens
    count = len(group.numbers)
    if model.spec.encoder:
        model = under_sources(model, group.prompts[:1] if group.alike else group.prompts)
        group = replace(group, prompts=([model.config.start],) * count)
    if not group.alike:
        hidden, cache = _read(model, group.prompts, group.length, keeping, new - 1)
        rows = Rows(request, group.numbers, group.prompts, vocab, model.device)
        try:
            yield from _continue(model, hidden, cache, rows, group)
        finally:
            if keeping.on_report is not None and (said := cache.report()):
                keeping.on_report(said)
        return
    hidden, cache = _read(model, group.prompts[:1], group.length, keeping, new - 1 if count == 1 else 0)
    if drafts is None:
        rows = Rows(request, group.numbers, group.prompts, vocab, model.device)
        cache = cache if count == 1 else cache.branch(new - 1)
        yield from _continue(model, hidden.expand(count, -1, -1), cache, rows, group)
        return
    for number, prompt in zip(group.numbers, group.prompts, strict=True):
        rows, own = Rows(request, [number], [prompt], vocab, model.device), cache if count == 1 else cache.branch(new)
        yield from speculate(model, hidden, own, rows, prompt, group.length, drafts)


def _read(
    model: Model, prompts: Sequence[list[int]], length: int, keeping: _Keeping, room: int
) -> tuple[Tensor, Cache]:
    """Hidden state (B, 1, D) of each prompt's last token, and the cache, with `room` for so many tokens after them."""
    device, before = model.device, 0 if keeping.reading is None else keeping.reading.length
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(lengths), longest - before, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt) - before] = torch.tensor(prompt[before:], device=device)
    even = bool((lengths == longest).all())  # plain marks keep the kernels on their fast path
    starts = torch.full_like(lengths, before)
    marks = Marks.run(before, longest - before) if even else Marks.rows(starts, lengths - before)
    cache = keeping.cache(model, longest - before + room)
    return prefill(model, tokens, marks, cache, length, keeping.chunk), cache


def _continue(model: Model, hidden: Tensor, cache: Cache, rows: Rows, group: _Group) -> Iterator[list[NewToken]]:
    """One token for every row, until the last row has ended."""
    lengths = torch.tensor([len(prompt) for prompt in group.prompts], device=model.device)
    longest = int(lengths.max())
    even, last = bool((lengths == longest).all()), rows.request.sampling.max_tokens - 1
    for step in range(last + 1):
        logits = model.logits(hidden)[:, -1]
        new = rows.pick(logits)
        yield rows.take(new, logits, final=step == last)
        if not rows.live:
            return
        here = Marks.run(longest + step, 1) if even else Marks.of((lengths + step)[:, None])
        hidden = model.hidden(model.embed(new[:, None], here), here, model.mask(), cache, group.length)
