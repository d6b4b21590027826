"""`Runtime`: the one seam through which checks look at a model, whoever runs it.

A runtime implements what it can; what it cannot keeps its default here, which says so, and the checks that need it are
then reported as not examined, with that reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from handscroll.doctor.angles import Numbers
from handscroll.doctor.facts import Facts, Turning
from handscroll.doctor.finding import Cannot

Ids = tuple[int, ...]
ROWS = 64  # tokens that are compared at a time


@dataclass(frozen=True)
class Trial:
    """How texts are to be read.

    `rows` are the texts, as ids; several are made equal by padding on the side `pad`. `shift` is the position of the
    first token. `pieces` are the numbers of tokens that are read one after the other over a cache (none: all at once).
    `packed`: the rows are documents in one row, each at positions of its own. `length` is the declared length, for
    runtimes that have one (None: as long as the positions reach).
    """

    rows: tuple[Ids, ...]
    shift: int = 0
    pad: Literal["left", "right"] = "right"
    pieces: Ids = ()
    packed: bool = False
    length: int | None = None

    @property
    def declared(self) -> int:
        """The length that the positions reach."""
        return self.length or self.shift + max(map(len, self.rows))


class Tables(NamedTuple):
    """Cosines and sines (positions, pairs) as attention uses them, attention factor included."""

    cosine: Numbers
    sine: Numbers

    @property
    def angles(self) -> Numbers:
        """Angles in (-pi, pi]."""
        return np.arctan2(self.sine, self.cosine)

    @property
    def factor(self) -> float:
        return float(np.median(np.hypot(self.cosine, self.sine)))


class Words:
    """The tokenizer of a runtime, as the checks ask it."""

    roles: Mapping[str, int | None] = {}
    special: Mapping[str, int] = {}  # the special tokens by what they are written as
    template: str = ""  # the chat template's source; empty where there is none
    wants_bos: bool | None = None  # whether the checkpoint's files say that a text begins with BOS (None: they do not)
    pads: str = ""  # the side on which the tokenizer's settings say that rows are padded; empty: they do not say
    beyond: int = 0  # tokens that the vocabulary declares although no model needs a row for them

    def encode(self, text: str, frame: bool = True) -> list[int]:
        """The ids of a text; `frame` adds what the tokenizer puts around it."""
        raise NotImplementedError

    def trusted(self, text: str) -> list[int]:
        """The ids of a text in which special tokens that are written out become their ids, without a frame."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        raise NotImplementedError

    def token(self, number: int) -> str:
        """A token as it stands in the vocabulary."""
        raise NotImplementedError

    def render(self, messages: list[dict[str, str]], answer: bool = True) -> str:
        """The messages in the chat template.

        Raises:
            Cannot: the template refuses them, or fails.
        """
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The highest id that a text can have, plus one."""
        raise NotImplementedError


class Runtime:
    """A model in the hands of something that runs it."""

    kind: ClassVar[str] = ""
    source: str = ""
    facts: Facts | None = None
    words: Words | None = None
    wordless = "there is no tokenizer"  # why `words` is None
    generation: Mapping[str, Any] = {}  # the content of generation_config.json
    stops: frozenset[int] = frozenset()  # the tokens that end an answer
    rounding: float = 1e-3  # what rounding alone may leave between two ways to compute the same, relative to the spread

    def speaks(self) -> Words:
        """The tokenizer.

        Raises:
            Cannot: there is none.
        """
        if self.words is None:
            raise Cannot(self.wordless)
        return self.words

    def read(self, how: Trial) -> list[Tensor]:
        """What the model says of each row: logits (T, V) of tokens, or hidden states (T, D) where it predicts none."""
        raise Cannot(f"{self.kind} gives no logits of a text")

    def following(self, rows: Sequence[Ids]) -> list[Tensor]:
        """The logits (V,) of the token after each of several prompts in one batch, as the runtime itself makes them."""
        raise Cannot(f"{self.kind} gives no logits of a batch")

    def logprobs(self, ids: Ids) -> Tensor:
        """The log-probability (T - 1,) of tokens 1 .. T - 1, float64."""
        (logits,) = self.read(Trial((ids,)))
        wanted = torch.tensor(ids[1:], device=logits.device).split(ROWS)
        parts = zip(logits[:-1].split(ROWS), wanted, strict=True)
        return torch.cat([row.double().log_softmax(-1).gather(1, ids[:, None])[:, 0] for row, ids in parts]).cpu()

    def tables(self, turning: Turning, positions: Sequence[int], length: int) -> Tables:
        """The rotary tables of the layers of one kind at `positions`, in a text of `length` tokens."""
        raise Cannot(f"{self.kind} does not show its rotary tables")

    def felt(self, ids: Ids, layer: int, at: int) -> Tensor:
        """How much (T,) the output of a layer changes at each token when its input changes at token `at` alone."""
        raise Cannot(f"{self.kind} does not show its layers")

    def head(self) -> tuple[Tensor, Tensor]:
        """The token table and the head (V, D) that makes the logits."""
        raise Cannot(f"{self.kind} does not show its weights")

    def stored_head(self) -> bool:
        """Whether the files hold a head of their own."""
        raise Cannot("there are no files to look into")

    def answers_at(self, position: int) -> bool:
        """Whether the model reads a token at a position without refusing it."""
        raise Cannot(f"{self.kind} does not let a position be chosen")

    def other(self) -> "Runtime":
        """The same weights and configuration in an implementation that shares no code with this one."""
        raise Cannot("there is no second implementation to hold it against")


def apart(found: Tensor, wanted: Tensor) -> float:
    """The difference of two results relative to their spread (root mean squares); infinite where one has no numbers."""
    off = rows_apart(found, wanted)
    return float(off.square().mean().sqrt())


def rows_apart(found: Tensor, wanted: Tensor) -> Tensor:
    """The same for each token (T,), relative to the spread of all; in parts, since vocabularies are large."""
    parts = [_row(one, other) for one, other in zip(found.split(ROWS), wanted.split(ROWS), strict=True)]
    off, spread = (torch.cat(each) for each in zip(*parts, strict=True))
    return (off.sqrt() / spread.mean().sqrt().clamp_min(1e-30)).nan_to_num(float("inf"), posinf=float("inf"))


def _row(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The mean square of the difference, and of the spread, of each token."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return (found - wanted).square().mean(-1), (wanted - wanted.mean(-1, keepdim=True)).square().mean(-1)


def close(off: float, near: float) -> str:
    """How far two ways to compute the same are from each other, in words; `near` is what rounding may leave."""
    return f"equal to {off:.1e}" if off <= near else f"apart by {off:.1e} of the spread"
