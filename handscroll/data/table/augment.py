"""New rows from old ones: words swapped, left out or replaced by a model's, or the text translated there and back.

Every new row is marked (`augmented`: by what, from which row), so that a split never tests on it. Whether it helps is
for the caller to measure: `Table.keep` over the mark gives the rows without.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.survey.shingles import WORDS
from handscroll.data.table.split import AUGMENTED, made_from
from handscroll.data.table.table import Ledger, Table

Fill = Callable[[Sequence[tuple[str, str]]], Sequence[str]]
"""What says a word for each gap, given the text before and behind it: a masked model of ours, for instance."""


@dataclass(frozen=True)
class NoText:
    """What stands in place of a text that could not be made, and why it could not; the record counts the reasons."""

    why: str


Translate = Callable[[Sequence[str]], Sequence[str | NoText]]
"""What translates texts into another language and back: `tasks/back_translation.py`, or a service of the caller's."""
Texts = Callable[[Sequence[str], np.random.Generator], Sequence[str | NoText]]


@dataclass(frozen=True)
class Way:
    """A way to change texts: its name in the record, and the function over all texts at once."""

    name: str
    change: Texts


def swap(share: float = 0.1) -> Way:
    """Pairs of words change places, as many as `share` of the words, at least one (Wei and Zou 2019)."""
    return Way("swap", lambda texts, draw: [_swapped(text, _share(share), draw) for text in texts])


def delete(share: float = 0.1) -> Way:
    """Words are left out, as many as `share` of the words, at least one; one word always stays."""
    return Way("delete", lambda texts, draw: [_deleted(text, _share(share), draw) for text in texts])


def replace(fill: Fill, share: float = 0.1) -> Way:
    """Words are replaced by those that `fill` puts into their gaps, as many as `share` of the words, at least one.

    All gaps of all texts go to `fill` at once, each with the original text around it.
    """
    return Way("replace", lambda texts, draw: _replaced(texts, _share(share), draw, fill))


def translate(there_and_back: Translate) -> Way:
    """The text is what a translation into another language and back makes of it."""
    return Way("translate", lambda texts, draw: there_and_back(texts))


def augment(table: Table, column: str, way: Way, copies: int = 1, seed: int = 0) -> Table:
    """The table with up to `copies` new rows behind each row, whose text `way` has changed.

    A text gives no row if it comes out as it was but for blanks, blank, as another copy of the same row, or not at all;
    such are noted. Rows that were made by augmentation themselves are not changed again.

    Raises:
        ConfigError: `copies` is not positive.
        DataError: there is no such column, the rows have a column of the mark's name, or `way` gave another number of
            texts.
    """
    if copies < 1:
        raise ConfigError(f"copies {copies}; give 1 or more")
    table.require(column)
    own = next((one for one in table if one.values.get(AUGMENTED) is not None and not made_from(one)), None)
    if own is not None:
        raise DataError(
            f"{own.place} has an own column '{AUGMENTED}', the name of the mark of new rows; rename the column"
        )
    sources = [at for at, one in enumerate(table) if isinstance(one.get(column), str) and not made_from(one)]
    texts = [table.records[at].get(column) for at in sources]
    made: dict[int, list[str]] = {at: [] for at in sources}
    without = Counter[str]()
    for copy in range(copies):
        changed = way.change(texts, np.random.default_rng([seed, copy]))
        if len(changed) != len(texts):
            raise DataError(f"'{way.name}' gave {len(changed)} texts for {len(texts)}; it must give one for each")
        for at, text, new in zip(sources, texts, changed, strict=True):
            if isinstance(new, NoText):
                without[new.why] += 1
            elif why := _no_row(text, new, made[at]):
                without[why] += 1
            else:
                made[at].append(new)
    step, kept = Ledger(), []
    for at, record in enumerate(table):
        kept.append(record)
        for new in made.get(at, ()):
            step.add(f"rows made by '{way.name}'", record.place)
            kept.append(record.having(**{column: new, AUGMENTED: {"by": way.name, "from": record.place}}))
    if without:
        reasons = ", ".join(f"{count:,} {why}" for why, count in without.items())
        step.note(f"'{way.name}' left {without.total():,} texts without a new row: {reasons}")
    return table.having(kept, step)


def _no_row(text: str, new: str, made: Sequence[str]) -> str:
    """Why a changed text gives no row; "" if it gives one."""
    if not new.strip():
        return "blank"
    if "".join(new.split()) == "".join(text.split()):
        return "as they were"
    return "as another copy" if new in made else ""


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ConfigError(f"share {share}; give a share of the words above 0, at most 1")
    return share


def _count(words: int, share: float) -> int:
    return max(1, round(share * words))


def _swapped(text: str, share: float, draw: np.random.Generator) -> str:
    spans = [match.span() for match in WORDS.finditer(text)]
    if len(spans) < 2:
        return text
    words = [text[start:end] for start, end in spans]
    for _ in range(_count(len(words), share)):
        one, other = draw.choice(len(words), 2, replace=False).tolist()
        words[one], words[other] = words[other], words[one]
    return _with(text, spans, words)


def _deleted(text: str, share: float, draw: np.random.Generator) -> str:
    spans = [match.span() for match in WORDS.finditer(text)]
    if len(spans) < 2:
        return text
    gone = draw.choice(len(spans), min(_count(len(spans), share), len(spans) - 1), replace=False).tolist()
    for at in sorted(gone, reverse=True):
        start, end = spans[at]
        behind = text[end : end + 1] == " "
        text = text[:start] + text[end + behind :]
    return text.strip()


def _replaced(texts: Sequence[str], share: float, draw: np.random.Generator, fill: Fill) -> list[str]:
    spans = [[match.span() for match in WORDS.finditer(text)] for text in texts]
    picked = [
        sorted(draw.choice(len(own), min(_count(len(own), share), len(own)), replace=False).tolist()) if own else []
        for own in spans
    ]
    gaps = [
        (text[: own[at][0]], text[own[at][1] :])
        for text, own, places in zip(texts, spans, picked, strict=True)
        for at in places
    ]
    filled = list(fill(gaps)) if gaps else []
    if len(filled) != len(gaps):
        raise DataError(f"the model gave {len(filled)} words for {len(gaps)} gaps; it must give one for each")
    words = iter(filled)
    made = []
    for text, own, places in zip(texts, spans, picked, strict=True):
        new = {at: next(words) for at in places}
        made.append(_with(text, own, [new.get(at, text[start:end]) for at, (start, end) in enumerate(own)]))
    return made


def _with(text: str, spans: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """The text with other words in its places; what stands between them stays."""
    parts, end = [], 0
    for (start, last), word in zip(spans, words, strict=True):
        parts += [text[end:start], word]
        end = last
    return "".join([*parts, text[end:]])
