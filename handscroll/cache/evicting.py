"""`EvictingCache`: the base of policies that hold at most `budget` tokens of each row and layer and forget the rest.

Layers that see a window keep it whole: budget and scores are those of the full layers.

A policy is a file with up to three methods: which queries count (`counted`), what is remembered of the attention mass
(`remembered`), and the scores that decide which tokens stay (`scores`). After every forward the tokens with the lowest
scores are evicted until `budget` are left. Their memory is freed: the buffers have room for the budget and one new
token. Tokens from the end of the buffer move into the slots of evicted ones, so decoding moves one slot per token.
Masks read marks, so the order of slots has no meaning. Keys keep the rotation of their original positions.

Tokens are chosen per layer, for all its kv heads together (their masses are added). Some papers choose per head and
keep other tokens for every head; here a layer has one set of tokens and one set of marks.
Within a forward no token is evicted: its T tokens see the budget and each other. A prompt is read in chunks, so the
cache never holds more than budget + chunk tokens.
Limits: no packed rows, no saved reading before it (`past`), no gradients; evicted tokens never come back.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.columns import Columns, copied, nbytes, part, put
from handscroll.nn.marks import Marks
from handscroll.nn.span import Observer, Span

PROTECTED = 1e12  # above any mass: protected tokens are evicted last, the oldest of them first


@dataclass(eq=False)
class EvictingCache(Cache):
    """At most `budget` tokens a row and full layer after each forward; `length` counts all tokens, `held` those left.

    Raises:
        ConfigError: there is no budget or one below `minimum`, there is a `past`, rows are packed, or a `trim` is
            impossible.
    """

    evicts: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("budget",)
    by_layer: ClassVar[bool] = True  # False: all layers keep the same tokens

    budget: int | None = None
    _store: dict[int, Columns] = field(init=False, default_factory=dict)
    _kept: dict[int, Marks] = field(init=False)  # by full layer
    _mass: dict[int, Tensor] = field(init=False, default_factory=dict)  # (B, held) float32 by full layer
    _new: dict[int, tuple[Marks, Tensor | None]] = field(init=False, default_factory=dict)  # of the running forward

    def __post_init__(self):
        super().__post_init__()
        if self.budget is None:
            raise ConfigError(
                f"the cache policy '{self.policy}' evicts tokens and needs a budget, such as {self.policy}:budget=4096"
            )
        if self.budget < self.minimum:
            raise ConfigError(
                f"a budget of {self.budget} tokens: the policy '{self.policy}' needs at least {self.minimum}"
            )
        if self.past:
            raise ConfigError(
                f"the policy '{self.policy}' cannot continue a saved reading, because a reading keeps every token"
            )
        self._kept = dict.fromkeys(self.full, Marks.run(0, 0))

    def counted(self, marks: Marks, device: torch.device) -> Tensor | None:
        """The weight of each new query in the attention mass, (B or 1, T); None: no mass is needed."""
        return None

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        """The masses (B, S) to remember, from the old ones (0 for new tokens) and those of the last forward."""
        raise NotImplementedError

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        """Scores (B, S) in float64 of tokens with `index` and remembered mass (B, S); the lowest are evicted first."""
        raise NotImplementedError

    def limit(self, gone_by: int) -> int | None:
        """The number of tokens that may stay after `gone_by` tokens were read; None: all."""
        return self.budget

    @property
    def held(self) -> int:
        """Tokens that are held per row and layer, padding included."""
        return self.marks.length

    def _nbytes(self) -> int:
        """Bytes of keys, values, indices and masses."""
        small = {
            t.data_ptr(): t.nbytes
            for t in (*(m.index for m in self._kept.values()), *self._mass.values())
            if t is not None
        }
        return sum(nbytes(columns) for columns in self._store.values()) + sum(small.values())

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        made = super()._footprint(kv_heads, head_size, itemsize)
        named = 12 * len(self.full) if self.by_layer else 8  # index and mass for each layer, or one index for all
        return made.model_copy(update={"each": made.each + named, "most": self.budget})

    def report(self) -> str:
        return f"{self.held:,} of {self.length:,} tokens are held, the others were evicted"

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        if layer == 0:
            self._new = {}
            if not marks.plain and bool(marks.tensors(keys.device)[1].any()):
                raise ConfigError(
                    f"the cache policy '{self.policy}' holds one document per row, but these rows are packed"
                )
        return super().append(layer, keys, values, marks)

    def _append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        batch, device = keys.shape[0], keys.device
        if self.by_layer or not self._new:
            pending = _joined(self._kept[layer], marks, batch, device)
        else:
            pending = next(iter(self._new.values()))[0]
        start, end = self._kept[layer].length, pending.length
        self._store[layer] = put(self._store.get(layer), (keys, values), start, self._room)
        held_keys, held_values = part(self._store[layer], 0, end)
        span = Span(held_keys, held_values, pending)
        counted = self.counted(marks, device)
        if counted is None:
            self._new[layer] = (pending, None)
            return [span]
        mass = torch.zeros(batch, end, device=device)
        self._new[layer] = (pending, mass)

        def take(first: int, new: Tensor) -> None:
            mass[:, first : first + new.shape[2]] += new.sum(dim=1)

        return [replace(span, observer=Observer(counted, take))]

    def _joined(self, marks: Marks, like: Tensor) -> Marks:
        return _joined(self.marks, marks, like.shape[0], like.device)

    def _commit(self) -> None:
        assert self._pending is not None
        before, end = self.held, self._pending.length
        limit = self.limit(self._gone + end - before)
        moves = None
        for layer, (marks, mass) in self._new.items():
            if mass is not None:
                old, known = torch.zeros_like(mass), self._mass.get(layer)
                if known is not None:
                    old[:, :before] = known
                mass = self._mass[layer] = self.remembered(old, mass)
            self._kept[layer] = marks
            if limit is not None and end > limit:
                if moves is None or self.by_layer:
                    moves = self._moves(self._store[layer], marks, mass, limit)
                    self._kept[layer] = _indexed(moved(moves[0], *moves[1:], limit))
                else:
                    self._kept[layer] = self._kept[self.full[0]]
                self._evict(layer, moves[1], moves[2], limit)
        self._new = {}

    def commit(self) -> None:
        super().commit()
        if self.full:
            self.marks = self._kept[self.full[0]]

    def _trim(self, length: int) -> None:
        self._new = {}
        if length == self._gone:
            return
        if self.held < self._gone or self._mass:
            raise ConfigError(
                f"a '{self.policy}' cache of {self.length} tokens cannot be trimmed to {length}: tokens that "
                "were evicted or scored since then cannot be restored; clone it before tokens that may be taken back"
            )
        self._kept = dict.fromkeys(self.full, self.marks.part(0, length))

    def _copy(self, other: Self, rows: Tensor | None) -> None:
        def taken(x: Tensor) -> Tensor:
            return x.clone() if rows is None else x[rows]

        kept = {n: marks if marks.index is None else _indexed(taken(marks.index)) for n, marks in self._kept.items()}
        other._kept = kept if self.by_layer else dict.fromkeys(self.full, kept[self.full[0]]) if kept else {}
        other._mass = {layer: taken(mass) for layer, mass in self._mass.items()}
        other._store = {layer: copied(held, 0, self.held, rows) for layer, held in self._store.items()}
        if kept:
            other.marks = other._kept[self.full[0]]

    def _moves(self, store: Columns, marks: Marks, mass: Tensor | None, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """The index (B, S) of a layer's tokens, and the moves after which `limit` of them are left."""
        index = marks.tensors(store[0].device)[0].expand(store[0].shape[0], -1)
        found = self.scores(index, index if mass is None else mass).double().masked_fill(index < 0, -torch.inf)
        return index, *moves(found, limit)

    def _evict(self, layer: int, into: Tensor, source: Tensor, limit: int) -> None:
        """Move the tokens that stay into the first `limit` slots and free the slots after them."""
        store, mass = self._store[layer], self._mass.get(layer)
        rows = torch.arange(into.shape[0], device=into.device)[:, None]
        for buffer in store:
            buffer[rows, :, into] = buffer[rows, :, source]
        if store[0].shape[2] > limit + 1:
            self._store[layer] = copied(store, 0, limit + 1)
        if mass is not None:
            self._mass[layer] = moved(mass, into, source, limit)

    def _room(self, needed: int, had: int) -> int:
        limit, wanted = self.limit(self._gone), max(needed, self.capacity, 2 * had)
        return wanted if limit is None else max(needed, min(wanted, limit + 1))


def moves(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The moves after which the `keep` highest `scores` (B, S) are in the first slots: into[b, i] takes source[b, i].

    Tokens that stay move from the slots after `keep` into slots before it whose tokens are evicted. If a row needs
    fewer moves than another, its other moves are from a slot to itself.
    """
    gone = torch.zeros_like(scores, dtype=torch.bool)
    gone.scatter_(1, scores.topk(scores.shape[1] - keep, dim=1, largest=False).indices, True)
    head, tail = gone[:, :keep], gone[:, keep:]
    count = min(head.shape[1], tail.shape[1])
    into = head.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    source = keep + tail.int().argsort(dim=1, stable=True)[:, :count]
    needed = torch.arange(count, device=scores.device) < head.sum(dim=1, keepdim=True)
    return into, torch.where(needed, source, into)


def moved(x: Tensor, into: Tensor, source: Tensor, keep: int) -> Tensor:
    """A copy (B, keep) of `x` (B, S) after the moves."""
    return x.scatter(1, into, x.gather(1, source))[:, :keep].clone()


def _joined(kept: Marks, new: Marks, batch: int, device: torch.device) -> Marks:
    if not kept.length:
        return new if new.index is None else _indexed(new.index)
    if kept.start is not None and new.start is not None and kept.start + kept.length == new.start:
        return Marks.run(kept.start, kept.length + new.length)
    return _indexed(torch.cat([marks.tensors(device)[0].expand(batch, -1) for marks in (kept, new)], dim=1))


def _indexed(index: Tensor) -> Marks:
    """Marks of one document by their index alone; no one reads their positions, because keys are rotated already."""
    return Marks(index.shape[1], index=index, segment=index.new_zeros(()).expand_as(index), positions=index)
