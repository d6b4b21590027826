"""Needle: does the model find one sentence in a long text? Key retrieval over a grid of length x depth.

The task follows Kamradt (2023, "Needle in a haystack") and the passkey task of Mohtashami & Jaggi (2023). Here it is
exact and deterministic. Prompt and answer together have exactly the given number of tokens. A seed determines keys and
values. An answer counts only if greedy decoding gives all of its tokens.

The needles stand at a few fixed places of a haystack (`placing.py`). So one reading with a needle at a place answers
every length, because a question can branch off it anywhere behind the needle, and all readings of a haystack share the
text before the needle. `grid.alone` runs every cell by itself instead, with the same prompts and so the same cells.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.evaluate.branching import OnRead, Prefix, begin, matches
from handscroll.evaluate.certificate import Certificate, certify, require_whole, together
from handscroll.evaluate.distractors import spread
from handscroll.evaluate.facts import FORMS, Facts, Teller
from handscroll.evaluate.kept import Kept
from handscroll.evaluate.placing import MOST, Places, places
from handscroll.generate.check import declared
from handscroll.lm import LM

OTHERS = 16  # keys of distractors, which no question asks for
Progress = Callable[[int, int], None]
Hit = tuple[int, int, int, bool]
"""Length, number of the sample, number of its question, and whether the answer was right."""


class NeedleGrid(Config):
    """The cells to measure.

    In each of `samples` texts `needles` sentences stand together, and each of them is asked for. `distractors` is the
    number of sentences of the same form about other keys in the shortest text; longer ones hold as many for each token.
    The samples are dealt out to `haystacks` different pieces of the filler. `batch_tokens` limits memory: a forward
    pass has batch_tokens / length rows, at least one. `alone` runs every cell by itself, for comparison.
    """

    lengths: tuple[int, ...] = Field(min_length=1)
    depths: tuple[float, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, max_length=MOST)
    samples: int = Field(default=10, ge=1)
    seed: int = 0
    digits: int = Field(default=5, ge=1, le=12)
    language: Literal["en", "zh"] = "en"
    needles: int = Field(default=1, ge=1, le=16)
    distractors: int = Field(default=0, ge=0)
    haystacks: int = Field(default=4, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    alone: bool = False


def needle_grid(
    lm: LM,
    filler: Sequence[int],
    grid: NeedleGrid,
    label: str,
    progress: Progress | None = None,
    keep: Path | None = None,
    on_read: OnRead | None = None,
) -> dict[str, Any]:
    """Measure the grid and return the JSON record: accuracy[depth][length] in [0, 1], and every sample's outcome.

    `filler` holds the token ids of the haystack; each haystack begins at a random place of it. Outcomes are kept in the
    file `keep` as they are made, and a run that was stopped goes on from it. `on_read(count)` is called after every
    chunk of `count` tokens that the model has processed.

    Raises:
        DataError: the filler is shorter than the longest length, or the tokenizer cannot encode the needle.
        ConfigError: a depth is outside [0, 1], or a length has no room for needle and question, or for the distractors.
        CapacityError: a length exceeds a learned position table.
        CheckpointError: `keep` holds another measurement.
    """
    laid = arranged(lm, filler, grid)
    about = {} if keep is None else _about(lm, laid)
    run = _alone if grid.alone else _shared
    hits: dict[tuple[int, int], dict[tuple[int, int], bool]] = {}
    tokens = 0 if grid.alone else laid.prefixes
    with Kept(keep, about) as kept:
        parts = laid.parts()
        for done, key in enumerate(run(lm, laid, kept, on_read)):
            if progress is not None:
                progress(done + 1, len(parts))
            part = kept[key]
            tokens += part["tokens"]
            for length, sample, ask, hit in part["hits"]:
                hits.setdefault((length, part["place"]), {})[sample, ask] = hit
    return _record(lm, laid, label, hits, tokens)


@dataclass(frozen=True, eq=False)
class Part:
    """A batch of samples with needles at one place of one haystack, and the lengths that they are asked at."""

    haystack: int
    place: int
    lengths: tuple[int, ...]
    samples: tuple[int, ...]

    @property
    def key(self) -> str:
        return "/".join(map(str, (self.haystack, self.place, *self.lengths, "samples", *self.samples)))


@dataclass(frozen=True, eq=False)
class Arrangement:
    """What is read and asked. `facts[slot][sample]` stand at the place with the number `slot`.

    `groups` are the lengths whose requests get the same rotary tables, so that they can share keys.
    """

    grid: NeedleGrid
    before: list[int]
    haystacks: list[Tensor]
    facts: list[list[Facts]]
    places: Places
    rooms: list[int]
    groups: list[tuple[int, ...]]

    @cached_property
    def slots(self) -> dict[int, int]:
        return {place: slot for slot, place in enumerate(self.places.used)}

    def parts(self) -> list[Part]:
        """All work in order; alone, each length of a place is a part of its own."""
        made = []
        for number in range(len(self.haystacks)):
            for group in self.groups:
                for place in self.places.used:
                    asked = [n for n in self.places.lengths(place, self.grid.lengths) if n in group]
                    for lengths in [(n,) for n in asked] if self.grid.alone else [tuple(asked)] if asked else []:
                        made += [Part(number, place, lengths, batch) for batch in self._batches(number, place, lengths)]
        return made

    def chosen(self, part: Part) -> list[Facts]:
        return [self.facts[self.slots[part.place]][sample] for sample in part.samples]

    def room(self, facts: Facts, ask: int, length: int) -> int:
        """The tokens of the haystack in a prompt of `length` tokens."""
        fixed = len(self.before) + len(facts.block) + len(facts.asks[ask].question) + len(facts.asks[ask].answer)
        return length - fixed

    def prompt(self, length: int, place: int, sample: int, ask: int) -> list[int]:
        """The whole prompt without the answer."""
        facts, text = self.facts[self.slots[place]][sample], self.haystacks[sample % len(self.haystacks)].tolist()
        after = text[place : self.room(facts, ask, length)]
        return [*self.before, *text[:place], *facts.block, *after, *facts.asks[ask].question]

    def certificates(self) -> Iterator[Certificate]:
        """Of each answer of each cell: it is decided by the prompt and the answer, except its last token."""
        for length, row in zip(self.grid.lengths, self.places.of, strict=True):
            for place in sorted(set(row)):
                for sample, facts in enumerate(self.facts[self.slots[place]]):
                    for ask, one in enumerate(facts.asks):
                        fed = [*self.prompt(length, place, sample, ask), *one.answer[:-1]]
                        yield certify(fed, length - 1)

    @property
    def prefixes(self) -> int:
        """Tokens before the needles that all samples of a haystack share."""
        deepest = [max(p for p in self.places.used if self._used(p, group)) for group in self.groups]
        return len(self.haystacks) * sum(len(self.before) + place for place in deepest)

    @property
    def alone(self) -> int:
        """Tokens of one trial in every cell by itself."""
        return sum((n - 1) * len(set(row)) for n, row in zip(self.grid.lengths, self.places.of, strict=True))

    def _used(self, place: int, group: tuple[int, ...]) -> bool:
        return any(length in group for length in self.places.lengths(place, self.grid.lengths))

    def _batches(self, haystack: int, place: int, lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Samples of one haystack whose facts have the same shape, as many as a forward may hold."""
        rows = max(1, self.grid.batch_tokens // max(lengths))
        facts = self.facts[self.slots[place]]
        mine = range(haystack, self.grid.samples, len(self.haystacks))
        for shape in sorted({facts[sample].shape for sample in mine}):
            alike = [sample for sample in mine if facts[sample].shape == shape]
            yield from (tuple(alike[first : first + rows]) for first in range(0, len(alike), rows))


def arranged(lm: LM, filler: Sequence[int], grid: NeedleGrid) -> Arrangement:
    """What a grid reads and asks; the errors are those of `needle_grid`."""
    check_grid(lm, filler, grid)
    teller = Teller(lm.tokenizer, grid.language, grid.digits, grid.needles, OTHERS if grid.distractors else 0)
    teller.check()
    slots = max(len(grid.depths) + 1, min(MOST, len(grid.lengths) * len(grid.depths) + 1))  # each place has its own
    facts = [
        [teller.facts(random.Random(f"{grid.seed}/{slot}/{sample}")) for sample in range(grid.samples)]
        for slot in range(slots)
    ]
    before = teller.before
    least = len(before) + max(one.most for row in facts for one in row)
    rooms = [length - least for length in grid.lengths]
    if min(rooms) < 8:
        raise ConfigError(
            f"length {min(grid.lengths)} has no room for needle and question: give at least {least + 8} tokens"
        )
    count = min(grid.haystacks, grid.samples)
    found = places(grid.lengths, rooms, grid.depths, max(1, grid.samples // count))
    texts = [_haystack(filler, grid, teller, number, (min(rooms), found.used)) for number in range(count)]
    tables: dict[int, tuple[int, ...]] = {}
    for length in grid.lengths:
        bucket = declared(lm.model, length)[1]
        tables[bucket] = (*tables.get(bucket, ()), length)
    return Arrangement(grid, before, texts, facts, found, rooms, list(tables.values()))


def planned_tokens(grid: NeedleGrid) -> int:
    """About how many tokens a grid will process: questions are not known yet, and count as nothing."""
    sharing = max(1, grid.samples // min(grid.haystacks, grid.samples))
    return round(grid.samples * places(grid.lengths, grid.lengths, grid.depths, sharing).tokens)


def _haystack(
    filler: Sequence[int], grid: NeedleGrid, teller: Teller, number: int, beside: tuple[int, list[int]]
) -> Tensor:
    """A piece of the filler for the longest length, with the distractors in it.

    They stand `beside` the room of the shortest length and the places of the needles.
    """
    draw = random.Random(f"{grid.seed}/haystack/{number}")
    size = max(grid.lengths)
    start = draw.randrange(len(filler) - size + 1)
    text = list(filler[start : start + size])
    if grid.distractors:
        room, taken = beside
        text = spread(text, room, grid.distractors, taken, lambda: teller.distractor(draw))
    return torch.tensor(text)


def _shared(lm: LM, laid: Arrangement, kept: Kept, on_read: OnRead | None) -> Iterator[str]:
    """Keep all parts: the text before the needles is read once, and every part and every question branches off it."""
    parts = laid.parts()
    for number, haystack in enumerate(laid.haystacks):
        text = torch.cat([torch.tensor(laid.before, dtype=torch.long), haystack])
        for group in laid.groups:
            mine = [part for part in parts if part.haystack == number and part.lengths[0] in group]
            base = begin(lm.model, max(group), len(laid.before) + max(part.place for part in mine), on_read)
            for part in mine:
                if part.key not in kept:
                    end = len(laid.before) + part.place
                    if end > base.length:
                        base.read(text[base.length : end])
                    kept[part.key] = _asked(laid, part, base)
                yield part.key


def _asked(laid: Arrangement, part: Part, base: Prefix) -> dict[str, Any]:
    """Read a part once, and ask at each of its lengths; what needs no branch is read with what follows it."""
    facts, text, begun = laid.chosen(part), laid.haystacks[part.haystack], base.tally.tokens
    asks = range(len(facts[0].asks))
    stops = sorted((laid.room(facts[0], ask, length), length, ask) for length in part.lengths for ask in asks)
    at, hits, waiting = part.place, list[Hit](), torch.tensor([one.block for one in facts])
    branch = base.branch(waiting.shape[1] + stops[-1][0] - at)
    for number, (room, length, ask) in enumerate(stops, start=1):
        waiting, at = torch.cat([waiting, text[at:room].expand(len(facts), -1)], dim=1), room
        question = torch.tensor([one.asks[ask].question for one in facts])
        if number == len(stops):
            asked, question = branch, torch.cat([waiting, question], dim=1)
        else:
            if waiting.shape[1]:
                branch.read(waiting)
            asked, waiting = branch.branch(), waiting[:, :0]
        found = matches(asked, question, [one.asks[ask].answer for one in facts])
        assert asked.length == length - 1, (asked.length, length)
        hits += [(length, sample, ask, hit) for sample, hit in zip(part.samples, found, strict=True)]
    return {"place": part.place, "tokens": base.tally.tokens - begun, "hits": hits}


def _alone(lm: LM, laid: Arrangement, kept: Kept, on_read: OnRead | None) -> Iterator[str]:
    """Keep all parts, each read from its beginning."""
    for part in laid.parts():
        if part.key not in kept:
            (length,), facts = part.lengths, laid.chosen(part)
            hits, tokens = list[Hit](), 0
            for ask in range(len(facts[0].asks)):
                whole = begin(lm.model, length, length, on_read)
                prompts = [laid.prompt(length, part.place, sample, ask) for sample in part.samples]
                found = matches(whole, prompts, [one.asks[ask].answer for one in facts])
                hits += [(length, sample, ask, hit) for sample, hit in zip(part.samples, found, strict=True)]
                tokens += whole.tally.tokens
            kept[part.key] = {"place": part.place, "tokens": tokens, "hits": hits}
        yield part.key


def _record(
    lm: LM, laid: Arrangement, label: str, hits: dict[tuple[int, int], dict[tuple[int, int], bool]], tokens: int
) -> dict[str, Any]:
    grid, outcomes = laid.grid, []
    certificate = together(laid.certificates())
    require_whole(certificate, "the needle grid")
    accuracy = [[0.0] * len(grid.lengths) for _ in grid.depths]
    for column, (length, room) in enumerate(zip(grid.lengths, laid.rooms, strict=True)):
        for row, depth in enumerate(grid.depths):
            place = laid.places.of[column][row]
            correct = [hit for _, hit in sorted(hits[length, place].items())]
            accuracy[row][column] = sum(correct) / len(correct)
            outcomes.append(
                {
                    "length": length,
                    "depth": depth,
                    "at": round(place / room, 4),
                    "place": place,
                    "correct": "".join("1" if hit else "0" for hit in correct),
                }
            )
    trials = grid.samples * grid.needles
    return {
        "kind": "needle",
        "model": lm.source,
        "label": label,
        "trained": lm.trained,
        "lengths": list(grid.lengths),
        "depths": list(grid.depths),
        "accuracy": accuracy,
        "samples": trials,
        "format": form_of(grid),
        "seed": grid.seed,
        "needles": grid.needles,
        "distractors": grid.distractors,
        "language": grid.language,
        "haystacks": len(laid.haystacks),
        "places": laid.places.used,
        "cells": len(hits),
        "tokens": tokens,
        "tokens_alone": trials * laid.alone,
        "certificate": certificate.record(),
        "outcomes": outcomes,
    }


def _about(lm: LM, laid: Arrangement) -> dict[str, Any]:
    """What the file of outcomes is about."""
    texts = b"".join(text.numpy().tobytes() for text in laid.haystacks)
    return {
        "kind": "needle outcomes",
        "model": asdict(lm.identity(max(laid.grid.lengths))),
        "grid": laid.grid.model_dump(mode="json"),
        "text_sha256": hashlib.sha256(texts).hexdigest(),
    }


def form_of(grid: NeedleGrid) -> str:
    """The sentence that is hidden."""
    return "".join(FORMS[grid.language][0]).rstrip("\n")


def check_grid(lm: LM, filler: Sequence[int], grid: NeedleGrid) -> None:
    """Refuse lengths and depths that cannot be measured; the errors are those of `needle_grid`."""
    bad = [depth for depth in grid.depths if not 0 <= depth <= 1]
    if bad:
        raise ConfigError(f"depth {bad[0]} is outside 0 .. 1 (0: needle first, 1: needle last)")
    if list(grid.lengths) != sorted(set(grid.lengths)):
        raise ConfigError(f"the lengths {list(grid.lengths)} must rise, each given once")
    if len(filler) < max(grid.lengths):
        raise DataError(
            f"the haystack has {len(filler)} tokens, but length {max(grid.lengths)} needs as many as that: add text"
        )
    if (limit := lm.model.spec.limit) is not None and max(grid.lengths) > limit:
        raise CapacityError(
            f"length {max(grid.lengths)} exceeds the learned position table of {lm.context} tokens: extend the model "
            "first"
        )
