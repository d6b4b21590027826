"""A text that several tests of long-context evaluation hide things in."""

import random
from pathlib import Path

WORDS = "the of and river stone walked slowly under a bright old bridge near town".split()


def write_book(path: Path, sentences: int = 900) -> Path:
    """A text of our own, the same on every machine."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(5, 14))).capitalize() + "." for _ in range(sentences)]
    path.write_text(" ".join(lines), encoding="utf-8")
    return path
