"""Filling the blanks of a text, one after the other: each sees the whole text and what fills the blanks before it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.generate.chooser import Chooser, next_tokens
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.generate.settings import SamplingSettings, sampling_of
from handscroll.models.model import Model
from handscroll.nn.blanks import joined
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks
from handscroll.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Filling:
    """What fills the blank at `place` of a prompt; `finish` is "eos" where the model ended it, else "length"."""

    place: int
    tokens: tuple[int, ...]
    finish: str


def filled(model: Model, tokenizer: Tokenizer, text: str, settings: SamplingSettings) -> list[int]:
    """Token ids of `text` with its blanks filled.

    Unless given, max_tokens is what the learned table has room for, and at most the default of a generation.

    Raises:
        ConfigError: the model fills no blanks.
    """
    _check(model)
    config = model.config
    ids, most = _read(config, tokenizer, text), min(config.inside - 1, Sampling().max_tokens)
    parts, done = [], 0
    settings = {"max_tokens": most, **settings}
    for filling in fill(model, ids, sampling_of(settings)):
        parts += [*ids[done : filling.place], *filling.tokens]
        done = filling.place + 1
    return [*parts, *ids[done:]]


def _read(config: Any, tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text; only the names of the two blanks become special tokens."""
    names = {tokenizer.token(number): number for number in (config.blank, config.rest)}
    before, after = tokenizer.frame()
    ids = list(before)
    for part in re.split("(" + "|".join(re.escape(name) for name in names if name) + ")", text):
        ids += [names[part]] if part in names else tokenizer.encode(part, special=False)
    return [*ids, *after]


def _check(model: Model) -> None:
    if model.spec.reads != "blanks":
        raise ConfigError(f"family '{model.config.family}' fills no blanks; generate a continuation")


@torch.no_grad()
def fill(model: Model, prompt: Sequence[int], sampling: Sampling) -> list[Filling]:
    """Fill every blank of `prompt` (token ids) with at most `sampling.max_tokens` tokens.

    If the prompt has no blank, [gMASK] is appended and the model continues from there. The text is read in one forward,
    since every token of it sees all others; after that one token is read at a time, over the cache. Each blank has its
    own random stream.

    Raises:
        ConfigError: the model fills no blanks, or stop strings or a constraint's settings are asked for.
        DataError: an id outside the vocabulary. CapacityError: more than the learned tables hold.
    """
    _check(model)
    if sampling.stop or sampling.ignore_eos:
        raise ConfigError("a blank ends with the model's own end token: leave stop strings and ignore_eos out")
    config, device = model.config, model.device
    ids = [int(token) for token in prompt]
    if not any(token in (config.blank, config.rest) for token in ids):
        ids.append(config.rest)
    wrong = next((token for token in ids if not 0 <= token < config.vocab), None)
    if wrong is not None:
        raise DataError(f"the prompt holds token id {wrong}, but the vocabulary is 0 to {config.vocab - 1}")
    blanks = [place for place, token in enumerate(ids) if token in (config.blank, config.rest)]
    if sampling.max_tokens >= config.inside:
        raise CapacityError(
            f"max_tokens = {sampling.max_tokens}: the learned table inside a blank has {config.inside} rows, enough "
            f"for {config.inside - 1} tokens; give max_tokens = {config.inside - 1} or less"
        )
    if len(ids) > config.context:
        raise CapacityError(
            f"the text has {len(ids):,} tokens with its blanks, the learned table of places {config.context:,}: give "
            "less text"
        )
    cache = model.new_cache(len(ids) + len(blanks) * sampling.max_tokens)
    marks = Marks.run(0, len(ids))
    model.hidden(model.embed(torch.tensor([ids], device=device), marks), marks, model.mask(), cache)
    request, found = Request(ids, sampling, ends=frozenset([config.end])), []
    for number, place in enumerate(blanks):
        chooser, written = Chooser(request, model, number), []
        token, inside = config.start, 0
        while chooser.finish is None:
            inside += 1
            index = torch.tensor([[cache.length]], device=device)
            position = joined(torch.full_like(index, place), torch.full_like(index, inside))
            here = Marks.of(index, positions=position)
            new = torch.tensor([[token]], device=device)
            logits = finite(model.logits(model.hidden(model.embed(new, here), here, model.mask(), cache))[:, -1])
            (token,) = next_tokens([chooser], logits)
            chooser.take(token, logits[0])
            written += [] if token == config.end else [token]
        found.append(Filling(place, tuple(written), chooser.finish))
    return found
