"""Examples for supervised tuning: token ids, of which some are trained; whole, or left out and counted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import IGNORED, Row

NAMED = 5  # places that a message names


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example. The loss counts token i if `trained[i]`; the first token of an example is never predicted.

    `place` is where it comes from ("train.jsonl, row 12"). `note` says what is special about its form, in words that
    are the same for all examples of this kind, so that they can be counted.
    """

    ids: list[int]
    trained: list[bool]
    place: str = ""
    note: str = ""

    def __post_init__(self):
        assert len(self.ids) == len(self.trained), (len(self.ids), len(self.trained))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counted(self) -> int:
        """Number of tokens that count in the loss."""
        return sum(self.trained[1:])

    def row(self, document: int = 0) -> Row:
        """The example as a training row of its own length; `document` is its number."""
        tokens, trained = np.array(self.ids, dtype=np.int64), np.array(self.trained, dtype=bool)
        targets = np.full_like(tokens, IGNORED)
        targets[:-1][trained[1:]] = tokens[1:][trained[1:]]
        return Row(tokens, targets, document, 0)


@dataclass(frozen=True)
class TokenAccount:
    """What became of every token: offered = trained + untrained + left out.

    `left` names each example that was left out, with its number of tokens. `notes` counts examples by their note.
    """

    examples: int
    trained: int
    untrained: int
    left: tuple[tuple[str, int], ...] = ()
    longest: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """Number of tokens of the examples that were left out."""
        return sum(tokens for _, tokens in self.left)

    @property
    def offered(self) -> int:
        """Number of tokens that came in."""
        return self.trained + self.untrained + self.left_out

    def as_record(self) -> dict:
        """The account as JSON holds it."""
        return {
            "examples": self.examples,
            "offered": self.offered,
            "trained": self.trained,
            "untrained": self.untrained,
            "left_out": self.left_out,
            "left": [list(one) for one in self.left],
            "longest": self.longest,
            "notes": dict(self.notes),
        }

    def __str__(self) -> str:
        whole = max(1, self.offered)
        parts = {"trained": self.trained, "untrained": self.untrained, "left out": self.left_out}
        shares = ", ".join(f"{number:,} {name} ({number / whole:.1%})" for name, number in parts.items())
        lines = [f"{self.offered:,} tokens in {self.examples + len(self.left):,} examples = {shares}"]
        lines += [f"  {count:,} examples: {note}" for note, count in sorted(self.notes.items())]
        lines += [f"  left out: {_named(self.left)}"] if self.left else []
        return "\n".join(lines)


def account_of(kept: Iterable[Encoded], left: Iterable[Encoded] = ()) -> TokenAccount:
    """The account of examples that are learned from, and of others that are `left` out."""
    kept, notes = list(kept), Counter[str]()
    trained = sum(one.counted for one in kept)
    notes.update(one.note for one in kept if one.note)
    return TokenAccount(
        examples=len(kept),
        trained=trained,
        untrained=sum(map(len, kept)) - trained,
        left=tuple((one.place, len(one)) for one in left),
        longest=max(map(len, kept), default=0),
        notes=dict(notes),
    )


def fitting(
    examples: Sequence[Encoded], length: int, longest: Literal["refuse", "skip"] = "refuse"
) -> tuple[list[Encoded], TokenAccount]:
    """The examples of at most `length` tokens, and the account. An example is never cut.

    With `longest="skip"` longer ones are left out; the account names them.

    Raises:
        DataError: an example is longer and `longest` is "refuse", none is left, or one has no trained token.
        ConfigError: a setting is out of range.
    """
    if length < 2 or longest not in ("refuse", "skip"):
        raise ConfigError(f"length {length}, longest {longest!r}: need a length >= 2, and 'refuse' or 'skip'")
    empty = [one for one in examples if not one.counted]
    if empty:
        raise DataError(
            f"{len(empty):,} of {len(examples):,} examples have no token to learn "
            f"({_named([(one.place, len(one)) for one in empty])}): give them an answer, or leave them out"
        )
    long = [one for one in examples if len(one) > length]
    kept = [one for one in examples if len(one) <= length]
    if long and (longest == "refuse" or not kept):
        most = max(map(len, long))
        raise DataError(
            f"{len(long):,} of {len(examples):,} examples are longer than a row of {length:,} tokens "
            f"({_named([(one.place, len(one)) for one in long])}). Nothing is cut: rows of {most:,} tokens hold all of "
            + ("them, or leave these out with longest = 'skip'" if kept else "them")
        )
    if not kept:
        raise DataError("there are no examples to learn from")
    return kept, account_of(kept, long)


def _named(places: Sequence[tuple[str, int]]) -> str:
    """The first places with their numbers of tokens."""
    text = "; ".join(f"{place or 'an example'}: {tokens:,} tokens" for place, tokens in places[:NAMED])
    return text + (f"; and {len(places) - NAMED:,} more" if len(places) > NAMED else "")
