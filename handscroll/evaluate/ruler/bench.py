"""What samples are made with: a tokenizer, a language, a haystack, questions about documents.

A text is built of pieces that are encoded once and counted as they are added, so no text is encoded again to learn how
long it is. The ids of a text are those of its pieces, which are cut where tokenizers cut: before a blank, after a line.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from handscroll.base.errors import ConfigError, DataError, nearest
from handscroll.evaluate.ruler import words
from handscroll.evaluate.ruler.questions import Asked, asked_of
from handscroll.evaluate.ruler.wording import VERSES, WORDINGS, Wording
from handscroll.evaluate.ruler.words import Draw, Vocabulary
from handscroll.text.readers import Reader
from handscroll.text.tokenizer import Tokenizer

VOCABULARIES = {"en": words.ENGLISH, "zh": words.CHINESE}
LONGEST = 400  # characters of a sentence of a haystack; what is longer (tables) goes in at word boundaries
_RULES = re.compile(r"^[*=\-~^.]{3,}$", re.MULTILINE)  # lines under headings
_ENDS = {"en": re.compile(r"(?<=[.!?])\s+"), "zh": re.compile(r"(?<=[。！？；])")}


class Piece(NamedTuple):
    """A part of a text, and its token ids."""

    text: str
    ids: list[int]


class Speller:
    """Encodes pieces, each text once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[str, Piece] = {}

    def __call__(self, text: str) -> Piece:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = Piece(text, self.tokenizer.encode(text, special=False, follows=True))
        return found

    def once(self, text: str) -> Piece:
        """A piece that will not come again, and is not remembered."""
        return self._known.get(text) or Piece(text, self.tokenizer.encode(text, special=False, follows=True))


def size(pieces: Sequence[Piece]) -> int:
    """Tokens of pieces."""
    return sum(len(piece.ids) for piece in pieces)


@dataclass(frozen=True, eq=False)
class Haystack:
    """Sentences to hide things among, each with the blank before it; `name` says where they come from."""

    sentences: Sequence[Piece]
    name: str
    sha256: str

    def run(self, start: int) -> Iterator[Piece]:
        """The sentences from one of them on; after the last comes the first again."""
        while True:
            yield self.sentences[start % len(self.sentences)]
            start += 1


@dataclass(frozen=True, eq=False)
class Bench:
    """All that the tasks draw on. `asked` are questions about documents, for qa_1 and qa_2; None: invented ones."""

    language: str
    speller: Speller
    haystack: Haystack
    asked: dict[str, Asked | None] = field(default_factory=dict)

    @property
    def say(self) -> Wording:
        return WORDINGS[self.language]

    def draw(self, *names: object) -> Draw:
        """A random stream of its own for what the names say."""
        return Draw(random.Random("/".join(map(str, names))), self.vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARIES[self.language]

    def record(self) -> dict[str, object]:
        """Where the texts come from, for records."""
        sources = {name: one.record() if one else {"source": "invented"} for name, one in self.asked.items()}
        return {"haystack": {"source": self.haystack.name, "sha256": self.haystack.sha256}, **sources}


def bench(
    tokenizer: Tokenizer,
    language: str = "en",
    text: Sequence[str | Path] | None = None,
    qa: Sequence[str | Path] | None = None,
    hops: Sequence[str | Path] | None = None,
    reader: Reader | None = None,
) -> Bench:
    """What samples are made with. `text` are files of the haystack; by default the documentation of Python that comes
    with it in English, invented sentences in Chinese. `qa` are files of questions in SQuAD's form (or rows with
    context, question and answers) for qa_1, `hops` of questions in HotpotQA's form for qa_2; by default both are
    invented.

    Raises:
        ConfigError: an unknown language. DataError: a file that cannot be used, or no text in it.
    """
    if language not in WORDINGS:
        raise ConfigError(f"unknown language '{language}': {nearest(language, WORDINGS)}")
    speller = Speller(tokenizer)
    if text:
        texts, name = [document.text for document in (reader or Reader()).read(list(text))], ", ".join(map(str, text))
    else:
        texts, name = _shipped(language)
    asked = {
        "qa_1": asked_of(qa, several=False) if qa else None,
        "qa_2": asked_of(hops, several=True) if hops else None,
    }
    return Bench(language, speller, _haystack(speller, language, texts, name), asked)


def sentences(text: str, language: str) -> Iterator[str]:
    """The sentences of a text on one line each; what is longer than `LONGEST` is divided at words."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        for sentence in _ENDS[language].split(flat):
            while len(sentence) > LONGEST:
                cut = sentence.rfind(" ", 1, LONGEST) if " " in sentence[:LONGEST] else LONGEST
                cut = cut if cut > 0 else LONGEST
                yield sentence[:cut].strip()
                sentence = sentence[cut:].strip()
            if sentence:
                yield sentence


def _haystack(speller: Speller, language: str, texts: Sequence[str], name: str) -> Haystack:
    blank, digest = WORDINGS[language].blank, hashlib.sha256()
    found = []
    for text in texts:
        for sentence in sentences(text, language):
            found.append(speller.once(blank + sentence))
            digest.update(sentence.encode() + b"\n")
    if not found:
        raise DataError(f"{name}: there is no text to hide things in; give other files")
    return Haystack(found, name, digest.hexdigest())


def _shipped(language: str) -> tuple[list[str], str]:
    """A haystack that comes with Python or with this package, and its name."""
    if language == "zh":
        draw, verses = Draw(random.Random("haystack"), words.CHINESE), VERSES["zh"]
        nouns = words.CHINESE.nouns
        lines = [
            verses[number % len(verses)].format(n=draw.random.choice(nouns), a=draw.pair()) for number in range(4000)
        ]
        return ["".join(lines)], "invented sentences"
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python comes without its documentation (pydoc_data), which is the default haystack: give files of "
            "your own (--text)"
        ) from None
    return [_RULES.sub("", topics[name]) for name in sorted(topics)], "the documentation in Python's standard library"
