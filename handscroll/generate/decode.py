"""Batched decoding: prompts of different lengths in, per step the new token of every live row out."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.generate.policies.table import cache_of
from handscroll.generate.prefill import CHUNK, prefill
from handscroll.generate.reading.reading import Reading
from handscroll.generate.sample import Sampling, generator, pick
from handscroll.models.model import Model
from handscroll.nn.cache import Cache
from handscroll.nn.marks import Marks


class NewToken(NamedTuple):
    """One generated token. `finish` is None while the row goes on, else "eos", "stop" or "length"."""

    row: int
    token: int
    finish: str | None


@dataclass(frozen=True)
class _Group:
    """Rows that share one declared length: prompts by their number in the request."""

    numbers: tuple[int, ...]
    prompts: tuple[list[int], ...]
    length: int


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
    on_report: Callable[[str], None] | None = None,
) -> Iterator[list[NewToken]]:
    """Continue every prompt; each item of the iterator is one step: the new tokens of the rows still live.

    A row ends with a token of `eos` (which is yielded), after `sampling.max_tokens`, or when `on_token(row, token)`
    returns True (stop strings; it is not called for end tokens). Rows do not influence each other: each has its
    own random stream, and rows whose length-dependent scaling would differ are decoded in turn, not together.
    The cache is reserved once for prompt + max_tokens. An empty prompt begins with the model's bos.

    Args:
        beyond: allow prompt + max_tokens past `model.config.context`, on your own responsibility.
        chunk: prompt tokens per forward.
        reading: what every prompt begins with and need not be read again.
        policy: what the cache keeps (`generate/policies/table.py`), with options; those that are not exact say so.
        on_report: called at the end with what the cache has to say (the recall of a retrieval).

    Limits: a finished row keeps its place in the batch until the last one ends (compacting would
    copy the cache and hold it twice). Equal to a row alone up to the rounding of batched matrix products.

    Raises (at the call, before any work):
        CapacityError: a request is longer than the model's context, or than a learned position table.
        DataError: an empty prompt without a bos, or a token id outside the vocabulary.
        ConfigError: `chunk` is below 1, an unknown policy or option, or a reading for a request of another length.
    """
    if chunk < 1:
        raise ConfigError(f"the prefill chunk is {chunk} tokens; it must be at least 1 ({CHUNK} is usual)")
    started = [_started(model, number, prompt) for number, prompt in enumerate(prompts)]
    for number, prompt in enumerate(started):
        _check_length(model, number, len(prompt), sampling.max_tokens, beyond)
    ends = frozenset() if sampling.ignore_eos else frozenset(eos)
    groups = _groups(model, started, sampling.max_tokens)
    if reading is not None:
        _check_reading(model, reading, groups)
    keeping = _Keeping(chunk, reading, cache_of(policy), on_report)
    return (step for group in groups for step in _run(model, group, sampling, (ends, on_token), keeping))


def _started(model: Model, number: int, prompt: Sequence[int]) -> list[int]:
    config = model.config
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


def _check_length(model: Model, number: int, prompt: int, new: int, beyond: bool) -> None:
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
    begin, positions = reading.tokens.tolist(), getattr(model.config, "positions", None)
    for group in groups:
        for number, prompt in zip(group.numbers, group.prompts, strict=True):
            if len(prompt) <= len(begin) or prompt[: len(begin)] != begin:
                raise DataError(
                    f"prompt {number} does not go on from the reading: its first {len(begin)} tokens must be those "
                    "of the reading, and at least one must follow"
                )
        bucket = 0 if positions is None else positions.scaling.bucket(group.length)
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
    positions = getattr(model.config, "positions", None)
    buckets: dict[int, list[int]] = {}
    declared: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        length = len(prompt) + new if positions is None else positions.scaling.declared(len(prompt) + new)
        bucket = 0 if positions is None else positions.scaling.bucket(length)
        buckets.setdefault(bucket, []).append(number)
        declared[bucket] = max(length, declared.get(bucket, 0))
    return [
        _Group(tuple(rows), tuple(prompts[row] for row in rows), declared[bucket]) for bucket, rows in buckets.items()
    ]


_Ends = tuple[frozenset[int], Callable[[int, int], bool] | None]


@torch.no_grad()
def _run(model: Model, group: _Group, sampling: Sampling, ends: _Ends, keeping: _Keeping) -> Iterator[list[NewToken]]:
    device, before = model.device, 0 if keeping.reading is None else keeping.reading.length
    lengths = torch.tensor([len(prompt) for prompt in group.prompts], device=device)
    longest = int(lengths.max())
    tokens = torch.zeros(len(lengths), longest - before, dtype=torch.long, device=device)
    for row, prompt in enumerate(group.prompts):
        tokens[row, : len(prompt) - before] = torch.tensor(prompt[before:], device=device)
    even = bool((lengths == longest).all())  # plain marks keep the kernels on their fast path
    starts = torch.full_like(lengths, before)
    marks = Marks.run(before, longest - before) if even else Marks.rows(starts, lengths - before)
    room = longest - before + sampling.max_tokens - 1
    cache = keeping.cache(model, room)
    generators = [generator(sampling.seed, number) for number in group.numbers]
    seen = _seen(group.prompts, model.config.vocab, device) if sampling.repetition_penalty != 1.0 else None

    try:
        hidden = prefill(model, tokens, marks, cache, group.length, keeping.chunk)
        live = list(range(len(lengths)))
        for step in range(sampling.max_tokens):
            new = pick(_finite(model.logits(hidden)[:, -1]), sampling, generators, seen)
            ids, final = new.tolist(), step == sampling.max_tokens - 1
            emitted = [_finished(group.numbers[row], ids[row], ends, final) for row in live]
            live = [row for row, item in zip(live, emitted, strict=True) if item.finish is None]
            yield emitted
            if not live:
                return
            if seen is not None:
                seen[torch.arange(len(ids), device=device), new] = True
            here = Marks.run(longest + step, 1) if even else Marks.of((lengths + step)[:, None])
            hidden = model.hidden(model.embed(new[:, None], here), here, model.mask(), cache, group.length)
    finally:
        if keeping.on_report is not None and (said := cache.report()):
            keeping.on_report(said)


def _finished(number: int, token: int, ends: _Ends, final: bool) -> NewToken:
    """The token with the reason why its row ends there, if it does."""
    eos, on_token = ends
    if token in eos:
        return NewToken(number, token, "eos")
    if on_token is not None and on_token(number, token):
        return NewToken(number, token, "stop")
    return NewToken(number, token, "length" if final else None)


def _seen(prompts: Sequence[list[int]], vocab: int, device: torch.device) -> Tensor:
    seen = torch.zeros(len(prompts), vocab, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt, device=device)] = True
    return seen


def _finite(logits: Tensor) -> Tensor:
    if bool(logits.isnan().any()):
        raise CheckpointError(
            "the model returned logits that are not numbers: the weights are damaged, or overflow in this dtype "
            "(float16 does for some checkpoints); check the files or load with dtype bfloat16 or float32"
        )
    return logits
