"""`Job`: a request in the engine: how far it has been read, and what was answered."""

from collections.abc import Callable
from dataclasses import dataclass, field

from handscroll.cache.reading.reading import There
from handscroll.generate.chooser import Chooser, NewToken, Scored
from handscroll.generate.engine.blocks import following
from handscroll.generate.request import Request


@dataclass(eq=False)
class Held:
    """The blocks that a job holds in one space, in the order of its tokens, after `dropped` that it let go."""

    blocks: list[int] = field(default_factory=list)
    dropped: int = 0
    named: int = 0  # of all its blocks, from the first on

    @property
    def end(self) -> int:
        """Blocks up to the last, those included that were let go."""
        return self.dropped + len(self.blocks)


@dataclass(eq=False)
class Job:
    """The handle that `Engine.submit` returns.

    `tokens` are the prompt's `asked` ids and, after them, the answer so far; `text` is that of the answer where the
    engine has a tokenizer; `scored` has log-probabilities for each token of the answer. `finish` is None while the job
    lives, else "eos", "stop", "complete", "length", "cancelled" or "error"; `error` is then what was raised.

    `before` tokens come from a saved reading, which is `there` on the engine's device from the first step on; keys and
    values of tokens before .. done - 1 lie in the blocks that are `held`, of each space of the pool: those of full
    layers first.

    `reused` tokens of the prompt, those of the reading included, were not read for it; `read` tokens of it were so far,
    those twice that were read again.
    """

    number: int
    request: Request
    chooser: Chooser
    bucket: int  # the key of its rotary tables
    declared: int
    begin: bytes
    cancel: Callable[[], None]
    priority: int = 0
    owner: str = ""
    on_token: Callable[[NewToken], object] | None = None
    tokens: list[int] = field(init=False)
    asked: int = field(init=False)
    before: int = field(init=False)
    done: int = field(init=False)
    reused: int = field(init=False)
    read: int = 0
    served: int = 0  # the step in which it was last read for, or submitted
    held: list[Held] = field(default_factory=lambda: [Held()])
    there: There | None = None
    names: list[bytes] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: str | None = None
    error: Exception | None = None

    def __post_init__(self):
        self.tokens = list(self.request.prompt)
        self.asked = len(self.tokens)
        self.before = self.done = self.reused = 0 if self.request.reading is None else self.request.reading.length

    @property
    def blocks(self) -> list[int]:
        """Its blocks of full layers."""
        return self.held[0].blocks

    def slot(self, space: int, token: int, size: int) -> int:
        """Where the keys and values of a token lie, in blocks of `size` tokens."""
        number, place = divmod(token - self.before, size)
        held = self.held[space]
        return held.blocks[number - held.dropped] * size + place

    @property
    def answer(self) -> list[int]:
        """The new tokens so far."""
        return self.tokens[self.asked :]

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return "".join(self.pieces)

    @property
    def logprobs(self) -> list[float]:
        """The natural log-probability of each new token under the model itself, before temperature and cut-offs."""
        return [one.logprob for one in self.scored]

    def name(self, number: int, size: int) -> bytes:
        """The name of its block of that number, with `size` tokens a block."""
        while len(self.names) <= number:
            first = self.before + len(self.names) * size
            parent = self.names[-1] if self.names else self.begin
            self.names.append(following(parent, self.tokens[first : first + size]))
        return self.names[number]
