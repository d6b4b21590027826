"""Chooses what the next step reads: one token of every job that answers, and some prompt tokens of the others.

Jobs are ordered by priority, then by how long ago they were served. A job's priority rises by one for every `AGEING`
steps that it waits. So a long prompt takes turns with short ones, and no job waits for ever. When blocks run out, the
youngest job of the lowest priority gives its blocks back and is read again later. This file touches no tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from handscroll.cache.pool import reach
from handscroll.generate.engine.blocks import Blocks
from handscroll.generate.engine.job import Held, Job

AGEING = 64  # steps of waiting that count as one level of priority
PATIENCE = 128  # after so many steps without room, a job lets no other pass


class Chunk(NamedTuple):
    """Tokens first .. last - 1 of one job."""

    job: Job
    first: int
    last: int


class Plan(NamedTuple):
    """One step: the jobs that get one new token, and the chunks of prompts that are read, in order."""

    rows: list[Job]
    chunks: list[Chunk]


@dataclass(eq=False)
class Scheduler:
    """Requests over `blocks` of `size` tokens each; `windowed` are those of layers that see a window, by its size.

    A job holds blocks for all of its tokens and, in each space of a window, for those that its next tokens see:
    the others are let go as it is read. A job goes on after blocks that hold the same beginning only where the
    windows before that place are there too.

    `budget` is how many prompt tokens a step may read, `most` how many requests may hold blocks at once. With `fixed`
    every prompt is cut at multiples of that many tokens, whatever else runs, and what was answered before a job
    gave its blocks back is read token by token, as it was written.
    """

    blocks: Blocks
    size: int
    budget: int
    most: int
    fixed: int = 0
    windowed: Mapping[int, Blocks] = field(default_factory=dict)
    now: int = 0
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)

    def __post_init__(self):
        self.spaces: list[tuple[int | None, Blocks]] = [(None, self.blocks), *self.windowed.items()]

    def add(self, job: Job) -> None:
        job.served, job.held = self.now, [Held() for _ in self.spaces]
        self.waiting.append(job)

    def drop(self, job: Job) -> None:
        """Forget a job and give its blocks back now."""
        (self.running if job in self.running else self.waiting).remove(job)
        self._give_back(job)

    def plan(self) -> Plan:
        """The next step. Every block that it writes to is there."""
        self.now += 1
        self._admit()
        for job in self.running:  # another job may have read its next tokens by now
            self._match(job)
        rows, chunks, left = [], [], self.budget
        for job in sorted(self.running, key=_standing):
            if job in self.running and self._single(job) and self._reserve(job, job.done + 1):
                rows.append(job)
        for job in sorted(self.running, key=self._turn):
            if job in self.running and not self._single(job):
                taken = self._chunks(job, left)
                chunks += taken
                left -= sum(chunk.last - chunk.first for chunk in taken)
        # A job that gave its blocks to a better one is not read in this step.
        return Plan([r for r in rows if r in self.running], [c for c in chunks if c.job in self.running])

    def advance(self, job: Job, last: int) -> None:
        """Record that the job's tokens before `last` were read: its full blocks may be shared from now on."""
        job.read += max(0, min(last, job.asked) - job.done)
        job.done = last
        end = last - job.before
        if self.fixed:
            end = min(end, (job.asked - job.before) // self.fixed * self.fixed)
        for (window, blocks), held in zip(self.spaces, job.held, strict=True):
            while (held.named + 1) * self.size <= end:
                if held.named >= held.dropped:
                    name = job.name(held.named, self.size)
                    blocks.name(held.blocks[held.named - held.dropped], name)
                held.named += 1
            self._let_go(blocks, held, self._first(window, last - job.before))

    def _admit(self) -> None:
        """Let requests in while their prompts find room beside those that are being read."""
        owed = [sum(column) for column in zip(*map(self._lacking, self.running), strict=True)] or [0] * len(self.spaces)
        for job in sorted(self.waiting, key=self._turn):
            if len(self.running) == self.most:
                return
            self._match(job)
            lacking = self._lacking(job)
            # One block more for each that answers, or it would be sent away again at once.
            wanted = [more + due + len(self.running) for more, due in zip(lacking, owed, strict=True)]
            fits = all(count <= blocks.available for count, (_, blocks) in zip(wanted, self.spaces, strict=True))
            if not self.running or fits:
                self.waiting.remove(job)
                self.running.append(job)
                owed = [more + due for more, due in zip(lacking, owed, strict=True)]
            else:
                self._give_back(job)
                if self.now - job.served > PATIENCE:
                    return

    def _chunks(self, job: Job, left: int) -> list[Chunk]:
        """The prompt chunks of a job that fit in the remaining token budget `left`."""
        found: list[Chunk] = []
        first = job.done
        while first < (job.asked if self.fixed else len(job.tokens)):
            last = self._end(job, first) if self.fixed else min(len(job.tokens), first + left)
            if not 0 < last - first <= left or (found and last - first == 1):
                break
            if not self._reserve(job, last):
                break
            found.append(Chunk(job, first, last))
            first, left = last, left - (last - first)
        if found:
            job.served = self.now
        return found

    def _end(self, job: Job, first: int) -> int:
        """The end of the chunk that begins at `first`, if nothing limits it."""
        if not self.fixed:
            return len(job.tokens)
        if first >= job.asked:
            return first + 1
        return min(first + self.fixed - (first - job.before) % self.fixed, job.asked)

    def _single(self, job: Job) -> bool:
        return self._end(job, job.done) - job.done == 1

    def _reserve(self, job: Job, last: int) -> bool:
        """Take blocks for the tokens before `last`; if none are free, take them from jobs of lower standing."""
        for number, (_, blocks) in enumerate(self.spaces):
            held = job.held[number]
            while held.end < self._count(last - job.before):
                block = blocks.take()
                if block is not None:
                    held.blocks.append(block)
                    continue
                victim = max(self.running, key=_standing)
                if victim is job:
                    return False
                self.running.remove(victim)
                self.waiting.append(victim)
                self._give_back(victim)
        return True

    def _match(self, job: Job) -> None:
        """Go on after blocks that hold the same beginning; the last token is read in any case."""
        if len(job.blocks) * self.size != job.done - job.before:
            return
        end = (job.asked if self.fixed else len(job.tokens)) - 1 - job.before
        found: list[int] = []
        while (len(job.blocks) + len(found) + 1) * self.size <= end:
            block = self.blocks.find(job.name(len(job.blocks) + len(found), self.size))
            if block is None:
                break
            found.append(block)
        for end in range(len(job.blocks) + len(found), len(job.blocks), -1):
            if (self.fixed and end * self.size % self.fixed) or not self._windows_there(job, end):
                continue
            more = found[: end - len(job.blocks)]
            for block in more:
                self.blocks.share(block)
            job.blocks.extend(more)
            job.held[0].named = max(job.held[0].named, end)
            for (window, blocks), held in zip(self.spaces[1:], job.held[1:], strict=True):
                self._let_go(blocks, held, self._first(window, end * self.size))
                for number in range(held.end, end):
                    block = blocks.find(job.name(number, self.size))
                    assert block is not None, "it was there just now"
                    blocks.share(block)
                    held.blocks.append(block)
                held.named = max(held.named, end)
            done = job.before + end * self.size
            if not job.scored:  # what it finds again after its blocks were taken is its own
                job.reused += done - job.done
            job.done = done
            return

    def _windows_there(self, job: Job, end: int) -> bool:
        """Whether a job that goes on after `end` blocks finds what windowed layers see before."""
        for (window, blocks), held in zip(self.spaces[1:], job.held[1:], strict=True):
            first = max(held.end, self._first(window, end * self.size))
            if any(blocks.find(job.name(number, self.size)) is None for number in range(first, end)):
                return False
        return True

    def _first(self, window: int | None, tokens: int) -> int:
        """The first block that is still seen once so many tokens have been read."""
        return 0 if window is None else max(0, tokens - window + 1) // self.size

    def _let_go(self, blocks: Blocks, held: Held, first: int) -> None:
        """Give back the blocks before number `first`."""
        if first > held.dropped:
            gone, held.blocks = held.blocks[: first - held.dropped], held.blocks[first - held.dropped :]
            blocks.release(gone)
            held.dropped = first

    def _give_back(self, job: Job) -> None:
        for (_, blocks), held in zip(self.spaces, job.held, strict=True):
            blocks.release(held.blocks)
        job.held, job.done, job.there = [Held() for _ in self.spaces], job.before, None
        if not job.scored:
            job.reused = job.before

    def _lacking(self, job: Job) -> list[int]:
        """Blocks of each space that it still needs for what is known of it."""
        whole = self._count(len(job.tokens) - job.before)
        return [
            max(0, (whole if window is None else min(whole, reach(window, self.size, self.budget))) - len(held.blocks))
            for (window, _), held in zip(self.spaces, job.held, strict=True)
        ]

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def _turn(self, job: Job) -> tuple[int, ...]:
        aged = job.priority + (self.now - job.served) // AGEING
        return -aged, job.served, job.number


def _standing(job: Job) -> tuple[int, ...]:
    """The order in which jobs keep their blocks: higher priority first, then earlier arrival."""
    return -job.priority, job.number
