"""`choose`: finds by measurement the cache that stays within a number of bytes and is nearest to the exact one.

If the full cache fits, it is taken. Otherwise the candidates that fit are rounding (int8, int4) and the evicting
policies with as many tokens as the bytes hold. A guard reads a piece of the prompt with the exact cache and with one
candidate after the other, scaled so that it keeps the same share, and compares the next-token distributions by their
mean KL divergence. Rounding comes first, the finest before the coarser, and the first that stays within the guard's
limit is taken; of the evicting policies it is the nearest. If none is near enough, the request is refused.

The choice reads at most a tenth as many tokens as the prompt has, or 576: pieces are made short enough. What is taken
is also asked to find a needle, to copy and to add, beside the exact cache, if the prompt is so long that this fits.

The budget is what keys, values and their bookkeeping take at any time of the request, while the prompt is read too:
chunks of the prompt are made small enough. Not counted: one layer's copy while a buffer grows or is cut, the model, and
what the guard itself needs, which is the exact cache of its piece.
Deterministic. Limits: what a piece of at most 2,048 tokens shows; a longer text may ask for what lies further back.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.workload import Footprint, Workload
from handscroll.cache.cache import Cache
from handscroll.cache.table import BLOCK, DEFAULT, POLICIES, cache_of, footprint, kind_of
from handscroll.generate.decode import decode
from handscroll.generate.divergence import Answers, Distance, Tasks, Way, answers, decoded, distance, right, tasks
from handscroll.generate.prefill import CHUNK
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.model import Model
from handscroll.nn.quantised import kept_bytes, quantised
from handscroll.text.tokenizer import Tokenizer

# The mean KL is what a token of the exact model's own text costs more, in nats. Rounding cost up to 0.004 on two
# models, evicting half of the cache 0.02 at least, and with it a sixth to four fifths of the needles
# (docs/benchmarks.md, 2026-11-25). The limit lies between: evicting policies are chosen only when
# a larger guard allows them.
GUARD = 0.01
PIECE, LARGEST, LEAST = 512, 2048, 192  # tokens of the piece: usual, at most, and made up to by the model itself
TAIL, STEP = 64, 8  # tokens of it that are compared, and that are read at a time
COST, FREE = 0.1, 576  # tokens that the choice reads at most: this share of the prompt's, or so many for any prompt
SHORTEST = 64  # tokens of a piece at least
TASKS = 8  # texts of the tasks, each as long as the piece
SMALLEST = 32  # tokens of a prompt that are read at a time, at least, where they are rounded
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class Demand(NamedTuple):
    """What a request needs from a cache: the prompt's ids and the most new tokens; `samples` share the prompt.

    `rewinds`: the cache is cut back (drafts). `grows`: more is read after the prompt (a conversation). The first `past`
    tokens of the prompt were read before: their keys and values lie in a cache that goes on or, if `filed`, in files
    that a GPU takes a copy of. `saved`: the cache is kept as a reading. `beside` are the bytes that a draft keeps,
    which no budget counts.
    """

    prompt: Sequence[int]
    new: int
    samples: int = 1
    rewinds: bool = False
    grows: bool = False
    past: int = 0
    saved: bool = False
    filed: bool = False
    beside: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that a cache receives; the last new token is never read."""
        return len(self.prompt) + self.new - 1

    @classmethod
    def of(cls, request: Request) -> Self:
        """That of a request."""
        past, filed = (0, False) if request.reading is None else (request.reading.length, request.reading.filed)
        new, draft = request.sampling.max_tokens, request.draft
        beside = 0 if draft is None else draft.nbytes(len(request.prompt) + new)
        return cls(request.prompt, new, request.samples, draft is not None, past=past, filed=filed, beside=beside)

    def bytes(self, policy: str, model: Model, chunk: int) -> int:
        """Most bytes of a policy's cache at any time."""
        made = _footprint(policy, model)
        if self.samples == 1:
            return made.peak(len(self.prompt), self.new, chunk)
        return made.peak(len(self.prompt), 1, chunk) + self.samples * made.held(self.new - 1)

    def hosted(self, policy: str, model: Model) -> int:
        """Bytes of a policy's cache in host memory, for a model on a GPU."""
        made = _footprint(policy, model)
        return math.ceil(made.hosted * (len(self.prompt) + self.samples * self.new))

    def workload(self, policy: str, model: Model, chunk: int = CHUNK) -> Workload:
        """The planner's workload of this request with a policy's cache; samples count as one long continuation."""
        made = _footprint(policy, model)
        return Workload(
            kind="generate",
            spec=model.spec,
            length=len(self.prompt) - self.past,
            past=self.past,
            copied=self.filed and model.device.type != "cpu",
            new=self.new * self.samples,
            chunk=chunk,
            precision="bfloat16" if model.dtype.itemsize == 2 else "float32",
            cache=made.model_copy(update={"fixed": made.fixed + self.beside}),
        )

    def others(self, policy: str) -> list[str]:
        """Other policies without a budget that suit this request, exact ones first."""
        kinds = [kind for kind in POLICIES.values() if (kind.exact or kind.rounds) and kind.policy != DEFAULT]
        fitting = [kind.policy for kind in sorted(kinds, key=lambda kind: not kind.exact) if self.suits(kind)]
        return [name for name in fitting if name != policy]

    def suits(self, kind: type[Cache]) -> bool:
        """Whether a policy's cache can be shared, cut back and saved as this request wants it."""
        return (kind.rewinds or (self.samples == 1 and not self.rewinds)) and (kind.saved or not self.saved)


def _footprint(policy: str, model: Model) -> Footprint:
    return footprint(policy, model.config, model.cache_dtype.itemsize, model.device.type)


def weights_of(model: Model) -> dict[str, Any]:
    """What a forecast of seconds has to know of a model's weights: their bytes, where they lie in number formats, and
    that products with them are then those of whole numbers."""
    rounded = quantised(model)
    return {"rounded": rounded, "stored": kept_bytes(model) if rounded else 0}


class Candidate(NamedTuple):
    """A policy with its options, tokens of a prompt a forward, and its bytes."""

    policy: str
    chunk: int
    nbytes: int


@dataclass(frozen=True)
class Choice:
    """What was chosen for a budget of `allowed` bytes where a full cache takes `full`; `loss` is None if it is exact.

    `tried` are the candidates that were measured, with their distances. `piece` tokens were read for it, the last
    `written` of which the model wrote itself. `tasks` are the shares that the exact cache and the chosen one reach in
    needles, copying and sums; None for what cannot be measured, and empty where the prompt is too short for the tasks.
    """

    policy: str
    chunk: int
    nbytes: int
    full: int
    allowed: int
    loss: Distance | None = None
    tried: tuple[tuple[Candidate, Distance], ...] = ()
    piece: int = 0
    written: int = 0
    tasks: dict[str, tuple[float, float] | None] = field(default_factory=dict)

    def report(self) -> str:
        """A line on what was chosen and what it costs; empty if the cache is exact."""
        if self.loss is None:
            return ""
        own = f", {self.written} of them written by the model" if self.written else ""
        kl = f"KL mean {self.loss.kl:.2g}, worst {self.loss.worst:.2g} nats"
        told = "".join(f", {name} {_told(pair)}" for name, pair in self.tasks.items())
        return (
            f"{self.policy} takes {size_text(self.nbytes)} of {size_text(self.allowed)}, a full cache "
            f"{size_text(self.full)}; against the exact cache on {self.piece} tokens of the prompt{own}: {kl}, same "
            f"likeliest token {self.loss.same:.0%}{told}"
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        made: dict[str, Any] = {"policy": self.policy, "bytes": self.nbytes, "full": self.full, "budget": self.allowed}
        if self.loss is None:
            return made | {"exact": True}
        tried = [{"policy": one.policy, "bytes": one.nbytes, **far._asdict()} for one, far in self.tried]
        pairs = {
            name: None if pair is None else {"exact": pair[0], "chosen": pair[1]} for name, pair in self.tasks.items()
        }
        measured = {"loss": self.loss._asdict(), "tasks": pairs, "tried": tried}
        return made | {"exact": False, "chunk": self.chunk, "piece": self.piece, "written": self.written, **measured}


def check_guard(guard: float, budget: object) -> None:
    """
    Raises:
        ConfigError: the guard is no number from 0 on, or there is no budget whose cost it would bound.
    """
    if not 0 <= guard < math.inf:
        raise ConfigError(f"the guard is {guard} nats; it must be a number from 0 on ({GUARD} is usual)")
    if guard != GUARD and (budget is None or isinstance(budget, Choice)):
        what = "there is no kv_budget" if budget is None else "the cache was chosen before"
        raise ConfigError(f"kv_guard is {guard}, but {what}: it bounds what the choice of a cache may cost")


def choose(model: Model, tokenizer: Tokenizer, demand: Demand, budget: str | int, guard: float = GUARD) -> Choice:
    """The cache for a request within `budget`: bytes, "2GiB", "500MB", or "50%" of the full cache.

    guard: the most mean KL, nats, that an approximate cache may cost.

    Raises:
        ConfigError: no such size; below one block of 64 tokens; a guard that is no number from 0 on.
        CapacityError: nothing fits, or nothing that fits is within the guard; it says what would be.
    """
    check_guard(guard, budget)
    full = demand.bytes(DEFAULT, model, CHUNK)
    allowed = size_of(budget, full)
    block = footprint(DEFAULT, model.config, model.cache_dtype.itemsize).held(BLOCK)
    if allowed < block:
        raise ConfigError(
            f"a budget of {size_text(allowed)} for keys and values is below one block of {BLOCK} tokens, which takes "
            f"{size_text(block)} in this model; the whole request takes {size_text(full)}"
        )
    if full <= allowed:
        return Choice(DEFAULT, CHUNK, full, full, allowed)
    suited = candidates(model, demand, allowed)
    likely = [one for one in suited if kind_of(one.policy).rounds or guard > GUARD]
    guarded = Guard(model, tokenizer, demand, allowed / full, 1 + len(likely or suited))
    tried: list[tuple[Candidate, Distance]] = []
    for one in suited:
        tried.append((one, guarded.distance(one)))
        if kind_of(one.policy).rounds and tried[-1][1].kl <= guard:
            break
    passed = [pair for pair in tried if pair[1].kl <= guard]
    if not passed:
        raise CapacityError(_refusal(guarded, allowed, guard, tried))
    taken, loss = min(passed, key=lambda pair: pair[1].kl)
    measured = {"piece": len(guarded.ids), "written": guarded.written, "tasks": guarded.tasks(taken)}
    return Choice(*taken, full, allowed, loss, tuple(tried), **measured)


def candidates(model: Model, demand: Demand, allowed: int) -> list[Candidate]:
    """Approximate caches that suit a request and stay within `allowed` bytes, rounding first."""
    found, config = [], model.config
    for policy, kind in POLICIES.items():
        suits = demand.suits(kind) and kind.takes(config.head_size)
        chunk = _chunk(policy, model, demand, allowed) if kind.rounds and suits else 0
        if chunk:
            found.append(Candidate(policy, chunk, demand.bytes(policy, model, chunk)))
    banded = model.spec.several_distances
    for name, kind in POLICIES.items():
        if kind.evicts and demand.suits(kind) and not (banded and kind.scored):
            found += _evicting(name, model, demand, allowed)
    return found


def size_of(text: str | int, full: int) -> int:
    """Bytes of a size as people write it; a share is one of `full`.

    >>> size_of("1.5KiB", 0), size_of("50%", 200), size_of(7, 0)
    (1536, 100, 7)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[a-z]*)\s*", str(text), re.IGNORECASE)
    unit = "" if found is None else found[2].lower()
    if found is None or (unit != "%" and unit not in UNITS):
        raise ConfigError(f"a budget of '{text}': give bytes, a size such as 2GiB or 500MB, or a share such as 50%")
    return int(float(found[1]) * (full / 100 if unit == "%" else UNITS[unit]))


def size_text(size: float) -> str:
    """Bytes in the largest binary unit that they fill.

    >>> size_text(3 << 29), size_text(1000)
    ('1.50 GiB', '1,000 bytes')
    """
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if size >= UNITS[unit.lower()]), None)
    return f"{size:,.0f} bytes" if unit is None else f"{size / UNITS[unit.lower()]:,.2f} {unit}"


class Guard:
    """Compares candidates with the exact cache on a piece of the prompt: its end, continued if the prompt is short.

    The piece is so short that `texts` of it can be read within the cost of a choice.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, demand: Demand, share: float, texts: int):
        self.model, self.tokenizer, self.demand = model, tokenizer, demand
        prompt, bos = list(demand.prompt), model.config.bos
        self.left = max(FREE, int(COST * len(prompt)))  # tokens that may still be read
        most = max(SHORTEST, min(self.left // texts, LARGEST))
        size = min(max(PIECE, math.ceil(BLOCK / share)), most, demand.tokens)
        if len(prompt) < min(size, LEAST):
            self.ids = prompt + self._own(prompt, min(size, LEAST) - len(prompt))
        else:
            begin = [bos] if bos is not None and prompt[0] == bos and len(prompt) > size else []
            self.ids = begin + prompt[-min(size, len(prompt)) :][len(begin) :]
        self.written = max(0, len(self.ids) - len(prompt))
        self.first = len(self.ids) - min(TAIL, len(self.ids) // 2)
        self.declared = model.spec.declared(len(prompt) + demand.new)
        self._rows = torch.tensor([self.ids])
        self._exact = self._read(Way(length=self.declared, step=STEP))

    def distance(self, candidate: Candidate) -> Distance:
        """How far a candidate is from the exact cache on the piece."""
        found = self._read(replace(self._way(candidate), step=STEP))
        return distance([self._exact], iter([found]), [self._rows[:, self.first :]])

    def tasks(self, candidate: Candidate) -> dict[str, tuple[float, float] | None]:
        """What the exact cache and a candidate reach in needles, copying and sums; None where the exact one fails too,
        or where the piece has no room. Empty if the tasks would cost too much."""
        if 2 * TASKS * len(self.ids) > self.left:
            return {}
        given = tasks(self.tokenizer, [self.ids], self.ids, needles=(0.0, 0.5, 1.0), sums=4)
        exact = self._reached(given, Way(length=self.declared))
        able = {name for name, share in exact.items() if share}
        asked = Tasks(
            given.needles if "needle" in able else (),
            given.copies if "copying" in able else given.copies[:0],
            given.sums if "sums" in able else (),
        )
        found = self._reached(asked, self._way(candidate))
        return {name: (share or 0.0, found[name] or 0.0) if share else None for name, share in exact.items()}

    def _read(self, way: Way) -> Tensor:
        self.left -= len(self.ids)
        return decoded(self.model, self._rows, self.first, way)[0]

    def _reached(self, given: Tasks, way: Way) -> dict[str, float | None]:
        told: Answers = answers(self.model, self.tokenizer, given, way)
        return {"needle": told.needle, "copying": told.copying, "sums": right(given, told.sums)}

    def _own(self, prompt: list[int], count: int) -> list[int]:
        sampling = Sampling(max_tokens=count, temperature=0.8, ignore_eos=True)
        request = Request(prompt, sampling, beyond=True)
        return [item.token for step in decode(self.model, [request]) for item in step]

    def _way(self, candidate: Candidate) -> Way:
        """The candidate with the piece for the whole: a budget of tokens and a chunk in proportion."""
        share, kind = len(self.ids) / self.demand.tokens, cache_of(candidate.policy)
        chunk = max(1, round(min(candidate.chunk, len(self.demand.prompt)) * share))
        policy = kind_of(candidate.policy)
        if isinstance(kind, partial):  # an evicting policy, with fewer tokens than users may ask for
            kind = partial(kind, budget=max(policy.minimum, int(kind.keywords["budget"] * share)))
        return Way(kind, chunk, self.declared)


def _chunk(policy: str, model: Model, demand: Demand, allowed: int) -> int:
    """The largest chunk of a prompt with which rounding stays within the bytes; 0: none does."""
    sizes = (CHUNK >> n for n in range(CHUNK.bit_length()) if CHUNK >> n >= SMALLEST)
    return next((chunk for chunk in sizes if demand.bytes(policy, model, chunk) <= allowed), 0)


def _evicting(name: str, model: Model, demand: Demand, allowed: int) -> list[Candidate]:
    """The policy with as many tokens as fit, an eighth of them for the chunk that is read; none or one candidate."""
    made = footprint(f"{name}:budget={BLOCK}", model.config, model.cache_dtype.itemsize)
    if made.whole and demand.grows:  # such a cache would keep every new text whole beside the budget
        return []
    if not made.each:  # all layers are windowed, and windows are never evicted
        return []
    others = made.model_copy(update={"each": 0}).peak(len(demand.prompt), demand.new, CHUNK)
    room = int((allowed - others) / made.each)
    budget = room - 1 if made.whole else max(BLOCK, room - max(1, min(CHUNK, room // 8)))
    chunk = CHUNK if made.whole else room - budget
    if budget < BLOCK or chunk < 1:
        return []
    policy = f"{name}:budget={budget}"
    size = demand.bytes(policy, model, chunk)
    return [Candidate(policy, chunk, size)] if size <= allowed else []


def _refusal(guarded: Guard, allowed: int, guard: float, tried: Sequence[tuple[Candidate, Distance]]) -> str:
    """The refusal: what came, what was measured, and what would pass (a larger budget, another guard, a disk)."""
    model, demand = guarded.model, guarded.demand
    full = demand.bytes(DEFAULT, model, CHUNK)
    said = f"within {size_text(allowed)} of the {size_text(full)} that a full cache of this request takes, "
    if tried:
        best, loss = min(tried, key=lambda pair: pair[1].kl)
        limit = f"{math.ceil(loss.kl * 100) / 100:g}"
        said += (
            f"no cache stays near enough to the exact one: the nearest, {best.policy}, is {loss.kl:.3g} nats per token "
            f"away on {len(guarded.ids)} tokens of the prompt, the guard allows {guard:g}. Accept it with a guard of "
            f"{limit} (--kv-guard {limit}), or "
        )
    else:
        said += "there is room for no other cache that suits it. Either "
    passing = _passing(guarded, allowed, guard, tried)
    needed, which = (full, DEFAULT) if passing is None else (passing.nbytes, passing.policy)
    said += f"give {size_text(needed)} (--kv-budget {needed}: {which})"
    if demand.samples == 1 and not (demand.rewinds or demand.grows or demand.saved):
        said += ", or keep all of it on disk, exactly (--cache offload)"
    return said


def _passing(
    guarded: Guard, allowed: int, guard: float, tried: Sequence[tuple[Candidate, Distance]]
) -> Candidate | None:
    """The smallest of a few candidates above the budget that passes the guard.

    Rounding, and the evicting policy that was nearest, at half and three quarters of the full cache.
    """
    model, demand = guarded.model, guarded.demand
    full, known = demand.bytes(DEFAULT, model, CHUNK), {one.policy for one, _ in tried}
    suited = candidates(model, demand, full)
    nearest = [one.policy.partition(":")[0] for one, _ in sorted(tried, key=lambda pair: pair[1].kl)]
    name = next((name for name in nearest if POLICIES[name].evicts), "h2o")
    found = [
        one._replace(chunk=SMALLEST, nbytes=demand.bytes(one.policy, model, SMALLEST))
        for one in suited
        if kind_of(one.policy).rounds and one.policy not in known
    ]
    if any(one.policy.startswith(f"{name}:") for one in suited):
        found += [one for share in (0.5, 0.75) for one in _evicting(name, model, demand, int(full * share))]
    larger = sorted((one for one in found if allowed < one.nbytes < full), key=lambda one: one.nbytes)
    return next((one for one in larger if guarded.distance(one).kl <= guard), None)


def _told(pair: tuple[float, float] | None) -> str:
    return "not measurable" if pair is None else f"{pair[1]:.0%} (exact {pair[0]:.0%})"
