"""The cache of a recurrent model: one state a layer, of constant size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.cache.cache import Cache
from handscroll.nn.marks import Marks
from handscroll.nn.recurrence import State
from handscroll.nn.shapes import Embeddings
from handscroll.nn.span import Span


@dataclass(eq=False)
class StateCache(Cache):
    """The cache of a recurrent model: one `State` per layer, as large after a million tokens as after one.

    It can be copied, branched and saved, but not cut back: a state cannot forget its last tokens.
    """

    policy: ClassVar[str] = "full"
    exact: ClassVar[bool] = True

    states: dict[int, State] = field(init=False, default_factory=dict)
    _coming: dict[int, State] = field(init=False, default_factory=dict)
    _read: int = field(init=False, default=0)  # tokens of the running forward

    @property
    def nbytes(self) -> int:
        held = [t for s in self.states.values() for t in (s.hidden, s.cell, s.segment) if t is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def state(self, layer: int) -> State | None:
        return self.states.get(layer)

    def keep(self, layer: int, out: Embeddings, after: State) -> Embeddings:
        self._coming[layer], self._read = after, out.shape[1]
        return out

    def commit(self) -> None:
        """Make the states of this forward those of the cache."""
        if self._coming:
            self.states, self._coming = self._coming, {}
            self._gone += self._read

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        raise ConfigError("this cache keeps a recurrent state and no keys; it is for a family without attention")

    def trim(self, length: int) -> None:
        if length != self.length:
            raise ConfigError(
                f"a recurrent state cannot be cut back from {self.length} tokens to {length}: earlier states are not "
                "kept; read the text again, without drafts"
            )

    def clone(self) -> "StateCache":
        return self._with(lambda tensor: tensor.clone())

    def take_rows(self, rows: Tensor) -> "StateCache":
        return self._with(lambda tensor: tensor[rows])

    def branch(self, capacity: int = 0) -> "StateCache":
        """A copy that any number of rows may continue."""
        return self.clone()

    def _with(self, change: Callable[[Tensor], Tensor]) -> "StateCache":
        states = {layer: state.each(change) for layer, state in self.states.items()}
        made = StateCache(self.layers)
        made.states, made._gone = states, self._gone
        return made
