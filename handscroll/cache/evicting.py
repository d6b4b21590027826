"""`EvictingCache`: what the policies share that hold at most `budget` tokens of each row and layer and forget the rest.

A policy is a file with up to three methods: which queries count (`counted`), what is remembered of the attention mass
(`remembered`), and the scores by which tokens stay (`scores`). After every forward the lowest are evicted until
`budget` are left, and their memory is given back: the buffers have room for the budget and one new token. Slots of
evicted tokens are filled with what stays of the tail, so that decoding moves one slot a token; masks read marks, so the
order of slots means nothing. Keys keep the rotation of their original positions.

Tokens are chosen per layer, for all its kv heads together (their masses are added). Papers that choose per head keep
other tokens for every head; here a layer has one set of tokens and one set of marks.
Within a forward nothing is evicted: its T tokens see the budget and each other. A prompt is read in chunks, and at most
budget + chunk tokens are ever held.
Limits: no packed rows, nothing saved to go on from (`past`), no gradients; what was evicted never comes back.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.full import Cache, _Layer
from handscroll.nn.marks import Marks
from handscroll.nn.span import Observer, Span

PROTECTED = 1e12  # above any mass: protected tokens go last, the oldest of them first


@dataclass
class EvictingCache(Cache):
    """At most `budget` tokens a row and layer after each forward; `length` counts those gone by, `held` those left.

    Raises:
        ConfigError: no budget or one below `minimum`; a `past`; packed rows; a `trim` that cannot be done.
    """

    recordable: ClassVar[bool] = False

    name: ClassVar[str] = ""
    minimum: ClassVar[int] = 1
    by_layer: ClassVar[bool] = True  # False: all layers keep the same tokens

    budget: int | None = None
    _gone_by: int = 0
    _kept: list[Marks] = field(default_factory=list)  # of each layer
    _mass: list[Tensor | None] = field(default_factory=list)  # (B, held) float32 of each layer
    _new: list[tuple[Marks, Tensor | None]] = field(default_factory=list)  # of the forward that is running

    def __post_init__(self):
        super().__post_init__()
        if self.budget is None:
            raise ConfigError(
                f"the cache policy '{self.name}' evicts tokens and needs a budget, such as {self.name}:budget=4096"
            )
        if self.budget < self.minimum:
            raise ConfigError(
                f"a budget of {self.budget} tokens: the policy '{self.name}' needs at least {self.minimum}"
            )
        if self.past:
            raise ConfigError(f"a saved reading keeps every token; the policy '{self.name}' cannot go on from one")
        self._kept = self._kept or [Marks.run(0, 0)] * self.layers
        self._mass = self._mass or [None] * self.layers

    def counted(self, marks: Marks, device: torch.device) -> Tensor | None:
        """How much each new query counts, (B or 1, T); None: no attention mass is needed."""
        return None

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        """What is remembered of the masses (B, S): those from before (0 for new tokens), and the last forward's."""
        raise NotImplementedError

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        """Scores (B, S) in float64 of tokens with `index` (B, S) and remembered mass (B, S): the lowest go first."""
        raise NotImplementedError

    def limit(self, gone_by: int) -> int | None:
        """Tokens that may stay once `gone_by` have gone by; None: all."""
        return self.budget

    @property
    def length(self) -> int:
        return self._gone_by

    @property
    def held(self) -> int:
        """Tokens held per row and layer, padding included."""
        return self.marks.length

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, indices and masses."""
        small = {t.data_ptr(): t.nbytes for t in (*(m.index for m in self._kept), *self._mass) if t is not None}
        return super().nbytes + sum(small.values())

    def footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        full = super().footprint(kv_heads, head_size, itemsize)
        named = 12 * self.layers if self.by_layer else 8  # an index a layer and its mass, or one index
        return full.model_copy(update={"each": full.each + named, "most": self.budget})

    def report(self) -> str:
        return f"{self.held:,} of {self.length:,} tokens are held, the others were evicted"

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        batch, device = keys.shape[0], keys.device
        if layer == 0:
            self._new = []
            if not marks.plain and bool(marks.tensors(device)[1].any()):
                raise ConfigError(f"the cache policy '{self.name}' holds one document a row; these rows are packed")
        if layer and not self.by_layer:
            self._pending = self._new[0][0]
        else:
            self._pending = _joined(self._kept[layer], marks, batch, device)
        store, end = self._store[layer], self._pending.length
        store.keys = self._write(store.keys, keys, end)
        store.values = self._write(store.values, values, end)
        span = Span(store.keys[:, :, :end], store.values[:, :, :end], self._pending)
        counted = self.counted(marks, device)
        if counted is None:
            self._new.append((self._pending, None))
            return [span]
        mass = torch.zeros(batch, end, device=device)
        self._new.append((self._pending, mass))

        def take(first: int, part: Tensor) -> None:
            mass[:, first : first + part.shape[2]] += part.sum(dim=1)

        return [replace(span, observer=Observer(counted, take))]

    def commit(self) -> None:
        if self._pending is None:
            return
        before, end = self.held, self._pending.length
        self._gone_by += end - before
        limit = self.limit(self._gone_by)
        moves = None
        for layer, (marks, mass) in enumerate(self._new):
            if mass is not None:
                old, known = torch.zeros_like(mass), self._mass[layer]
                if known is not None:
                    old[:, :before] = known
                mass = self._mass[layer] = self.remembered(old, mass)
            self._kept[layer] = marks
            if limit is not None and end > limit:
                if moves is None or self.by_layer:
                    moves = self._moves(self._store[layer], marks, mass, limit)
                    self._kept[layer] = _indexed(moved(moves[0], *moves[1:], limit))
                else:
                    self._kept[layer] = self._kept[0]
                self._evict(layer, moves[1], moves[2], limit)
        self.marks, self._pending, self._new = self._kept[0], None, []

    def trim(self, length: int) -> None:
        self._pending, self._new = None, []
        if length == self.length:
            return
        if self.held < self.length or self._mass[0] is not None:
            raise ConfigError(
                f"a '{self.name}' cache of {self.length} tokens cannot be trimmed to {length}: what was evicted or "
                "scored since then cannot be undone; clone it before the tokens that may be taken back"
            )
        super().trim(length)
        self._kept, self._gone_by = [self.marks] * self.layers, length

    def clone(self) -> Self:
        return self._with(super().clone(), None)

    def take_rows(self, rows: Tensor) -> Self:
        return self._with(super().take_rows(rows), rows)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: t for name, t in super().state_dict().items() if name.endswith((".keys", ".values"))}
        for name, number in (("layers", self.layers), ("budget", self.budget), ("gone_by", self._gone_by)):
            state[name] = torch.tensor(number)
        for layer, (marks, mass) in enumerate(zip(self._kept, self._mass, strict=True)):
            if marks.index is None:
                state[f"{layer}.run"] = torch.tensor([marks.start, marks.length])
            else:
                state[f"{layer}.index"] = marks.index
            if mass is not None:
                state[f"{layer}.mass"] = mass
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        layers = range(int(state["layers"]))
        kept = [
            _indexed(state[f"{n}.index"]) if f"{n}.index" in state else Marks.run(*state[f"{n}.run"].tolist())
            for n in layers
        ]
        return cls(
            len(layers),
            marks=kept[0],
            budget=int(state["budget"]),
            _store=[_Layer(state.get(f"{n}.keys"), state.get(f"{n}.values")) for n in layers],
            _gone_by=int(state["gone_by"]),
            _kept=kept,
            _mass=[state.get(f"{n}.mass") for n in layers],
        )

    def _with(self, copy: Cache, rows: Tensor | None) -> Self:
        """This cache with the buffers of `copy`, and its own marks and masses copied alike."""

        def copied(x: Tensor) -> Tensor:
            return x.clone() if rows is None else x[rows]

        kept = [marks if marks.index is None else _indexed(copied(marks.index)) for marks in self._kept]
        if not self.by_layer:
            kept = kept[:1] * self.layers
        masses = [None if mass is None else copied(mass) for mass in self._mass]
        return replace(self, marks=kept[0], _store=copy._store, _kept=kept, _mass=masses, _new=[], _pending=None)

    def _moves(self, store: _Layer, marks: Marks, mass: Tensor | None, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Index (B, S) of the tokens of a layer, and the moves that leave `limit` of them."""
        assert store.keys is not None
        index = marks.tensors(store.keys.device)[0].expand(store.keys.shape[0], -1)
        found = self.scores(index, index if mass is None else mass).double().masked_fill(index < 0, -torch.inf)
        return index, *moves(found, limit)

    def _evict(self, layer: int, into: Tensor, source: Tensor, limit: int) -> None:
        """Move what stays into the first `limit` slots, and give back what lies behind."""
        store, mass = self._store[layer], self._mass[layer]
        assert store.keys is not None and store.values is not None
        rows = torch.arange(into.shape[0], device=into.device)[:, None]
        for buffer in (store.keys, store.values):
            buffer[rows, :, into] = buffer[rows, :, source]
        if store.keys.shape[2] > limit + 1:
            store.keys, store.values = (t[:, :, : limit + 1].clone() for t in (store.keys, store.values))
        if mass is not None:
            self._mass[layer] = moved(mass, into, source, limit)

    def _room(self, end: int, before: int) -> int:
        limit = self.limit(self._gone_by)
        wanted = super()._room(end, before)
        return wanted if limit is None else max(end, min(wanted, limit + 1))


def moves(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """How to leave the `keep` highest of `scores` (B, S) in the first slots: slot into[b, i] takes source[b, i].

    Slots of the head whose token goes are filled with tokens of the tail that stay; where a row needs fewer moves than
    another, the rest move in place.
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
    """Marks of one document by their index alone: keys are rotated already, nobody asks for their positions."""
    return Marks(index.shape[1], index=index, segment=index.new_zeros(()).expand_as(index), positions=index)
