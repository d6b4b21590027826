"""Texts and pairs of texts between a tokenizer's special tokens, with the place of every token in its text.

Encoders and heads read texts so. A text that is too long is cut into windows that overlap, and only if that was asked
for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.text.tokenizer import Tokenizer

Text = str | tuple[str, str]  # a text, or two that are read as a pair


@dataclass(frozen=True)
class Framed:
    """A text or a pair, or a window of it.

    `kinds` are token types. `spans` are the first character of each token in its text and the one behind its last;
    `parts` tell which text of a pair that is (None: a special token, which stands in none).
    """

    ids: list[int]
    kinds: list[int]
    spans: list[tuple[int, int]]
    parts: list[int | None]
    first: int = 0  # the number of its first token in the text that was cut


def framed(tokenizer: Tokenizer, text: Text, most: int, windows: bool = False, overlap: int = 0) -> list[Framed]:
    """The text as one row, or with `windows` as the fewest rows of at most `most` tokens.

    Windows share `overlap` tokens. Of a pair, the second text is cut; each window holds the whole first one.

    Raises:
        DataError: a text is none, or has no token.
        CapacityError: the text is too long and `windows` is false, or the first of a pair leaves no room.
    """
    if not isinstance(text, str | tuple | list):
        raise DataError(f"expected a text (str) or a pair of texts, not {type(text).__name__}: {str(text)[:60]}")
    first, *rest = (text,) if isinstance(text, str) else text
    if len(rest) > 1:
        raise ConfigError(f"expected a text or a pair of texts, not {len(rest) + 1} texts")
    encodings, special = [tokenizer.encoding(part) for part in (first, *rest)], tokenizer.room(bool(rest))
    if rest and not special:
        raise ConfigError(
            "this tokenizer puts nothing between the two texts of a pair: write both into one text, as the model was "
            "trained to read them"
        )
    whole = special + sum(len(encoding) for encoding in encodings)
    if not whole:
        raise DataError("the text has no tokens")
    if whole > most and not windows:
        raise CapacityError(
            f"the text has {whole} tokens with its special ones, the model's context is {most}; shorten it, let it be "
            f"read in windows (windows=True, --windows), or lengthen the model (handscroll extend ... --to {whole})"
        )
    long = encodings[-1]
    room = most - special - sum(len(encoding) for encoding in encodings[:-1])
    if whole > most and room <= overlap:
        raise CapacityError(
            f"the first text and the special tokens leave {max(room, 0)} of the model's {most} tokens for windows of "
            f"the second, which share {overlap}; shorten the first text"
        )
    before = encodings[:-1]
    if whole <= most:
        return [_row(tokenizer.around(*encodings), 0)]
    step = -(-(len(long) - overlap) // -(-(len(long) - overlap) // (room - overlap)))  # windows of nearly equal length
    long.truncate(step + overlap, stride=overlap)
    parts = enumerate((long, *long.overflowing))
    return [_row(tokenizer.around(*before, part), number * step) for number, part in parts]


def _row(encoding: Encoding, first: int) -> Framed:
    return Framed(encoding.ids, encoding.type_ids, encoding.offsets, encoding.sequence_ids, first)


def several(
    tokenizer: Tokenizer, texts: Sequence[Text], most: int, windows: bool = False, overlap: int = 0
) -> tuple[list[Framed], list[int]]:
    """The rows of several texts, and for each row the number of its text.

    Raises:
        ConfigError: `texts` is one text and not a list.
        DataError, CapacityError: see `framed`; the message names the text.
    """
    if isinstance(texts, str):
        raise ConfigError("expected a list of texts; for one text give [text]")
    rows: list[Framed] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        try:
            found = framed(tokenizer, text, most, windows, overlap)
        except (DataError, CapacityError) as error:
            raise type(error)(f"text {number}: {error}") from None
        rows += found
        owners += [number] * len(found)
    return rows, owners
