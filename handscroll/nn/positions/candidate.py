"""One way to lengthen a model, as data: trying it needs no copy of the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A method with its settings, and the changes that it makes to a configuration.

    `detail` names the settings. `changes` are new values of the configuration's fields. `longer`, if given, makes the
    longer table of positions from the learned rows. `exact`: texts of at most this many tokens, in a request whose
    declared length is no longer, give exactly the same logits as before.
    """

    method: str
    detail: str
    changes: dict[str, Any]
    longer: Callable[[Tensor], Tensor] | None = None
    exact: int = 0

    @property
    def name(self) -> str:
        return f"{self.method} ({self.detail})" if self.detail else self.method
