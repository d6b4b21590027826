"""Distractors: sentences of the same form as a needle, about other keys, spread evenly over a haystack."""

from collections.abc import Callable, Sequence
from itertools import count

from handscroll.base.errors import ConfigError

TRIES = 8  # how often the sentences move nearer together before there is no room for them


def spread(
    text: Sequence[int], room: int, wanted: int, places: Sequence[int], sentence: Callable[[], list[int]]
) -> list[int]:
    """As many tokens as `text` has, with sentences in between: exactly `wanted` whole ones in the first `room` tokens.

    What follows has as many for each token. A sentence that a needle at one of `places` would cut in two begins at that
    place instead.

    Raises:
        ConfigError: so many sentences do not stand in `room` tokens beside the needles.
    """
    first: list[list[int]] = []
    while len(first) < wanted and sum(map(len, first)) < room:
        first.append(sentence())
    free = room - sum(map(len, first))
    for near in range(TRIES, -1, -1) if len(first) == wanted and free > wanted else ():
        made, taken = list[int](), 0
        for number, one in enumerate(first, start=1):
            taken = _put(made, text, taken, (2 * number - 1) * free * near // (2 * wanted * TRIES), one, places)
        if len(made) > room:
            continue
        for number in count(wanted + 1):
            if len(made) >= len(text):
                return made[: len(text)]
            taken = _put(made, text, taken, (2 * number - 1) * free // (2 * wanted), sentence(), places)
    raise ConfigError(
        f"{wanted:,} distractors do not fit into the {room:,} tokens of the shortest haystack: give fewer (about "
        f"{room // (len(first[0]) + 1):,} at most, and fewer than that where needles stand close together)"
    )


def _put(
    made: list[int], text: Sequence[int], taken: int, start: int, sentence: list[int], places: Sequence[int]
) -> int:
    """Append the text from `taken` to `start` and a sentence; returns how many tokens of the text are taken by then."""
    at = len(made) + max(0, start - taken)
    while cut := [place for place in places if at < place < at + len(sentence)]:
        at = max(cut)
    end = taken + at - len(made)
    made += [*text[taken:end], *sentence]
    return end
