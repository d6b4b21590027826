"""One request: what is asked, how far it has been read, what was answered."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from handscroll.cache.reading.reading import Reading
from handscroll.generate.engine.blocks import following
from handscroll.generate.sample import Sampling


@dataclass(frozen=True, eq=False)
class Options:
    """What a request may set besides its prompt; `submit` explains."""

    sampling: Sampling
    priority: int = 0
    owner: str = ""
    ends: frozenset[int] = frozenset()
    on_token: Callable[[int], bool] | None = None
    reading: Reading | None = None


@dataclass(eq=False)
class Request:
    """The handle that `Engine.submit` returns.

    `tokens` are the prompt's `asked` ids and, after them, the answer so far; `logprobs` has a number for each token of
    the answer: its natural log-probability under the model itself, before temperature and cut-offs. `finish` is None
    while the request lives, else "eos", "stop", "length" or "cancelled".

    `before` tokens come from a saved reading; keys and values of tokens before .. done - 1 lie in `blocks`.
    """

    number: int
    tokens: list[int]
    options: Options
    bucket: int
    declared: int
    begin: bytes
    random: torch.Generator
    cancel: Callable[[], None]
    asked: int = 0
    before: int = 0
    done: int = 0
    served: int = 0  # the step in which it was last read for, or submitted
    named: int = 0  # of its blocks, from the first on
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seen: Tensor | None = None
    finish: str | None = None

    def __post_init__(self):
        self.asked = len(self.tokens)
        self.before = self.done = 0 if self.options.reading is None else self.options.reading.length

    @property
    def answer(self) -> list[int]:
        """The new tokens so far."""
        return self.tokens[self.asked :]

    def name(self, number: int, size: int) -> bytes:
        """The name of its block of that number, with `size` tokens a block."""
        while len(self.names) <= number:
            first = self.before + len(self.names) * size
            parent = self.names[-1] if self.names else self.begin
            self.names.append(following(parent, self.tokens[first : first + size]))
        return self.names[number]
