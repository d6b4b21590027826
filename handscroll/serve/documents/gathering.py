"""Questions about several documents, or about one that the window does not hold.

What fits is read whole; of the rest the passages that a search finds for the question. The layout of a conversation
never changes: whole documents stand at its beginning, and the passages for each question before that question. So what
one turn has read, the next one takes from the cache, and the first document from its saved reading.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from handscroll.base.errors import CapacityError
from handscroll.cache.reading.reading import Document, Reading
from handscroll.generate.ask import QUESTION, within
from handscroll.serve.documents.asking import about, check_turns, document_prompt, same_beginning
from handscroll.serve.documents.library import Hit
from handscroll.serve.documents.readings import GOING, unread
from handscroll.serve.documents.shelf import Entry
from handscroll.serve.errors import ApiError
from handscroll.serve.models import Served
from handscroll.serve.prompts import Prompt, check_characters, said
from handscroll.serve.schemas.chat import ChatMessage
from handscroll.serve.serving import Serving

Mode = Literal["whole", "auto", "passages"]
USUAL = 2048  # tokens of the passages that a question gets, where a request does not say
SHARE = 8  # but at most this part of the window
LEAST = 32  # tokens that passages need at least
FRAME = 64  # tokens of a template and the marks around a document, about
GAP = "\n\n"


class Wish(NamedTuple):
    """How documents are read: the mode, and the tokens of passages for each question (None: the usual ones)."""

    mode: Mode = "whole"
    passages: int | None = None


@dataclass(eq=False)
class _Page:
    """What the prompt holds of one document that is read by passages."""

    entry: Entry
    shown: list[tuple[int, Hit, int]] = field(default_factory=list)  # turn, passage, its tokens

    @property
    def seen(self) -> int:
        return sum(tokens for _, _, tokens in self.shown)


def gathered(
    serving: Serving,
    served: Served,
    entries: Sequence[Entry],
    wish: Wish,
    messages: Sequence[ChatMessage],
    variables: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Prompt:
    """A conversation about some documents, which stand before its questions; `strict` refuses one with nothing to read.

    Raises:
        CapacityError: they do not fit, and the mode reads them whole; or the window leaves no room for passages.
        ApiError: nothing was found for the question, a document is still being read, or a message is wrong.
    """
    turns = check_turns(served, messages, variables)
    sizes = {entry: serving.library.tokens(entry, served) for entry in entries}
    whole, rest = divided(serving, served, sizes, wish.mode)
    if len(entries) == 1 and whole:
        prompt = document_prompt(
            served, whole[0], partial(serving.readings.opened, whole[0], served), messages, variables
        )
        return replace(prompt, document={}, documents=(prompt.document,))
    for entry in whole:
        state = serving.readings.progress(entry).get(served.name, {})
        if state.get("state") in GOING:
            raise unread(entry, served, state)
    made = _Gathering(serving, served, whole, rest, wish, sizes)
    prompt = made.prompt(turns, variables)
    if strict and not any(one["seen"] for one in prompt.documents):
        why = "nothing in the documents shares a word with this question, so there is nothing to answer from"
        raise ApiError(422, f"{why}: ask with words that stand in them", "nothing_found", "question")
    return prompt


def divided(
    serving: Serving, served: Served, sizes: Mapping[Entry, int], mode: Mode
) -> tuple[list[Entry], list[Entry]]:
    """Which documents are read whole, in the order of the prompt, and which by passages.

    In the mode "auto" all are read whole if they fit. Otherwise documents are taken in their order as long as they fill
    half of what fits, so that the other half is there for passages and the conversation.

    Raises:
        CapacityError: they do not fit, in the mode "whole".
    """
    entries, fits = list(sizes), served.loaded.context - served.kept_free(serving.settings.room)
    states = {entry: entry.readings.get(served.name, {}).get("state") for entry in entries}
    fit = sum(sizes.values()) + FRAME * len(entries) <= fits
    if len(entries) == 1:  # whoever let it be read knows better
        fit = states[entries[0]] == "read" or (fit and states[entries[0]] != "refused")
    if mode != "passages" and fit:
        whole = entries
    elif mode == "whole":
        raise _too_many(served, sizes, fits)
    else:
        whole, left = [], fits // 2 if mode == "auto" else 0
        for entry in entries:
            if sizes[entry] <= left:
                whole.append(entry)
                left -= sizes[entry]
    if read := [
        entry for entry in whole if states[entry] == "read"
    ]:  # the longest one that was read stands first, since only the first can come from its reading
        first = max(read, key=lambda entry: sizes[entry])
        whole = [first, *(entry for entry in whole if entry is not first)]
    return whole, [entry for entry in entries if entry not in whole]


def _too_many(served: Served, sizes: Mapping[Entry, int], fits: int) -> CapacityError:
    count, total = len(sizes), sum(sizes.values())
    what = f"the {count} documents have" if count > 1 else f"'{next(iter(sizes)).name}' has"
    return CapacityError(
        f"{what} {total:,} tokens in all, but '{served.name}' holds {served.loaded.context:,} with "
        f"{served.loaded.context - fits:,} kept free for question and answer: {fits:,} would fit. Ask about fewer, or "
        'let the rest be read by passages that a search finds ("reading": "auto"); the answer says which'
    )


class _Gathering:
    """One prompt on its way."""

    def __init__(
        self,
        serving: Serving,
        served: Served,
        whole: list[Entry],
        rest: list[Entry],
        wish: Wish,
        sizes: Mapping[Entry, int],
    ):
        self.serving, self.served, self.whole, self.sizes = serving, served, whole, sizes
        self.pages = {entry: _Page(entry) for entry in rest}
        self.most = min(USUAL, served.loaded.context // SHARE) if wish.passages is None else wish.passages
        self.notes: dict[str, None] = {}
        self.used = sum(sizes[entry] for entry in whole)
        self.searched: list[str] = []

    def prompt(self, turns: list[dict[str, Any]], variables: Mapping[str, Any] | None) -> Prompt:
        """The prompt of a conversation, the documents in it."""
        reading, first = self._reading()
        texts = [first.text] if first is not None else []
        texts += [self.serving.shelf.text(entry).text for entry in self.whole[len(texts) :]]
        before = [f"{text}{GAP}[end of {entry.name}]" for entry, text in zip(self.whole, texts, strict=True)]
        last, prompt = "", Prompt([])
        for number, turn in enumerate(turns):
            question = said(turn)
            self.used += self._count(question)
            if turn["role"] != "user":
                continue
            shown = self._passages(number, f"{question}\n{last}".strip())
            body = GAP.join([*(before if number == 0 else []), *shown])
            turn["content"] = f"{body}{GAP}{question}" if body else question
            if not self.served.talks:  # such a model answers one question
                prompt = self._plain(body, question, reading, first)
            last = question
        if self.served.talks:
            prompt = self._rendered(turns, reading, first, variables)
        return replace(prompt, documents=tuple(self._records(prompt)), notes=(*prompt.notes, *self._notes()))

    def _reading(self) -> tuple[Reading | None, Document | None]:
        """The saved reading of the first document, if this model has read it and the reading is still there."""
        entry = self.whole[0] if self.whole else None
        if entry is None or entry.readings.get(self.served.name, {}).get("state") != "read":
            return None, None
        try:
            reading, document = self.serving.readings.opened(entry, self.served)
        except ApiError:  # it was evicted: its text is read now
            return None, None
        return reading, document or Document(self.serving.shelf.text(entry).text, 0.0)

    def _rendered(
        self, turns: list[dict[str, Any]], reading: Reading | None, first: Document | None, variables: Any
    ) -> Prompt:
        served = self.served
        check_characters(served, sum(len(said(turn)) for turn in turns))
        speaker = served.speaker()
        document = first or Document("", time.time())
        after = turns[0]["content"][len(document.text) :]
        rendered = within(speaker, document, after, turns[1:], variables)
        kept = None if reading is None else reading.part(same_beginning(reading, rendered.ids))
        ends = speaker.ends(served.loaded.model)
        return Prompt(rendered.ids, rendered.text, ends, speaker, rendered, kept)

    def _plain(self, body: str, question: str, reading: Reading | None, first: Document | None) -> Prompt:
        """The same for a model without a template."""
        encode = self.served.loaded.tokenizer.encode
        after = body[len(first.text) if first else 0 :] + QUESTION.replace("{question}", question)
        if reading is None:
            return Prompt(encode(after), after)
        return Prompt([*reading.tokens.tolist(), *encode(after, special=False, follows=True)], after, reading=reading)

    def _passages(self, turn: int, query: str) -> list[str]:
        """The passages for a question, as the prompt holds them; those that stand there already are left out."""
        if not self.pages:
            return []
        free = self.served.kept_free(self.serving.settings.room)
        left = min(self.most, self.served.loaded.context - free - self.used)
        if left < LEAST:
            raise CapacityError(
                f"the window leaves {max(0, left)} tokens for passages of the documents: begin a new conversation, or "
                "ask about fewer documents"
            )
        found = self.serving.library.search(list(self.pages), query)
        known = {(entry, hit.passage) for entry, page in self.pages.items() for _, hit, _ in page.shown}
        chosen: list[Hit] = []
        for hit in found.hits:
            if (hit.entry, hit.passage) in known:
                continue
            own = self._count(hit.text.rstrip())
            tokens = own + self._count(title(hit) + GAP)
            if tokens > left and not chosen:
                raise CapacityError(
                    f"the best passage has {tokens:,} tokens with its title, but there is room for {left:,}: allow "
                    "more (passages), begin a new conversation, or ask about fewer documents"
                )
            if tokens > left:
                break
            left -= tokens
            self.used += tokens
            chosen.append(hit)
            self.pages[hit.entry].shown.append((turn, hit, own))
        self.notes |= dict.fromkeys(found.notes)
        self.searched = list(found.by)
        return blocks(chosen, list(self.pages))

    def _count(self, text: str) -> int:
        return len(self.served.loaded.tokenizer.encode(text, special=False, follows=True))

    def _records(self, prompt: Prompt) -> list[dict[str, Any]]:
        """What the contract says of each document, in the order of the prompt."""
        found = []
        for number, entry in enumerate(self.whole):
            kept = prompt.reading.length if prompt.reading is not None and number == 0 else 0
            found.append(about(entry, self.sizes[entry], min(kept, self.sizes[entry])))
        for entry, page in self.pages.items():
            listed = [{**hit.record(), "tokens": tokens, "turn": turn} for turn, hit, tokens in page.shown]
            record = about(entry, self.sizes[entry], 0) | {"how": "passages", "seen": page.seen}
            found.append(record | {"searched": self.searched, "passages": listed})
        return found

    def _notes(self) -> list[str]:
        shown = [page for page in self.pages.values() if page.shown]
        unseen = [page.entry.name for page in self.pages.values() if not page.shown]
        found = [
            f"{page.entry.name} was read by passages: {page.seen:,} of {self.sizes[page.entry]:,} tokens"
            for page in shown
        ]
        if unseen:
            few = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5:,} more" if len(unseen) > 5 else "")
            found.append(f"nothing was read of {few}: the search found other passages")
        return [*self.notes, *found]


def title(hit: Hit) -> str:
    """The line before a passage, by which a model can cite it."""
    parts = [hit.entry.name, hit.passage.place, hit.passage.heading]
    return f"[{', '.join(dict.fromkeys(part for part in parts if part))}]"


def blocks(hits: Sequence[Hit], order: Sequence[Entry]) -> list[str]:
    """Passages as a prompt holds them: by document, in the order of its text; what stands side by side is joined."""
    found: list[str] = []
    last: Hit | None = None
    for hit in sorted(hits, key=lambda one: (order.index(one.entry), one.passage.start)):
        joins = last is not None and last.entry is hit.entry and last.passage.end == hit.passage.start
        if joins and last is not None and title(last) == title(hit):
            found[-1] += hit.text
        else:
            found.append(f"{title(hit)}\n{hit.text}")
        last = hit
    return [one.rstrip() for one in found]
