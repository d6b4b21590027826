"""One request on its way: a place, the jobs of its prompts, what they say, and what is told of it at the end."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from handscroll.evaluate.certificate import Certificate, certify, together
from handscroll.generate.engine.job import Job
from handscroll.generate.request import Request
from handscroll.serve.errors import ApiError
from handscroll.serve.keys import Owner
from handscroll.serve.models import Served
from handscroll.serve.prompts import Prompt
from handscroll.serve.serving import Serving
from handscroll.serve.worker import Stream, Token, Wanted
from handscroll.text.chat.thinking import Piece, Thinking

FINISH = {"eos": "stop", "stop": "stop", "complete": "stop", "length": "length"}


class Said(NamedTuple):
    """What one token adds to answer `number`: a text, and a thought. `finish` is there with its last token."""

    number: int
    text: str
    thought: str
    token: Token
    finish: str | None


class Asked(NamedTuple):
    """A prompt and the requests for its answers."""

    prompt: Prompt
    requests: Sequence[Request]


@dataclass(eq=False)
class Answering:
    """The answers to some prompts, in order: those of the first prompt, then those of the second.

    `held` frees the place when it is closed. `user` keeps apart what one key's users have read.
    """

    serving: Serving
    owner: Owner
    served: Served
    asked: Sequence[Asked]
    user: str = ""
    held: ExitStack = field(default_factory=ExitStack)
    begun: float = field(default_factory=time.monotonic)
    new: int = 0  # tokens of all answers so far
    _stream: Stream | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt of each answer."""
        return [one.prompt for one in self.asked for _ in one.requests]

    async def said(self) -> AsyncGenerator[Said]:
        """All answers as they arrive. Whoever stops early, stops their jobs."""
        wanted, listening = self._wanted()
        engine, worker = self.served.writing, self.serving.worker
        self._stream = stream = worker.submit(engine, wanted)
        try:
            async for number, token in stream:
                if not self.new:
                    self.serving.metrics.first(self.served.name, time.monotonic() - self.begun)
                self.new += 1
                pieces = _pieces(listening[number], token)
                text = "".join(piece.text for piece in pieces if not piece.thinking)
                thought = "".join(piece.text for piece in pieces if piece.thinking)
                yield Said(number, text, thought, token, None if token.finish is None else FINISH[token.finish])
        finally:
            closed = worker.close(stream)
            if stream.ended:
                self.settle()
            else:  # the step that goes on may still read for them
                asyncio.wrap_future(closed).add_done_callback(lambda _: self.settle())

    def usage(self) -> dict[str, Any]:
        """The numbers of tokens, as OpenAI's interface gives them."""
        prompt = sum(len(one.prompt.ids) for one in self.asked)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.new,
            "total_tokens": prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": self._cached()},
        }

    def contract(self) -> dict[str, Any]:
        """What was read for the answers: how many of how many tokens, how many of them now, by which model."""
        whole, cached = self._certificate(), self._cached()
        counts = {"offered": whole.offered, "seen": whole.seen, "cached": cached, "read_now": whole.seen - cached}
        found: dict[str, Any] = {
            "tokens": counts,
            "sha256": whole.sha256,
            "model": self.served.name,
            "weights": self.served.fingerprint,
        }
        if document := next((one.prompt.document for one in self.asked if one.prompt.document), None):
            found["document"] = dict(document)
        if documents := [dict(record) for one in self.asked for record in one.prompt.documents]:
            found["documents"] = documents
        if notes := [note for one in self.asked for note in one.prompt.notes]:
            found["notes"] = notes
        return found

    def _certificate(self) -> Certificate:
        """How many tokens of the prompts were given to the model, and their hash."""
        jobs, first, found = [] if self._stream is None else self._stream.jobs, 0, list[Certificate]()
        for one in self.asked:
            fed = jobs[first].tokens[: jobs[first].asked] if first < len(jobs) else one.prompt.ids
            found.append(certify(fed, len(one.prompt.ids)))
            first += len(one.requests)
        return found[0] if len(found) == 1 else together(found)

    def _cached(self) -> int:
        """Tokens of the prompts that were not read for these answers."""
        return sum(job.reused for job in self._readers())

    def _read(self) -> int:
        """Tokens of the prompts that were read for these answers so far: of one that was given up, perhaps none."""
        return sum(min(job.read, job.asked - job.reused) for job in self._readers())

    def _readers(self) -> list[Job]:
        """The first job of each prompt, which reads for all of its answers."""
        jobs = [] if self._stream is None else self._stream.jobs
        firsts = accumulate((len(one.requests) for one in self.asked), initial=0)
        return [jobs[first] for first in firsts if first < len(jobs)]

    def _wanted(self) -> tuple[list[Wanted], list[Thinking | None]]:
        """The requests for the engine, and what tells apart thinking and text in each answer."""
        wanted, listening = list[Wanted](), list[Thinking | None]()
        owner = f"{self.owner.number} {self.user}"
        for one in self.asked:
            for request in one.requests:
                thinking = shown = None
                if one.prompt.speaker is not None and one.prompt.rendered is not None:
                    thinking, shown = one.prompt.speaker.listening(one.prompt.rendered)
                wanted.append(Wanted(request, owner, shown))
                listening.append(thinking)
        return wanted, listening

    def settle(self, scored: int = 0) -> None:
        """Count what was read and written; `scored` tokens of prompts without a job were charged before."""
        read, cached = self._read(), self._cached()
        self.serving.metrics.tokens(self.served.name, scored + read + cached, cached, self.new)
        self.serving.admission.use(self.owner, read + self.new)


async def whole(answering: Answering) -> list[list[Said]]:
    """Everything that is said, by answer."""
    found: list[list[Said]] = [[] for _ in answering.prompts]
    async with aclosing(answering.said()) as pieces:
        async for one in pieces:
            found[one.number].append(one)
    return found


def place(serving: Serving, owner: Owner, count: int) -> ExitStack:
    """A place for so many answers, which is held until the stack is closed.

    Raises:
        ApiError: there is none, or they are too many for one request.
    """
    limits = serving.settings.limits
    most = min(limits.choices, limits.each, limits.waiting)
    if count > most:
        raise ApiError(400, f"{count} answers are asked for, and one request may ask for {most}", "too_large", "n")
    held = ExitStack()
    held.enter_context(serving.admission.answering(owner, count))
    return held


def _pieces(thinking: Thinking | None, token: Token) -> list[Piece]:
    if thinking is None:
        return [Piece(token.text)]
    return list(thinking.push(token.text, final=token.finish is not None))
