"""Learned position tables: a vector per position is added to the embedding; no position beyond the last has one."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec, Positions
from handscroll.nn.positions.candidate import Candidate
from handscroll.nn.positions.lengthen_learned import LEARNED

WIDE = 24  # bytes that one number of a table takes while the table is lengthened


class Table(Positions):
    """A table of `context` rows, which come after `unused` rows in the file (RoBERTa)."""

    words = "learned positions"
    methods = LEARNED
    way: Literal["table"] = "table"
    context: int
    trained: int
    unused: int = 0

    @property
    def limit(self) -> int:
        return self.context

    @property
    def pads(self) -> bool:
        return self.unused > 0

    @property
    def rows(self) -> int:
        return self.unused + self.context

    def reaching(self, length: int) -> "Table":
        return self.model_copy(update={"context": max(self.context, length)})

    def making(self, to: int, width: int) -> int:
        return WIDE * to * width

    def describe(self, layer: LayerSpec) -> str:
        return f"learned table of {self.context:,} rows"

    def candidates(
        self, method: str, to: int, first: Positions, layer: LayerSpec, factors: Any = None
    ) -> list[Candidate]:
        most = self.context**2
        if method == "hierarchical" and to > most:
            raise ConfigError(
                f"method 'hierarchical' makes at most {self.context:,} x {self.context:,} = {most:,} positions of "
                f"a table of {self.context:,}, not {to:,}; take another method, or a smaller --to"
            )
        names = [name for name in LEARNED if name != "hierarchical" or to <= most]
        names = names if method in ("auto", "all") else [method]
        changes = {"context": to, "original": first.trained}
        return [
            Candidate(
                name,
                "",
                changes,
                partial(_longer, LEARNED[name], self.unused, to),
                exact=0 if name == "interpolate" else self.context,  # all others keep the rows
            )
            for name in names
        ]

    def origin(self) -> "Table":
        return self.model_copy(update={"trained": self.context})


def _longer(make: Callable[[Tensor, int], Tensor], unused: int, to: int, rows: Tensor) -> Tensor:
    return torch.cat([rows[:unused], make(rows[unused:], to)])


def largest(numbers: Tensor) -> int:
    """The largest of numbers that select rows of a table, so that those beyond it are refused.

    An exported graph has no such number while it is traced: 0. Whatever runs the graph refuses rows beyond a table.
    """
    return 0 if torch.compiler.is_exporting() else int(numbers.max())
