"""The two tasks of RULER that count words: the most common words of a list, and of a coded text.

Both fill whatever room there is: more words for a longer text, in fixed proportions.
"""

import math
import string
from collections.abc import Iterator

from handscroll.evaluate.ruler.ask import Ask, Unfit
from handscroll.evaluate.ruler.bench import Bench, Piece
from handscroll.evaluate.ruler.words import Draw

COMMON, COMMON_ROOM = 10, 120  # common words of a list, as published, and tokens for the answer
LONG, SHORT = (30, 3), (6, 1)  # how often a common and an uncommon word stand in a list, from 4,096 tokens and below
EXAMPLE = {True: (10, 3, 40), False: (3, 1, 20)}  # the same and all words of the solved example, long and short
ALPHA, LETTERS, CODED_ROOM, PER_CODE = 2.0, 6, 50, 50  # the coded text: length / 50 words by a zeta law with alpha 2
NOISE = "..."  # the most frequent word of the coded text, which does not count
FROM = 4096


def common(bench: Bench, draw: Draw, task: str, budget: int, length: int) -> tuple[list[Piece], Ask]:
    """A numbered list in which ten words stand more often than the others, without a line's end.

    Where it does not fit, words stand less often, and then fewer words are common.

    Raises:
        Unfit: not even three common words and three others fit.
    """
    options = [(*LONG, COMMON)] if length >= FROM else []
    options += [(often, 1, COMMON) for often in range(SHORT[0], 2, -1)] + [(3, 1, 5), (3, 1, 3)]
    least = 0
    for often, seldom, count in options:
        stream = draw.several()
        chosen = [next(stream) for _ in range(count)]
        others, least = _fill(bench, stream, (chosen, often, seldom), budget)
        if len(others) >= count:
            return _listed(bench, draw, task, (chosen, others, often, seldom))
        draw.used.difference_update(chosen, others)
    raise Unfit(least - budget)


def example(bench: Bench, draw: Draw, task: str, long: bool) -> tuple[list[Piece], Ask]:
    """The list of a solved example."""
    often, seldom, count = EXAMPLE[long]
    stream = draw.several()
    words = [next(stream) for _ in range(count)]
    return _listed(bench, draw, task, (words[:COMMON], words[COMMON:], often, seldom))


def _fill(bench: Bench, stream: Iterator[str], how: tuple[list[str], int, int], budget: int) -> tuple[list[str], int]:
    """The uncommon words that fit beside the common ones, and the tokens of as many as there are common ones."""
    chosen, often, seldom = how
    spell, others = bench.speller, list[str]()
    number = len(chosen) * often
    used = often * sum(len(spell(f" {word}").ids) for word in chosen)
    used += sum(len(spell(f" {at}.").ids) for at in range(1, number + 1))
    least = used
    while True:
        word = next(stream)
        cost = seldom * len(spell(f" {word}").ids)
        cost += sum(len(spell(f" {at}.").ids) for at in range(number + 1, number + seldom + 1))
        if len(others) < len(chosen):
            least += cost
        if used + cost + 2 > budget:
            missing = max(0, len(chosen) - len(others) - 1)
            return others, least + missing * cost + 2
        used, number = used + cost, number + seldom
        others.append(word)


def _listed(
    bench: Bench, draw: Draw, task: str, made: tuple[list[str], list[str], int, int]
) -> tuple[list[Piece], Ask]:
    chosen, others, often, seldom = made
    words, spell = chosen * often + others * seldom, bench.speller
    draw.random.shuffle(words)
    pieces = []
    for number, word in enumerate(words, start=1):
        pieces += [spell(f" {number}." if number > 1 else "1."), spell(f" {word}")]
    question, lead = (text.format(count=len(chosen)) for text in bench.say.common)
    said = " ".join(f"{number}. {word}" for number, word in enumerate(chosen, start=1))
    details = {"common": len(chosen), "often": often, "seldom": seldom, "words": len(words)}
    ask = Ask(task, bench.say.common_about, question, lead, tuple(chosen), "all", said, COMMON_ROOM, (), details)
    return pieces, ask


def coded(bench: Bench, draw: Draw, task: str, budget: int, length: int) -> tuple[list[Piece], Ask]:
    """Invented words whose frequencies fall with the square of their rank; the first is noise, the next three count.

    Raises:
        Unfit: in so short a text the fourth word would not be rarer than the third.
    """
    size, spell = max(5, length // PER_CODE), bench.speller
    words = [NOISE]

    def word(rank: int) -> str:
        while len(words) <= rank:
            words.append(draw.letters(LETTERS, string.ascii_lowercase))
        return words[rank]

    def counts(total: int) -> list[int]:
        law = total / (math.pi**2 / 6)  # zeta(2)
        found = [int(law * rank**-ALPHA) for rank in range(1, size + 1)]
        return found[: next((at for at, one in enumerate(found) if not one), size)]

    def cost(total: int) -> int:
        return 2 + sum(each * len(spell(f" {word(rank)}").ids) for rank, each in enumerate(counts(total)))

    low, high = 0, budget + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    numbers = counts(low)
    if not _ordered(numbers):
        need = next(total for total in range(16, 1000) if _ordered(counts(total)))
        raise Unfit(cost(need) - budget)
    text = [word(rank) for rank, each in enumerate(numbers) for _ in range(each)]
    draw.random.shuffle(text)
    pieces = [spell(f" {one}" if at else one) for at, one in enumerate(text)]
    question, lead = bench.say.coded
    right = tuple(words[1:4])
    details = {"counts": numbers[:5], "words": len(text), "vocabulary": size}
    about = bench.say.coded_about
    ask = Ask(task, about, question, lead, right, "all", bench.say.listed(list(right)), CODED_ROOM, (), details)
    return pieces, ask


def _ordered(numbers: list[int]) -> bool:
    """Whether the three words that count are more frequent than all others."""
    return len(numbers) > 3 and numbers[3] > (numbers[4] if len(numbers) > 4 else 0)
