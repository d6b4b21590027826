"""Examples for supervised tuning: token ids, of which some are trained; and the account of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

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
        return Row(tokens, targets, document, 0, note=self.note)


@dataclass(frozen=True)
class TokenAccount:
    """What became of every token: offered = trained + untrained + left out.

    `left` names each example that was left out, with its number of tokens. `notes` counts rows by their note.
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
        lines += [f"  {count:,} rows: {note}" for note, count in sorted(self.notes.items())]
        lines += [f"  left out: {_named(self.left)}"] if self.left else []
        return "\n".join(lines)


def _named(places: Sequence[tuple[str, int]]) -> str:
    """The first places with their numbers of tokens."""
    text = "; ".join(f"{place or 'an example'}: {tokens:,} tokens" for place, tokens in places[:NAMED])
    return text + (f"; and {len(places) - NAMED:,} more" if len(places) > NAMED else "")
