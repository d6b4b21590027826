"""Who is read for in the next step: one token of every request that answers, and some tokens of prompts.

Order is by priority, raised by one for every `AGEING` steps that a request has waited, then by who was served longest
ago: so a long prompt is read in turns with short ones, and nobody waits for ever. When blocks run out, the request of
the lowest priority that came last gives its own back and is read again later. No tensor is touched here.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from handscroll.generate.engine.blocks import Blocks
from handscroll.generate.engine.request import Request

AGEING = 64  # steps of waiting that count as one level of priority
PATIENCE = 128  # steps after which a request that finds no room lets nobody pass


class Chunk(NamedTuple):
    """Tokens first .. last - 1 of one request."""

    request: Request
    first: int
    last: int


class Plan(NamedTuple):
    """One step: requests of which one token is read, and chunks of prompts, in order."""

    rows: list[Request]
    chunks: list[Chunk]


@dataclass(eq=False)
class Scheduler:
    """Requests over `blocks` of `size` tokens each.

    `budget` is how many prompt tokens a step may read, `most` how many requests may hold blocks at once. With `fixed`
    every prompt is cut at multiples of that many tokens, whatever else runs, and what was answered before a request
    gave its blocks back is read token by token, as it was written.
    """

    blocks: Blocks
    size: int
    budget: int
    most: int
    fixed: int = 0
    now: int = 0
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)

    def add(self, request: Request) -> None:
        request.served = self.now
        self.waiting.append(request)

    def drop(self, request: Request) -> None:
        """Forget a request, wherever it is; its blocks are given back now."""
        (self.running if request in self.running else self.waiting).remove(request)
        self._give_back(request)

    def plan(self) -> Plan:
        """The next step. Every block that it writes to is there."""
        self.now += 1
        self._admit()
        for request in self.running:  # others may have read what it comes to next
            self._match(request)
        rows, chunks, left = [], [], self.budget
        for request in sorted(self.running, key=_standing):
            if request in self.running and self._single(request) and self._reserve(request, request.done + 1):
                rows.append(request)
        for request in sorted(self.running, key=self._turn):
            if request in self.running and not self._single(request):
                taken = self._chunks(request, left)
                chunks += taken
                left -= sum(chunk.last - chunk.first for chunk in taken)
        # Whoever had to give blocks back to a better one is not read for.
        return Plan([r for r in rows if r in self.running], [c for c in chunks if c.request in self.running])

    def advance(self, request: Request, last: int) -> None:
        """Keys and values of the tokens before `last` are in its blocks: full ones may be shared from now on."""
        request.done = last
        end = last - request.before
        if self.fixed:
            end = min(end, (request.asked - request.before) // self.fixed * self.fixed)
        while (request.named + 1) * self.size <= end:
            self.blocks.name(request.blocks[request.named], request.name(request.named, self.size))
            request.named += 1

    def _admit(self) -> None:
        """Let requests in while their prompts find room beside those that are being read."""
        owed = sum(self._lacking(request) for request in self.running)
        for request in sorted(self.waiting, key=self._turn):
            if len(self.running) == self.most:
                return
            self._match(request)
            lacking = self._lacking(request)
            # One block more for each that answers, or it would be sent away again at once.
            if not self.running or lacking + owed + len(self.running) <= self.blocks.available:
                self.waiting.remove(request)
                self.running.append(request)
                owed += lacking
            else:
                self._give_back(request)
                if self.now - request.served > PATIENCE:
                    return

    def _chunks(self, request: Request, left: int) -> list[Chunk]:
        """What of a request is read with `left` tokens of the budget."""
        found: list[Chunk] = []
        first = request.done
        while first < (request.asked if self.fixed else len(request.tokens)):
            last = self._end(request, first) if self.fixed else min(len(request.tokens), first + left)
            if not 0 < last - first <= left or (found and last - first == 1):
                break
            if not self._reserve(request, last):
                break
            found.append(Chunk(request, first, last))
            first, left = last, left - (last - first)
        if found:
            request.served = self.now
        return found

    def _end(self, request: Request, first: int) -> int:
        """Where the chunk that begins at `first` ends if nothing limits it."""
        if not self.fixed:
            return len(request.tokens)
        if first >= request.asked:
            return first + 1
        return min(first + self.fixed - (first - request.before) % self.fixed, request.asked)

    def _single(self, request: Request) -> bool:
        return self._end(request, request.done) - request.done == 1

    def _reserve(self, request: Request, last: int) -> bool:
        """Take blocks for the tokens before `last`, from those of lower standing if need be."""
        while len(request.blocks) < self._count(last - request.before):
            block = self.blocks.take()
            if block is not None:
                request.blocks.append(block)
                continue
            victim = max(self.running, key=_standing)
            if victim is request:
                return False
            self.running.remove(victim)
            self.waiting.append(victim)
            self._give_back(victim)
        return True

    def _match(self, request: Request) -> None:
        """Go on after blocks that hold the same beginning; the last token is read in any case."""
        if len(request.blocks) * self.size != request.done - request.before:
            return
        end = (request.asked if self.fixed else len(request.tokens)) - 1 - request.before
        found: list[int] = []
        while (len(request.blocks) + len(found) + 1) * self.size <= end:
            block = self.blocks.find(request.name(len(request.blocks) + len(found), self.size))
            if block is None:
                break
            found.append(block)
        if self.fixed:
            whole = (len(request.blocks) + len(found)) * self.size // self.fixed * self.fixed // self.size
            found = found[: max(0, whole - len(request.blocks))]
        for block in found:
            self.blocks.share(block)
        request.blocks += found
        request.done += len(found) * self.size
        request.named = max(request.named, len(request.blocks)) if found else request.named

    def _give_back(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks, request.named, request.done = [], 0, request.before

    def _lacking(self, request: Request) -> int:
        """Blocks that it still needs for what is known of it."""
        return self._count(len(request.tokens) - request.before) - len(request.blocks)

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def _turn(self, request: Request) -> tuple[int, ...]:
        aged = request.options.priority + (self.now - request.served) // AGEING
        return -aged, request.served, request.number


def _standing(request: Request) -> tuple[int, ...]:
    """Who keeps its blocks: high priority first, then who came first."""
    return -request.options.priority, request.number
