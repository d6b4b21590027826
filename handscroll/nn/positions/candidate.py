"""One way to lengthen a model, as data: trying it costs no copy of the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A method with its settings (`detail` names them), and what it makes of a configuration: `changes` are new values
    of its fields, `longer` makes the longer table of positions out of the learned rows, where there is one.

    `exact`: a text of at most so many tokens, in a request declared no longer, gives the very logits of before.
    """

    method: str
    detail: str
    changes: dict[str, Any]
    longer: Callable[[Tensor], Tensor] | None = None
    exact: int = 0

    @property
    def name(self) -> str:
        return f"{self.method} ({self.detail})" if self.detail else self.method
