"""Synthetic rows that teach a small model to look things up in its context.

A small model learns real text long before it learns retrieval, because real text seldom rewards retrieval. These rows
reward it densely. `Copies` repeats segments (the signal under which induction heads form, Olsson et al. 2022). `Facts`
scatters facts and questions through real text. In the synthetic parts a token is a target only if the context
determines it, so no capacity goes into guessing random symbols.
"""

import random
import re
from collections.abc import Sequence

import numpy as np

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.row import IGNORED, Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Numbered, State
from handscroll.text.tokenizer import Tokenizer

# Keys for the evaluation (`evaluate/needle.py`); training never uses them.
RESERVED = """
    apple beaver candle dolphin ember falcon garden hammer island jungle kettle lantern meadow needle
    orchard pepper quartz ribbon saddle timber umbrella violin walnut yogurt zebra anchor button canyon
    desert engine forest guitar harbor insect jacket kitten ladder mirror napkin oyster pillow rabbit
    silver tunnel valley wizard amber bridge cactus dragon eagle feather glacier helmet ivory jewel kiwi
    lemon marble nectar
""".split()
NEEDLE = ("The secret number of {key} is", " {value}", ".\n")
# Every form of a fact in training: (statement, answer, text after it). The first form is that of the evaluation.
FORMS = (
    NEEDLE,
    ("# The secret number of {key} is", " {value}", ".\n"),
    ("The code for {key} is", " {value}", ".\n"),
    ("Remember that {key} has the number", " {value}", ".\n"),
    ("the value of {key} is", " {value}", ".\n"),
    ("{key}_number =", " {value}", "\n"),
    ("{key}:", " {value}", "\n"),
)


class _Drawn(Numbered[Row]):
    """Endless rows that depend only on (seed, number)."""

    def __init__(self, length: int, seed: int):
        if length < 16 or seed < 0:
            raise ConfigError(f"length {length}, seed {seed}: need length >= 16 and seed >= 0")
        self.length, self.seed = length, seed

    def _finish(self, tokens: Sequence[int], known: Sequence[bool]) -> Row:
        """A row from `length + 1` tokens; token t is a target if `known[t]`."""
        ids = np.array(tokens[: self.length + 1], dtype=np.int64)
        counted = np.array(known[1 : self.length + 1])
        return Row(ids[:-1], np.where(counted, ids[1:], IGNORED), document=0, start=0)


class Copies(_Drawn):
    """Segments of distinct random symbols (or of real text), repeated until the row is full.

    `segment` gives the minimum and maximum tokens of a segment. `symbols` is the number of different symbols a segment
    is drawn from (None: the whole vocabulary). `gap` is the maximum number of random tokens between repeats. `several`
    is the maximum number of segments that alternate. `real` is the share of rows whose segments are cut from `source`.
    Every token of a repeat is a target, except its first.
    """

    def __init__(  # noqa: PLR0913
        self,
        source: TokenSource,
        vocab: int,
        length: int,
        seed: int,
        *,
        segment: tuple[int, int] = (4, 16),
        symbols: int | None = None,
        gap: int = 4,
        several: int = 1,
        real: float = 0.0,
    ):
        super().__init__(length, seed)
        low, high = segment
        drawn = symbols is None or high <= symbols <= vocab
        if not 2 <= low <= high < vocab or not drawn or gap < 0 or several < 1 or not 0 <= real <= 1:
            raise ConfigError(
                f"copies: segment {segment}, symbols {symbols}, gap {gap}, several {several}, real {real} make no row: "
                f"give 2 <= segment[0] <= segment[1] < {vocab}, segment[1] <= symbols <= {vocab}, gap >= 0, "
                "several >= 1 and real in [0, 1]"
            )
        self.source, self.vocab, self.segment, self.symbols = source, vocab, (low, high), symbols
        self.gap, self.several, self.real = gap, several, real
        self._long = [document for document in source if len(document) > high]
        if real and not self._long:
            raise DataError(f"no document is longer than a segment of {high} tokens: give longer texts, or real = 0")
        self.left_out = source.shorter(high + 1, f"a segment of {high} tokens and one more") if real else ()

    def identity(self) -> State:
        names = ("length", "seed", "vocab", "segment", "symbols", "gap", "several", "real")
        settings = {name: getattr(self, name) for name in names} | {"segment": list(self.segment)}
        return {"stream": "copies", **settings, "source": self.source.fingerprint}

    def row(self, number: int) -> Row:
        draw = random.Random(f"copies/{self.seed}/{number}")
        real = draw.random() < self.real
        segments = [self._segment(draw, real) for _ in range(draw.randint(1, self.several))]
        tokens: list[int] = []
        known: list[bool] = []
        for segment in segments:
            tokens += segment
            known += [False] * len(segment)
        while len(tokens) <= self.length:
            between = draw.randint(0, self.gap)
            segment = draw.choice(segments)
            tokens += [draw.randrange(self.vocab) for _ in range(between)] + segment
            known += [False] * (between + 1) + [True] * (len(segment) - 1)
        return self._finish(tokens, known)

    def _segment(self, draw: random.Random, real: bool) -> list[int]:
        size = draw.randint(*self.segment)
        if real:
            document = draw.choice(self._long)
            start = draw.randrange(len(document) - size)
            return document[start : start + size].tolist()
        if self.symbols is None:
            return draw.sample(range(self.vocab), size)
        return draw.sample(draw.sample(range(self.vocab), max(self.symbols, size)), size)


class Facts(_Drawn):
    """Real text with facts at random places and, later, questions about them.

    `facts` and `questions` give the minimum and maximum per row; several questions may ask for the same key. Targets
    are the answers of questions and, with `text`, the real text. The value in a fact itself cannot be known, so it is
    not a target. Facts and questions fill at most half of a row, so a short row has fewer, but at least a fact.
    `plain` is the share of rows in the needle's form; the other rows take any form. `edges` is the share of rows whose
    first fact stands at the very beginning, and the share of rows whose last question stands at the very end; random
    places seldom give either.
    """

    def __init__(  # noqa: PLR0913
        self,
        source: TokenSource,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        *,
        facts: tuple[int, int] = (1, 4),
        questions: tuple[int, int] = (2, 6),
        digits: int = 5,
        plain: float = 0.5,
        edges: float = 0.0,
        text: bool = True,
    ):
        """
        Raises:
            ConfigError: a setting is out of range, or a row has no room for a fact and a question about it.
            DataError: the documents are too short, or have too few words.
        """
        super().__init__(length, seed)
        self.source, self.tokenizer, self.facts, self.questions = source, tokenizer, facts, questions
        self.digits, self.plain, self.edges, self.text = digits, plain, edges, text
        self._long = [document for document in source if len(document) > length + 1]
        if not self._long:
            raise DataError(f"no document is longer than {length} tokens; give longer text or shorter rows")
        self.left_out = source.shorter(length + 2, f"a row of {length} tokens and two more")
        self.words = training_words(source, tokenizer)
        self._cache: dict[str, list[int]] = {}
        self._check()

    def _check(self) -> None:
        """Refuse settings that make no row."""
        (few, many), (least, most), words = self.facts, self.questions, len(self.words)
        ranges = 1 <= few <= many <= words and 0 <= least <= most and most and self.digits >= 1
        if not ranges or not 0 <= self.plain <= 1 or not 0 <= self.edges <= 1:
            raise ConfigError(
                f"facts: facts {self.facts}, questions {self.questions}, digits {self.digits}, plain {self.plain}, "
                f"edges {self.edges} make no row: give 1 <= facts[0] <= facts[1] <= {words} (the words of the text), "
                "0 <= questions[0] <= questions[1], questions[1] >= 1, digits >= 1, and plain and edges in [0, 1]"
            )
        draw = random.Random(0)
        hardest = sorted(self.words, key=lambda word: len(self.tokenizer.encode(f" {word}", special=False)))[-8:]
        events = [(key, form) for key in hardest for form in (FORMS if self.plain < 1 else (NEEDLE,))]
        least = 4 * max(sum(map(len, self._event(form, key, self._value(draw)))) for key, form in events)
        if self.length < least:
            raise ConfigError(
                f"facts: in half of the tokens of a row, rows of {self.length} tokens have no room for a fact and a "
                f"question: give rows of {least} tokens or more"
            )

    def identity(self) -> State:
        names = ("length", "seed", "digits", "plain", "edges", "text")
        settings = {name: getattr(self, name) for name in names}
        settings |= {"facts": list(self.facts), "questions": list(self.questions)}
        return {
            "stream": "facts",
            **settings,
            "source": self.source.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
        }

    def row(self, number: int) -> Row:
        draw = random.Random(f"facts/{self.seed}/{number}")
        form = NEEDLE if draw.random() < self.plain else draw.choice(FORMS)
        events = self._events(draw, form)
        room = self.length + 1 - sum(len(tokens) for tokens, _ in events)
        document = draw.choice(self._long)
        start = draw.randrange(len(document) - room)
        text = document[start : start + room].tolist()
        cuts = sorted(draw.randint(0, room) for _ in events)
        if self.edges and draw.random() < self.edges:
            cuts[0] = 0
        if self.edges and draw.random() < self.edges:
            cuts[-1] = room
        tokens: list[int] = []
        known: list[bool] = []
        at = 0
        for cut, (ids, answer) in zip(cuts, events, strict=True):
            tokens += text[at:cut] + ids
            known += [self.text] * (cut - at) + answer
            at = cut
        return self._finish(tokens + text[at:], known + [self.text] * (room - at))

    def _events(self, draw: random.Random, form: tuple[str, str, str]) -> list[tuple[list[int], list[bool]]]:
        """Facts and questions in order, as (tokens, mask of the known ones); together at most half of the row."""
        keys = draw.sample(self.words, draw.randint(*self.facts))
        order = [(key, False) for key in keys]
        for _ in range(draw.randint(*self.questions)):
            key = draw.choice(keys)
            order.insert(draw.randint(order.index((key, False)) + 1, len(order)), (key, True))
        values = {key: self._value(draw) for key in keys}
        events: list[tuple[list[int], list[bool]]] = []
        filled = 0
        for key, asked in order:
            statement, answer, rest = self._event(form, key, values[key])
            filled += len(statement) + len(answer) + len(rest)
            if events and filled > self.length // 2:
                break
            known = [False] * len(statement) + [asked] * len(answer) + [False] * len(rest)
            events.append((statement + answer + rest, known))
        return events

    def _event(self, form: tuple[str, str, str], key: str, value: str) -> tuple[list[int], list[int], list[int]]:
        return self._ids("\n" + form[0].format(key=key)), self._ids(form[1].format(value=value)), self._ids(form[2])

    def _value(self, draw: random.Random) -> str:
        return "".join(draw.choice("0123456789") for _ in range(self.digits))

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text, special=False, follows=True)
        return self._cache[text]


def training_words(source: TokenSource, tokenizer: Tokenizer, most: int = 400_000) -> list[str]:
    """Lower-case words of 4 to 9 letters in the source, sorted, without the keys reserved for evaluation."""
    words: set[str] = set()
    seen = 0
    for document in source:
        words |= set(re.findall(r"(?<![A-Za-z_])[a-z]{4,9}(?![A-Za-z_])", tokenizer.decode(document[:most].tolist())))
        seen += len(document)
        if seen > most:
            break
    words -= set(RESERVED)
    if len(words) < 100:
        raise DataError(f"the text has only {len(words)} plain words, but keys need at least 100: give more text")
    return sorted(words)


def needle_prompt(
    tokenizer: Tokenizer, filler: Sequence[int], length: int, depth: float, digits: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its answer, together exactly `length`.

    A sentence in the form `NEEDLE` with a reserved key and `digits` digits lies at `depth` (0: first, 1: last) of the
    filler, which is read from a random place. The prompt ends with the question.

    Raises:
        DataError: needle and question do not fit into `length`, or the filler is shorter than the rest.
    """
    key = draw.choice(RESERVED)
    value = "".join(draw.choice("0123456789") for _ in range(digits))
    before, needle, question, answer = needle_pieces(tokenizer, key, value)
    room = length - len(before) - len(needle) - len(question) - len(answer)
    if not 0 <= room <= len(filler):
        raise DataError(
            f"{length} tokens leave {room} for the haystack beside needle and question, but the filler has "
            f"{len(filler)}: change the length or give a longer text"
        )
    start = draw.randrange(len(filler) - room + 1)
    haystack = list(filler[start : start + room])
    cut = round(depth * room)
    return [*before, *haystack[:cut], *needle, *haystack[cut:], *question], answer


def needle_pieces(
    tokenizer: Tokenizer, key: str, value: str, form: tuple[str, str, str] = NEEDLE
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids of the tokens before a text (BOS, if the tokenizer adds it), of the needle, the question and the answer."""
    question, value_form, end = form
    before = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.bos in tokenizer.encode("") else []

    def encode(text: str) -> list[int]:
        """All of them stand behind other text."""
        return tokenizer.encode(text, special=False, follows=True)

    line = (question + value_form + end.rstrip("\n")).format(key=key, value=value)
    needle = encode(f"\n{line}\n")
    asked = encode("\n" + question.format(key=key))
    whole = encode("\n" + (question + value_form).format(key=key, value=value))
    same = next((n for n, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), len(asked))
    return before, needle, whole[:same], whole[same:]
