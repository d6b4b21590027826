"""Continuous batching: several requests over one pool of blocks, one synchronous step at a time.

A step reads one token for every request that answers, in one forward, and some tokens of prompts (Yu et al. 2022,
"Orca"; Kwon et al. 2023, "PagedAttention"; Agrawal et al. 2023, "Sarathi", for prompts in chunks beside decoding).
"""

from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.workload import Footprint, Workload
from handscroll.cache.pool import Layout, Pool
from handscroll.cache.table import kind_of, listed
from handscroll.generate.check import checked, declared
from handscroll.generate.chooser import Chooser, NewToken, check_stops, next_tokens
from handscroll.generate.engine.blocks import Blocks, beginning
from handscroll.generate.engine.independent import rows_together
from handscroll.generate.engine.job import Job
from handscroll.generate.engine.keepers import Rows, Run
from handscroll.generate.engine.scheduler import Chunk, Scheduler
from handscroll.generate.request import Request
from handscroll.generate.stream import Decodes
from handscroll.models.model import Model
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks

BLOCK = 32  # tokens of a block
BUDGET = 256  # prompt tokens of a step
FIXED = 64  # tokens of a prompt's chunks in deterministic mode
MOST = 32  # requests that hold blocks at once


class Answered(NamedTuple):
    """One new token of a job, what it adds to the text, and its natural log-probability under the model itself.

    `finish` is None while the job goes on, else as in `Job`. Where no token could follow (`job.error` says why),
    `token` and `logprob` are None.
    """

    job: Job
    token: int | None
    text: str
    logprob: float | None
    finish: str | None


class EngineSettings(TypedDict, total=False):
    """The settings of `Engine` besides its memory."""

    block: int
    deterministic: bool
    budget: int
    most: int


class Engine:
    """A model that answers several requests together.

    Args:
        tokenizer: gives answers their text; stop strings need it.
        memory: bytes of keys and values, all layers together; or give
        blocks: how many blocks.
        block: tokens of a block.
        deterministic: a request's tokens and log-probabilities are the same bits whatever else runs, in any order, and
            whether a beginning was shared or blocks were given back; for one machine, build of torch and number of
            threads. Prompts are then read in chunks of `FIXED` tokens.
        budget: prompt tokens that a step reads beside the answers.
        most: requests that hold blocks at once; the others wait.
        poison: overwrite blocks that are given up with not-a-number (tests).

    Layers that see a window hold blocks for it alone. Limits: keys and values are kept here, exactly, so no policy of
    caches (`cache/table.py`) applies. Not thread-safe.

    Raises:
        ConfigError: a number out of range, neither or both of `memory` and `blocks`.
        CapacityError: the memory holds no block, or the machine does not have it.
    """

    def __init__(  # noqa: PLR0913 - what it runs, in how much memory, how
        self,
        model: Model,
        tokenizer: Decodes | None = None,
        *,
        memory: int | None = None,
        blocks: int | None = None,
        block: int = BLOCK,
        deterministic: bool = False,
        budget: int = BUDGET,
        most: int = MOST,
        poison: bool = False,
    ):
        _check_positions(model)
        self._fixed = max(FIXED // block, 1) * block if deterministic and block >= 1 else 0
        self.model, self.tokenizer, self.deterministic = model, tokenizer, deterministic
        for name, value, least in (("block", block, 1), ("budget", budget, max(1, self._fixed)), ("most", most, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        layout = Layout(model.windows, block, most, budget)
        layer_bytes = block * model.config.spec.cache_bytes(1, model.cache_dtype.itemsize) // model.config.layers
        # Without a full layer more blocks cost nothing once every job has its windows.
        longest = most * -(-model.config.context // block)
        if None in model.windows:
            longest = (memory or 0) // layer_bytes
        count = _count(memory, blocks, lambda count: layout.blocks(count) * layer_bytes, block, longest)
        self.bytes = layout.blocks(count) * layer_bytes
        like = torch.empty(0, dtype=model.cache_dtype, device=model.device)
        try:
            self.pool = Pool(layout, count, (model.config.kv_heads, model.config.head_size), like, poison)
        except RuntimeError as error:
            raise CapacityError(
                f"the machine has no {self.bytes / 1e9:,.1f} GB for the engine's {count} blocks; give it less memory "
                f"({error})"
            ) from None
        made = {
            space.window: Blocks(space.count, partial(self.pool.give_up, number))
            for number, space in enumerate(self.pool.spaces)
        }
        self.blocks = made.pop(None)
        windowed = {window: held for window, held in made.items() if window is not None}
        self._scheduler = Scheduler(self.blocks, block, budget, most, self._fixed, windowed)
        self._together = rows_together(model) if deterministic else 0
        self._submitted = 0
        self._chosen: deque[tuple[Job, NewToken | Exception]] = deque()  # not delivered yet

    def submit(
        self,
        request: Request,
        priority: int = 0,
        owner: str = "",
        on_token: Callable[[NewToken], object] | None = None,
        shown: Decodes | None = None,
    ) -> Job:
        """Queue a request and return its handle; nothing is computed before `step`.

        Args:
            request: the random stream is that of a single prompt with this seed.
            priority: higher goes first; a job that waits rises by one every `scheduler.AGEING` steps.
            owner: beginnings that were read are shared among jobs of one owner only.
            on_token: called with every new token; if it returns something true, the job ends ("stop"). If it raises,
                the job ends with the error (`Job.error`), and the others go on.
            shown: decodes the answer instead of the tokenizer.

        Raises: those of `check`.
        """
        number, model = self._submitted, self.model
        request = self.check(request, number)
        length, bucket = declared(model, len(request.prompt) + request.sampling.max_tokens)
        reading = request.reading
        job = Job(
            number=number,
            request=request,
            chooser=Chooser(replace(request, logprobs=request.logprobs or 0), model, tokenizer=shown or self.tokenizer),
            bucket=bucket,
            declared=length,
            begin=beginning(owner, bucket, "" if reading is None else f"{reading.number}:{reading.length}"),
            cancel=lambda: self.cancel(job),
            priority=priority,
            owner=owner,
            on_token=on_token,
        )
        self._scheduler.add(job)
        self._submitted += 1
        return job

    def check(self, request: Request, number: int = 0) -> Request:
        """The request with the ids that it begins with; refuses what cannot be answered, and computes nothing.

        Raises:
            CapacityError: it needs more blocks than the pool has, or is longer than the context.
            DataError: an empty prompt without a bos, a token id outside the vocabulary, or not what the reading reads.
            ConfigError: stop strings without a tokenizer, a reading that belongs to other settings, or what the engine
                does not do: several samples, drafts, and cache policies.
            Messages call the prompt by its `number`.
        """
        if not isinstance(request, Request):
            raise ConfigError(
                f"the engine takes a Request, not {type(request).__name__}: "
                "submit(Request(lm.encode(prompt), lm.sampling(max_tokens=100)))"
            )
        _check_supported(request)
        check_stops(request, self.tokenizer)
        request = checked(self.model, request, number)
        reading = request.reading
        tokens = len(request.prompt) + request.sampling.max_tokens - 1 - (0 if reading is None else reading.length)
        size, count = self.pool.size, self.blocks.count
        needed = -(-tokens // size)
        if needed > count:
            raise CapacityError(
                f"prompt {number} needs {tokens} tokens of cache ({needed} blocks of {size}), but the engine has "
                f"{count} blocks ({self.bytes / 1e6:,.1f} MB): give the engine more memory, or ask for a shorter text"
            )
        return request

    def cancel(self, job: Job) -> None:
        """End a job and give its blocks back now; nothing happens to one that has ended."""
        if job.finish is None:
            self._end(job, "cancelled")

    @property
    def idle(self) -> bool:
        """Whether no job is left."""
        return not self._scheduler.waiting and not self._scheduler.running

    def run(self) -> Iterator[list[Answered]]:
        """Step until no job is left; each item is what one step answered."""
        while not self.idle:
            yield self.step()

    @torch.no_grad()
    def step(self) -> list[Answered]:
        """One forward for the jobs that answer, one for each chunk of a prompt; returns the new tokens.

        All tokens are chosen before the first is delivered, so that nothing that a callback does reaches another job.
        Tokens that an interrupted step did not deliver are what the next step delivers.

        Raises:
            CheckpointError: the model gives what is no number; jobs stay as they were.
        """
        if not self._chosen:
            plan = self._scheduler.plan()
            for rows in self._batches(plan.rows):
                self._read_rows(rows)
            for chunk in plan.chunks:
                self._read_chunk(chunk)
        answered = []
        while self._chosen:
            job, new = self._chosen.popleft()
            if job.finish is None:  # a callback may have cancelled it
                answered.append(self._deliver(job, new))
        return answered

    def _batches(self, rows: list[Job]) -> Iterator[list[Job]]:
        """Groups of rows that share a forward: rows of one rotation and, in deterministic mode, few enough of them."""
        for bucket in dict.fromkeys(job.bucket for job in rows):
            same = [job for job in rows if job.bucket == bucket]
            few = self._together or len(same)
            yield from (same[first : first + few] for first in range(0, len(same), few))

    def _read_rows(self, rows: list[Job]) -> None:
        device = self.model.device
        tokens = torch.tensor([[job.tokens[job.done]] for job in rows], device=device)
        marks = Marks.of(torch.tensor([[job.done] for job in rows], device=device))
        keeper = Rows(self.pool, rows, self.deterministic)
        hidden = self._hidden(tokens, marks, keeper, max(job.declared for job in rows))
        answers = [at for at, job in enumerate(rows) if job.done + 1 == len(job.tokens)]
        logits = finite(self.model.logits(hidden[answers])[:, -1]) if answers else hidden
        for job in rows:
            self._scheduler.advance(job, job.done + 1)
        for place, at in enumerate(answers):
            self._choose(rows[at], logits[place : place + 1])

    def _read_chunk(self, chunk: Chunk) -> None:
        job, first, last = chunk
        tokens = torch.tensor([job.tokens[first:last]], device=self.model.device)
        keeper = Run(self.pool, job, first, last, copy=self.deterministic)
        hidden = self._hidden(tokens, Marks.run(first, last - first), keeper, job.declared)
        whole = last == len(job.tokens)
        logits = finite(self.model.logits(hidden[:, -1:])[:, -1]) if whole else hidden
        self._scheduler.advance(job, last)
        if whole:
            self._choose(job, logits)

    def _hidden(self, tokens: Tensor, marks: Marks, keeper: Rows | Run, length: int) -> Tensor:
        model = self.model
        return model.hidden(model.embed(tokens, marks), marks, model.mask(), keeper, length)

    def _choose(self, job: Job, logits: Tensor) -> None:
        """Choose the next token of a job from its logits (1, V)."""
        try:
            (token,) = next_tokens([job.chooser], logits)
            self._chosen.append((job, job.chooser.take(token, logits[0])))
        except Exception as error:  # noqa: BLE001 - the code is the caller's (constraint, decoder), and others wait
            self._chosen.append((job, error))

    def _deliver(self, job: Job, new: NewToken | Exception) -> Answered:
        """Make a chosen token part of its job, and hand it to the callback."""
        if isinstance(new, Exception):
            job.error = new
            self._end(job, "error")
            return Answered(job, None, "", None, job.finish)
        assert new.scored is not None, "the engine asks for log-probabilities"
        job.tokens.append(new.token)
        job.scored.append(new.scored)
        job.pieces.append(new.text)
        finish = new.finish
        if job.on_token is not None:
            try:
                stop = job.on_token(new)
            except Exception as error:  # noqa: BLE001 - the code is the caller's, and others wait
                job.error, finish = error, "error"
            else:
                finish = finish or ("stop" if stop else None)
        if job.finish is None and finish is not None:
            self._end(job, finish)
        return Answered(job, new.token, new.text, new.scored.logprob, job.finish)

    def _end(self, job: Job, finish: str) -> None:
        job.finish = finish
        self._scheduler.drop(job)


def workload(model: Model, memory: int, settings: EngineSettings) -> Workload:
    """The workload that the planner is asked about: one step, the pool, and the logits of all jobs that answer."""
    config, itemsize = model.config, model.dtype.itemsize
    budget, most = settings.get("budget", BUDGET), settings.get("most", MOST)
    return Workload(
        kind="serve",
        spec=config.spec,
        length=max(1, budget),
        precision="bfloat16" if itemsize == 2 else "float32",
        cache=Footprint(each=0, fixed=memory + 3 * 4 * most * config.vocab),
    )


def _check_positions(model: Model) -> None:
    """Blocks are read by kernels that know one rotation and no bias."""
    model.spec.require("the engine", forward=True, one_text=True, keys=True, head=True, blocks=True)


def _count(memory: int | None, blocks: int | None, size: Callable[[int], int], block: int, longest: int) -> int:
    """The number of blocks of a whole text; with `memory`, the most of which the `size` fits, up to `longest`."""
    if (memory is None) == (blocks is None):
        raise ConfigError("give either memory (bytes) or blocks, and not both")
    count = blocks if memory is None else bisect(range(1, longest + 1), memory, key=size)
    if count is None or count < 1:
        came = f"{blocks} blocks" if memory is None else f"{memory:,} bytes"
        raise CapacityError(
            f"the engine's memory of {came} holds no block: one of {block} tokens takes {size(1):,} bytes; give at "
            "least that, better some hundred times as much"
        )
    return count


def _check_supported(request: Request) -> None:
    """Refuse what the engine does not do (ConfigError)."""
    reading = request.reading
    if reading is not None and not kind_of(reading.identity.policy).exact:
        raise ConfigError(
            f"the text was read with the cache '{reading.identity.policy}', which is approximate, and the engine is "
            f"exact: read the text again with {listed('exact', 'saved')}"
        )
    request.refuse("the engine", "samples", "draft", "policy", "chunk", "on_report", "on_finish")
