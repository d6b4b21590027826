"""The texts with which the checks probe: a passage of prose where the tokenizer can spell it, else random tokens."""

import math
import random

from handscroll.doctor.finding import Cannot
from handscroll.doctor.runtime import Ids, Runtime, Words

PASSAGE = """The lighthouse stood on a rock that the tide covered twice a day. Its keeper, an old woman named Marta, had
counted ships for thirty years: she wrote each one into a ledger, with the hour, the wind and the colour of its sails.
When the harbour was closed and no ship came any more, she went on counting. She counted gulls, then waves, then the
lamps that were lit in the village across the bay. One winter evening there was a lamp too many. It burned where no
house stood, low over the water, and it came nearer without a sound. Marta put down her pen, took the horn from its
hook, and called into the dark that the rock was there, that the water was low, that nobody should come closer before
the morning. A voice answered that they had no oars left, that there were four of them, and that they could see her
light. She let the long rope down the landing stairs and tied it to the iron ring. By midnight all four sat at her
stove, and the ledger had a new line: four guests, no wind, no sails.
"""


def probe(runtime: Runtime, count: int, seed: int = 0) -> Ids:
    """`count` ids: the passage, again and again, with the tokenizer's own frame; random ids where it has few words."""
    words = runtime.words
    if words is not None:
        ids = spelled(words, count)
        if len(set(ids)) > min(count // 4, 12) and max(ids) < _vocab(runtime, max(ids) + 1):
            return tuple(ids)
    return random_ids(runtime, count, seed)


def spelled(words: Words, count: int) -> list[int]:
    """The passage as `count` ids, again and again; its lines are joined, as in a book."""
    ids = words.encode(" ".join(PASSAGE.split()))
    while len(ids) < count:
        ids = ids + words.encode(" " + " ".join(PASSAGE.split()), frame=False)
    return ids[:count]


def random_ids(runtime: Runtime, count: int, seed: int = 0) -> Ids:
    """`count` ids that have no role of their own."""
    size, taken = _vocab(runtime, 0), set[int]()
    if not size:
        raise Cannot("neither a tokenizer nor the size of the vocabulary is known, so there is no text to read")
    if runtime.words is not None:
        taken = {*runtime.words.special.values(), *(one for one in runtime.words.roles.values() if one is not None)}
    if runtime.facts is not None:
        taken |= {one for ids in runtime.facts.special.values() for one in ids}
    draw = random.Random(seed)
    free = [number for number in range(size) if number not in taken] if size < 100_000 else range(1000, size - 1000)
    return tuple(draw.choice(free) for _ in range(count))


def _vocab(runtime: Runtime, otherwise: int) -> int:
    """The number of rows of the token table."""
    if runtime.facts is not None and runtime.facts.vocab:
        return runtime.facts.vocab
    return runtime.words.size if runtime.words is not None else otherwise


def room(runtime: Runtime, wanted: int) -> int:
    """A number of tokens for a probe: `wanted`, or what a learned table holds."""
    rows = runtime.facts.rows if runtime.facts is not None else None
    return wanted if rows is None else min(wanted, rows)


def trained(runtime: Runtime) -> bool:
    """Whether the model predicts the passage better than chance: only then does a loss mean anything."""
    spec = runtime.facts.spec if runtime.facts is not None else None
    if spec is not None and (not spec.predicts or spec.reads != "forward"):
        return False
    if runtime.words is None or _vocab(runtime, 0) < 2:
        return False
    ids = tuple(spelled(runtime.words, room(runtime, 96)))
    if len(set(ids)) < min(len(ids) // 4, 12):
        return False
    return float(-runtime.logprobs(ids).mean()) < 0.75 * math.log(_vocab(runtime, 2))
