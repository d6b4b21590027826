"""What stands in a prompt besides the question: examples of the task, and what is known of the user who asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.cache.reading.store import Store
from handscroll.data.table.table import Table
from handscroll.search.similar import Similar

if TYPE_CHECKING:
    from handscroll.lm import LM
    from handscroll.tasks.task import Example, Task

Choose = Literal["first", "random", "similar", "user"]
CHOICES: tuple[Choose, ...] = get_args(Choose)
KNOWN = {"en": "What is known of the user who asks:", "zh": "关于提问用户的已知信息："}


@dataclass(frozen=True)
class Prompting:
    """`shots` of the `examples` stand before each question, and what `notes` say of its user.

    choose: "first" and "random" take the same ones for every question, so they are read once. "similar" takes the most
    similar ones, the best last: by BM25, or by the vectors of `encoder`. "user" takes the last ones of the same user.
    `store` keeps what was read for the next call.
    """

    shots: int = 0
    examples: "Sequence[Example]" = ()
    choose: Choose = "first"
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoder: "LM | None" = None
    seed: int = 0
    store: Store | None = None

    def __post_init__(self) -> None:
        if self.shots > len(self.examples):
            raise ConfigError(
                f"{self.shots:,} shots of {len(self.examples):,} examples: give more examples, or fewer shots"
            )
        if self.encoder is not None and self.choose != "similar":
            raise ConfigError(
                f"an encoder finds similar examples, but they are chosen by '{self.choose}': leave it out"
            )

    @property
    def fixed(self) -> bool:
        """Whether the same examples stand before every question."""
        return bool(self.shots) and self.choose in ("first", "random")

    def chosen(self, task: "Task", example: "Example") -> "Sequence[Example]":
        """The examples that stand before one question; one with the very same question is never among them.

        Raises:
            DataError: they are chosen by user, and the row names none.
        """
        if not self.shots:
            return ()
        own = task.likeness(example)
        pool = [one for one in self._ordered(task, example, own) if task.likeness(one) != own]
        return pool[-self.shots :] if self.choose in ("user", "similar") else pool[: self.shots]

    def known(self, example: "Example", language: str) -> str:
        """What is known of the user of an example, "" if nothing is; never of another one.

        Raises:
            DataError: something is known of users, and the row names none.
        """
        if not self.notes:
            return ""
        told = self.notes.get(user_of(example), ())
        return "\n".join([KNOWN[language], *(f"- {one}" for one in told)]) if told else ""

    def _ordered(self, task: "Task", example: "Example", own: str) -> "Sequence[Example]":
        if self.choose == "first":
            return self.examples
        if self.choose == "random":
            return [self.examples[at] for at in np.random.default_rng(self.seed).permutation(len(self.examples))]
        if self.choose == "user":
            return [one for one in self.examples if user_of(one) == user_of(example)]
        scores = self._vectors(task) @ self._vector(own) if self.encoder else self._index(task).scores(own)
        return [self.examples[at] for at in np.argsort(scores, kind="stable")]

    def _index(self, task: "Task") -> Similar:
        if "index" not in self._kept:
            self._kept["index"] = Similar([task.likeness(one) for one in self.examples])
        return self._kept["index"]

    def _vectors(self, task: "Task") -> np.ndarray:
        if "vectors" not in self._kept:
            assert self.encoder is not None
            found = self.encoder.embed([task.likeness(one) for one in self.examples])
            self._kept["vectors"] = (found / found.norm(dim=1, keepdim=True)).numpy()
        return self._kept["vectors"]

    def _vector(self, text: str) -> np.ndarray:
        assert self.encoder is not None
        return self.encoder.embed([text])[0].numpy()

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {}


def choice(name: str) -> Choose:
    """
    Raises:
        ConfigError: shots are not chosen so.
    """
    for one in CHOICES:
        if one == name:
            return one
    raise ConfigError(f"shots are not chosen by '{name}': {nearest(name, CHOICES)}")


def user_of(example: "Example") -> str:
    """
    Raises:
        DataError: the row names no user.
    """
    user = example.values.get("user")
    if user is None:
        raise DataError(f"{example.place}: no user, by whom examples or notes are chosen; add a column 'user'")
    return str(user)


def notes_of(table: Table) -> dict[str, tuple[str, ...]]:
    """What is known of each user, from rows with a `user` and a `text`.

    Raises:
        DataError: a column is missing, or a row is without one of them.
    """
    table.require("user", "text")
    found: dict[str, list[str]] = {}
    for record in table:
        user, text = record.get("user"), record.get("text")
        if user in (None, "") or not isinstance(text, str) or not text.strip():
            raise DataError(f"{record.place}: a row of a profile needs a user and a text; repair it")
        found.setdefault(str(user), []).append(text.strip())
    return {user: tuple(texts) for user, texts in found.items()}
