"""Puts questions to a model: the prompt of each, what is done where it does not fit, and answers in batches.

A document that several questions are asked of is read once: what the prompts of its questions share is read into a
cache, and the questions go on from there, several at a time.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.reading.reading import Reading
from handscroll.cache.reading.store import Store
from handscroll.evaluate.certificate import Certificate, certify
from handscroll.evaluate.questions.item import ASKS, Item, turn
from handscroll.evaluate.questions.judge import JUDGES
from handscroll.generate.asked import NOW, Form, replies, speaker_of
from handscroll.generate.check import declared
from handscroll.generate.prefill import shared_beginning
from handscroll.generate.prepare import afford_request
from handscroll.generate.read import held
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM

TooLong = Literal["refuse", "skip", "middle"]
WORTH = 64  # a shared beginning of fewer tokens is read with each prompt
TOGETHER = 4096  # most tokens that the rows of a batch read and write after what they share
GAP = {"en": "\n[...]\n", "zh": "\n[……]\n"}  # stands where the middle of a document was left out


class Asking(Config):
    """How questions are put.

    form: by the model's chat template ("auto": where it has one), or as plain text. shots: examples before each
    question. too_long: what does not fit into the context is refused, left out and counted, or loses the middle of its
    document. max_tokens: of an answer, instead of what its kind says. seed: of the choice of rows and examples.
    """

    form: Form = "auto"
    shots: int = 0
    too_long: TooLong = "refuse"
    max_tokens: int = 0
    most: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """An item as it is fed: its ids, the text of its template, and the tokens that its whole document would have."""

    item: Item
    ids: np.ndarray
    text: str
    offered: int
    most: int

    @property
    def total(self) -> int:
        return len(self.ids) + self.most

    @property
    def certificate(self) -> Certificate:
        return certify(self.ids, self.offered)


@dataclass(frozen=True)
class Answered:
    """The answer to a prompt; `read` tokens of it were read for this answer alone, the others for all of its batch."""

    prompt: Prompt
    text: str
    finish: str
    read: int
    written: int


class Asker:
    """Makes prompts for one model. What a document's prompts share may be kept in `store`, for runs that go on.

    Raises:
        ConfigError: the model does not write texts from left to right, or has no chat template where one is asked for.
    """

    def __init__(self, lm: LM, asking: Asking, store: Store | None = None):
        lm.model.spec.require("an answer to questions", one_text=True, forward=True, head=True)
        self.lm, self.asking, self.store = lm, asking, store
        self.speaker = speaker_of(lm.tokenizer, lm.source, asking.form)
        self.ends = None if self.speaker is None else self.speaker.ends(lm.model)

    @property
    def form(self) -> str:
        """How the model is asked: "chat" or "plain"."""
        return "plain" if self.speaker is None else "chat"

    def prompts(self, items: Sequence[Item], shots: Sequence[Item]) -> "tuple[list[Prompt], list[Prompt]]":
        """The prompts of items in order, and those that are left out because they do not fit.

        Raises:
            CapacityError: items do not fit, and neither leaving them out nor cutting was asked for; or the question
                alone does not fit.
        """
        fit, left = list[Prompt](), list[Prompt]()
        for item in items:
            made = self._prompt(item, shots, item.document)
            (fit if made.total <= self.lm.context else left).append(made)
        if not left or self.asking.too_long == "skip":
            return fit, left
        if self.asking.too_long == "refuse":
            raise self._refusal(left, len(items))
        cut = {id(made.item): self._cut(made, shots) for made in left}
        known = {id(made.item): made for made in fit} | cut
        return [known[id(item)] for item in items], []

    def _prompt(self, item: Item, shots: Sequence[Item], document: str) -> Prompt:
        most = self.asking.max_tokens or item.most or JUDGES[item.judge].most
        asked = _joined(document, turn(item))
        if self.speaker is None:
            cue = ASKS[item.asks].cue[item.language]
            before = "".join(f"{turn(shot)}{cue} {_shown(shot)}\n\n" for shot in shots)
            text = f"{before}{asked}{cue}"
            ids = self.lm.tokenizer.encode(text)
        else:
            talk = [
                {"role": role, "content": content}
                for shot in shots
                for role, content in (("user", turn(shot)), ("assistant", _shown(shot)))
            ]
            ids, text = self.speaker.render([*talk, {"role": "user", "content": asked}], now=NOW)
        return Prompt(item, np.asarray(ids, dtype=np.int32), text, len(ids), most)

    def _cut(self, whole: Prompt, shots: Sequence[Item]) -> Prompt:
        """The prompt with the middle of its document left out, so that it fits.

        Raises:
            CapacityError: there is no document, or the rest alone does not fit.
        """
        item, context, tokenizer = whole.item, self.lm.context, self.lm.tokenizer
        document = tokenizer.encode(item.document, special=False)
        keep = context - whole.most - (len(whole.ids) - len(document)) - 8
        while item.document and keep > 0:
            head, tail = document[: keep - keep // 2], document[len(document) - keep // 2 :]
            text = tokenizer.decode(head) + GAP[item.language] + tokenizer.decode(tail)
            made = self._prompt(item, shots, text)
            if made.total <= context:
                return replace(made, offered=whole.offered)
            keep -= made.total - context
        raise self._refusal([whole], 1)

    def _refusal(self, left: Sequence[Prompt], count: int) -> CapacityError:
        longest = max(left, key=lambda made: made.total)
        return CapacityError(
            f"{len(left):,} of {count:,} questions do not fit into the context of {self.lm.context:,} "
            f"tokens. The first is {left[0].item.place}; the longest, {longest.item.place}, has "
            f"{longest.offered:,} tokens and may be answered by {longest.most:,}. Nothing is cut unasked: "
            "leave such questions out, counted (--too-long skip), leave out the middle of their documents "
            f"(--too-long middle), or lengthen the model first (handscroll extend ... --to {longest.total})"
        )

    def request(self, prompt: Prompt, reading: Reading | None) -> Request:
        stop = ASKS[prompt.item.asks].stop if self.speaker is None else ()
        sampling = Sampling(max_tokens=prompt.most, stop=stop)
        return Request(prompt.ids.tolist(), sampling, reading=reading, ends=self.ends)


def _joined(document: str, asked: str) -> str:
    return f"{document}\n\n{asked}" if document else asked


def _shown(shot: Item) -> str:
    """What an example answers."""
    blanks = "\n".join(f"{mark}: {right}" for mark, right in zip(shot.marks, shot.wanted, strict=False))
    return shot.worked or blanks or shot.wanted[0]


def chosen(items: Sequence[Item], asking: Asking) -> tuple[list[Item], list[Item]]:
    """The items that are asked, and those that are shown as examples, by the seed; examples are never asked.

    Raises:
        ConfigError: there are not more items than examples, or they are about documents, which examples cannot show.
    """
    if asking.shots and any(item.document for item in items):
        raise ConfigError(
            f"{items[0].task} asks about documents, and {asking.shots} examples with theirs would be longer than any: "
            "leave --shots out"
        )
    if asking.shots >= len(items):
        raise ConfigError(
            f"{asking.shots} examples of {len(items)} questions of {items[0].task}: give fewer shots, or more rows"
        )
    order = random.Random(f"{asking.seed}/{items[0].task}").sample(range(len(items)), len(items))
    shots = [items[at] for at in order[: asking.shots]]
    rest = order[asking.shots :][: asking.most or None]
    return [items[at] for at in sorted(rest)], shots


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts that share their first `shared` tokens, which are read once for all batches of a group; `first` says
    that this is the one that reads them."""

    prompts: tuple[Prompt, ...]
    shared: int
    first: bool

    @property
    def to_read(self) -> int:
        """Tokens that the model reads for this batch, without those that it writes."""
        own = sum(len(prompt.ids) - self.shared for prompt in self.prompts)
        return own + (self.shared if self.first else 0)


def batches(lm: LM, prompts: Sequence[Prompt]) -> Iterator[list[Batch]]:
    """Groups of batches: those of a group share what they begin with, so they are answered one after the other."""
    groups: dict[tuple[str, int], list[Prompt]] = {}
    for prompt in prompts:
        key = prompt.item.document, declared(lm.model, prompt.total)[1]
        groups.setdefault(key, []).append(prompt)
    for group in groups.values():
        shared = _shared(lm, group)
        parts: list[list[Prompt]] = []
        held = 0
        for prompt in group:
            size = prompt.total - shared
            if not parts or held + size > TOGETHER or prompt.most != parts[-1][0].most:
                parts.append([])
                held = 0
            parts[-1].append(prompt)
            held += size
        yield [Batch(tuple(part), shared, not number) for number, part in enumerate(parts)]


def _shared(lm: LM, group: Sequence[Prompt]) -> int:
    """How many tokens the prompts of a group share at their beginning, where it is worth a reading of its own."""
    spec = lm.model.spec
    if len(group) < 2 or spec.recurrent or spec.encoder or not spec.cached:
        return 0
    first = group[0].ids
    shared = min(shared_beginning(first.tolist(), prompt.ids.tolist()) for prompt in group[1:])
    shared = min(shared, min(len(prompt.ids) for prompt in group) - 1)  # the last token of a prompt is read with it
    return shared if shared >= WORTH else 0


def answers(
    asker: Asker, group: Sequence[Batch], on_read: Callable[[int], None] = lambda done: None
) -> Iterator[list[Answered]]:
    """The answers to each batch of a group, greedily. `on_read` is called with the tokens of the shared reading so far.

    Raises:
        CapacityError: the memory does not suffice.
    """
    lm, reading, begun = asker.lm, None, 0
    for number, batch in enumerate(group):
        if batch.shared and reading is None:
            longest = max((prompt for part in group for prompt in part.prompts), key=lambda prompt: prompt.total)
            afford_request(lm.model, asker.request(longest, None))
            reading, begun = _reading(asker, longest, batch.shared, on_read)
        requests = [asker.request(prompt, reading) for prompt in batch.prompts]
        if reading is None:
            afford_request(lm.model, max(requests, key=lambda request: len(request.prompt)))
        said = replies(lm.model, lm.tokenizer, requests, asker.speaker, [prompt.text for prompt in batch.prompts])
        read = [len(prompt.ids) - batch.shared for prompt in batch.prompts]
        # The shared beginning counts with the first answer that needed it.
        read[0] += begun if number == 0 else 0
        yield [
            Answered(prompt, one.text, one.finish, count, one.tokens)
            for prompt, one, count in zip(batch.prompts, said, read, strict=True)
        ]


def _reading(asker: Asker, longest: Prompt, shared: int, on_read: Callable[[int], None]) -> tuple[Reading, int]:
    """The reading of what a group shares, and how many of its tokens were read now: those that the store lacks."""
    lm, ids = asker.lm, longest.ids[:shared]
    if asker.store is None:
        return held(lm.model, lm.tokenizer, ids, longest.total, on_read), shared
    known = asker.store.kept(lm.identity(longest.total), torch.from_numpy(ids.astype(np.int64)))
    room = longest.total - shared
    found = lm.read(ids.tolist(), asker.store, room=room, on_read=lambda done, all_: on_read(done))
    return found, shared - known
