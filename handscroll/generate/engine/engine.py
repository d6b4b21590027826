"""Several requests at once over one pool of blocks: continuous batching, a synchronous step at a time.

A step reads one token for every request that answers, in one forward, and some tokens of prompts (Yu et al. 2022,
"Orca"; Kwon et al. 2023, "PagedAttention"; Agrawal et al. 2023, "Sarathi", for prompts in chunks beside decoding).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.base.workload import Footprint, Shape, Workload
from handscroll.cache.reading.reading import Reading
from handscroll.generate.decode import check_length, started
from handscroll.generate.engine.blocks import Blocks, beginning
from handscroll.generate.engine.independent import rows_together
from handscroll.generate.engine.pool import Pool, Rows, Run
from handscroll.generate.engine.request import Options, Request
from handscroll.generate.engine.scheduler import Chunk, Scheduler
from handscroll.generate.rows import finite
from handscroll.generate.sample import Sampling, generator, pick
from handscroll.models.model import Model
from handscroll.nn.marks import Marks

BLOCK = 32  # tokens of a block
BUDGET = 256  # prompt tokens of a step
FIXED = 64  # tokens of a prompt's chunks in deterministic mode
MOST = 32  # requests that hold blocks at once


class Answered(NamedTuple):
    """One new token of a request. `finish` is None while it goes on, else "eos", "stop" or "length"."""

    request: Request
    token: int
    logprob: float
    finish: str | None


class Engine:
    """A model that answers several requests together.

    Args:
        memory: bytes of keys and values, all layers together; or give
        blocks: how many blocks.
        block: tokens of a block.
        deterministic: a request's tokens and log-probabilities are the same bits whatever else runs, in any order, and
            whether a beginning was shared or blocks were given back; for one machine, build of torch and number of
            threads. Prompts are then read in chunks of `FIXED` tokens.
        budget: prompt tokens that a step reads beside the answers.
        most: requests that hold blocks at once; the others wait.
        poison: overwrite blocks that are given up with not-a-number (tests).

    Limits: the full cache only (`generate/policies` has others); a window's old blocks are kept. Not thread-safe.

    Raises:
        ConfigError: a number out of range, neither or both of `memory` and `blocks`.
        CapacityError: the memory holds no block, or the machine does not have it.
    """

    def __init__(  # noqa: PLR0913 - what it runs, in how much memory, how
        self,
        model: Model,
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
        self.model, self.deterministic = model, deterministic
        self.block_bytes = block * model.config.cache_bytes_per_token(model.dtype.itemsize)
        for name, value, least in (("block", block, 1), ("budget", budget, max(1, self._fixed)), ("most", most, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        count = _count(memory, blocks, self.block_bytes, block)
        try:
            self.pool = Pool(model, count, block, poison)
        except RuntimeError as error:
            raise CapacityError(
                f"the machine has no {count * self.block_bytes / 1e9:,.1f} GB for the engine's {count} blocks; give it "
                f"less memory ({error})"
            ) from None
        self.blocks = Blocks(count, self.pool.give_up)
        self._scheduler = Scheduler(self.blocks, block, budget, most, self._fixed)
        self._together = rows_together(model) if deterministic else 0
        self._submitted = 0

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        priority: int = 0,
        owner: str = "",
        on_token: Callable[[int], bool] | None = None,
        reading: Reading | None = None,
        beyond: bool = False,
    ) -> Request:
        """Queue a request and return its handle; nothing is computed before `step`.

        Args:
            sampling: as for `decode`; the random stream is that of a single prompt with this seed.
            priority: higher goes first; a request that waits rises by one every `scheduler.AGEING` steps.
            owner: beginnings that were read are shared among requests of one owner only.
            on_token: called with every token but end tokens; True ends the request (stop strings).
            reading: what the prompt begins with and need not be read again.
            beyond: allow prompt + max_tokens past the model's context.

        Raises:
            CapacityError: it needs more blocks than the pool has, or is longer than the context.
            DataError: an empty prompt without a bos, a token id outside the vocabulary, or not what the reading reads.
            ConfigError: stop strings without `on_token`, or a reading that belongs to other settings.
        """
        if sampling.stop and on_token is None:
            raise ConfigError("stop strings are looked for in text: give on_token, or end tokens")
        number, model = self._submitted, self.model
        ids = self.check(prompt, sampling, reading, beyond, number)
        declared, bucket = _bucket(model, len(ids) + sampling.max_tokens)
        before = "" if reading is None else f"{reading.number}:{reading.length}"
        ends = frozenset() if sampling.ignore_eos else frozenset(model.config.eos)
        request = Request(
            number=number,
            tokens=ids,
            options=Options(sampling, priority, owner, ends, on_token, reading),
            bucket=bucket,
            declared=declared,
            begin=beginning(owner, bucket, before),
            random=generator(sampling.seed, 0),
            cancel=lambda: self.cancel(request),
        )
        if sampling.repetition_penalty != 1.0:
            request.seen = torch.zeros(1, model.config.vocab, dtype=torch.bool, device=model.device)
            request.seen[0, torch.tensor(ids, device=model.device)] = True
        self._scheduler.add(request)
        self._submitted += 1
        return request

    def check(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        reading: Reading | None = None,
        beyond: bool = False,
        number: int = 0,
    ) -> list[int]:
        """The ids that a request begins with; refuses what `submit` would refuse, and computes nothing.

        Raises:
            CapacityError, DataError, ConfigError: those of `submit`; messages call the prompt by its `number`.
        """
        ids = started(self.model, number, prompt)
        check_length(self.model, number, len(ids), sampling.max_tokens, beyond)
        if reading is not None:
            _check_reading(ids, _bucket(self.model, len(ids) + sampling.max_tokens)[1], reading)
        tokens = len(ids) + sampling.max_tokens - 1 - (0 if reading is None else reading.length)
        size, count = self.pool.size, self.blocks.count
        needed = -(-tokens // size)
        if needed > count:
            raise CapacityError(
                f"prompt {number} needs {tokens} tokens of cache ({needed} blocks of {size}, "
                f"{needed * self.block_bytes / 1e6:,.1f} MB), but the engine has {count} blocks "
                f"({count * self.block_bytes / 1e6:,.1f} MB): give the engine more memory, or ask for a shorter text"
            )
        return ids

    def cancel(self, request: Request) -> None:
        """End a request and give its blocks back now; nothing happens to one that has ended."""
        if request.finish is None:
            self._end(request, "cancelled")

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self._scheduler.waiting and not self._scheduler.running

    def run(self) -> Iterator[list[Answered]]:
        """Step until no request is left; each item is what one step answered."""
        while not self.idle:
            yield self.step()

    @torch.no_grad()
    def step(self) -> list[Answered]:
        """One forward for the requests that answer, one for each chunk of a prompt; returns the new tokens.

        Raises:
            CheckpointError: the model gives what is no number; requests stay as they were.
        """
        plan = self._scheduler.plan()
        answered = [item for rows in self._batches(plan.rows) for item in self._read_rows(rows)]
        for chunk in plan.chunks:
            answered += self._read_chunk(chunk)
        return answered

    def _batches(self, rows: list[Request]) -> Iterator[list[Request]]:
        """Rows that go through one forward: of one rotation, and in deterministic mode few enough."""
        for bucket in dict.fromkeys(request.bucket for request in rows):
            same = [request for request in rows if request.bucket == bucket]
            few = self._together or len(same)
            yield from (same[first : first + few] for first in range(0, len(same), few))

    def _read_rows(self, rows: list[Request]) -> list[Answered]:
        rows = [request for request in rows if request.finish is None]  # a callback may have cancelled it
        if not rows:
            return []
        device = self.model.device
        tokens = torch.tensor([[request.tokens[request.done]] for request in rows], device=device)
        marks = Marks.of(torch.tensor([[request.done] for request in rows], device=device))
        hidden = self._hidden(tokens, marks, Rows(self.pool, rows), max(request.declared for request in rows))
        answers = [at for at, request in enumerate(rows) if request.done + 1 == len(request.tokens)]
        logits = finite(self.model.logits(hidden[answers])[:, -1]) if answers else hidden
        for request in rows:
            self._scheduler.advance(request, request.done + 1)
        return [
            self._choose(rows[at], logits[place : place + 1])
            for place, at in enumerate(answers)
            if rows[at].finish is None
        ]

    def _read_chunk(self, chunk: Chunk) -> list[Answered]:
        request, first, last = chunk
        if request.finish is not None:
            return []
        tokens = torch.tensor([request.tokens[first:last]], device=self.model.device)
        keeper = Run(self.pool, request, first, last, copy=self.deterministic)
        hidden = self._hidden(tokens, Marks.run(first, last - first), keeper, request.declared)
        whole = last == len(request.tokens)
        logits = finite(self.model.logits(hidden[:, -1:])[:, -1]) if whole else hidden
        self._scheduler.advance(request, last)
        return [self._choose(request, logits)] if whole else []

    def _hidden(self, tokens: Tensor, marks: Marks, keeper: Rows | Run, length: int) -> Tensor:
        model = self.model
        return model.hidden(model.embed(tokens, marks), marks, model.mask(), keeper, length)

    def _choose(self, request: Request, logits: Tensor) -> Answered:
        """The next token of a request from its logits (1, V)."""
        options = request.options
        token = int(pick(logits, options.sampling, [request.random], request.seen))
        wide = logits[0].to(torch.promote_types(logits.dtype, torch.float32))
        logprob = float(wide.log_softmax(dim=-1)[token])
        request.tokens.append(token)
        request.logprobs.append(logprob)
        if request.seen is not None:
            request.seen[0, token] = True
        if token in options.ends:
            finish = "eos"
        elif options.on_token is not None and options.on_token(token):
            finish = "stop"
        else:
            finish = "length" if len(request.answer) == options.sampling.max_tokens else None
        if request.finish is None and finish is not None:
            self._end(request, finish)
        return Answered(request, token, logprob, request.finish)

    def _end(self, request: Request, finish: str) -> None:
        request.finish = finish
        self._scheduler.drop(request)


def workload(model: Model, memory: int, budget: int = BUDGET, most: int = MOST, **_: Any) -> Workload:
    """The planner's question: a step of an engine with these settings, its pool and the logits of all that answer."""
    config, itemsize = model.config, model.dtype.itemsize
    return Workload(
        kind="serve",
        shape=Shape.of(config),
        length=max(1, budget),
        precision="bfloat16" if itemsize == 2 else "float32",
        cache=Footprint(each=0, fixed=memory + 3 * 4 * most * config.vocab),
    )


def _check_positions(model: Model) -> None:
    """Blocks are read by kernels that know one rotation and no bias."""
    model.spec.require("the engine", forward=True, one_text=True, keys=True, blocks=True)


def _count(memory: int | None, blocks: int | None, block_bytes: int, block: int) -> int:
    if (memory is None) == (blocks is None):
        raise ConfigError("give either memory (bytes) or blocks, and not both")
    count = blocks if memory is None else memory // block_bytes
    if count is None or count < 1:
        came = f"{blocks} blocks" if memory is None else f"{memory:,} bytes"
        raise CapacityError(
            f"the engine's memory of {came} holds no block: one of {block} tokens takes {block_bytes:,} bytes; give at "
            "least that, better some hundred times as much"
        )
    return count


def _bucket(model: Model, length: int) -> tuple[int, int]:
    """The declared length of a request, and the key of its rotary tables."""
    declared = model.spec.declared(length)
    return declared, model.spec.bucket(declared)


def _check_reading(ids: list[int], bucket: int, reading: Reading) -> None:
    begin = reading.tokens.tolist()
    if len(ids) <= len(begin) or ids[: len(begin)] != begin:
        raise DataError(
            f"the prompt does not go on from the reading: its first {len(begin)} tokens must be those of the reading, "
            "and at least one must follow"
        )
    if reading.identity.policy != "full" or reading.identity.bucket != bucket:
        raise ConfigError(
            f"the text was read with cache '{reading.identity.policy}' for requests of up to "
            f"{reading.identity.bucket} tokens; the engine wants 'full' and {bucket}: read the text again"
        )
