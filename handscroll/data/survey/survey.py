"""A report on a text before training, made in one pass and with bounded memory (`handscroll data report`)."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from handscroll.base.errors import DataError
from handscroll.data.survey import letters
from handscroll.data.survey.lengths import LengthCounts
from handscroll.data.survey.overlap import RUN, HeldOut
from handscroll.data.survey.quality import LONG_LINE, SHORT, WHAT, Sign, signs_of
from handscroll.data.survey.sampled import Sampled
from handscroll.data.survey.shingles import WORDS, Hasher, Signature, key_of, near_pairs, runs
from handscroll.data.survey.tokens import TokenCounts
from handscroll.report import corpus as report
from handscroll.text.files import Files, Paths
from handscroll.text.parts import Part, parts
from handscroll.text.readers import Reader
from handscroll.text.tokenizer import Tokenizer

Progress = Callable[[int], None]  # is given the number of characters read so far

LINE = 40  # minimum characters of a line that may count as a copy (15 for Chinese); shorter lines repeat naturally
SHINGLE = 5  # words in a run, for the comparison of documents
COMPARED = 50_000  # maximum number of documents that are compared for near duplicates; each needs 1 KiB
_LONG = 1 << 20  # maximum characters of a line in memory; a longer line is split
_BLOCK = 4000  # characters per guess of the language


@dataclass
class _Document:
    """The state of the document that is being read."""

    number: int
    source: str
    characters: int = 0
    tokens: int = 0
    line: str = ""
    line_length: int = 0
    words: np.ndarray = field(
        default_factory=lambda: np.zeros(0, dtype=np.uint64)
    )  # the last words, for the next part's runs
    signature: Signature = field(default_factory=Signature)
    digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=8))
    languages: Counter[str] = field(default_factory=Counter)


def survey(
    paths: Paths,
    tokenizer: Tokenizer | None = None,
    held_out: Paths | None = None,
    name: str = "tokenizer",
    progress: Progress = lambda done: None,
    reader: Reader | None = None,
) -> report.Corpus:
    """Survey the files of `paths` as `reader` reads them; those that cannot be used are named in the record.

    The report includes the coverage of `tokenizer` and the overlap with the texts in `held_out`, if they are given.
    Memory does not grow with the files. Counts of lines and runs are sampled by their hashes when there are too many
    (`sampled.py`). Near duplicates are searched for among the first 50,000 documents. Lengths are counted by classes.

    Raises:
        DataError: in the same cases as `Reader.read`.
    """
    hasher, files = Hasher(), Files.of(paths)
    found = _Survey(tokenizer, name, hasher, None if held_out is None else HeldOut(held_out, hasher, reader=reader))
    for part in parts(files, reader):
        found.add(part)
        progress(found.characters)
    return found.record(files)


class _Survey:
    def __init__(self, tokenizer: Tokenizer | None, name: str, hasher: Hasher, held_out: HeldOut | None):
        self.hasher, self.held_out = hasher, held_out
        self.tokens = None if tokenizer is None else TokenCounts(tokenizer, name)
        self.letters = np.zeros(0x110000, dtype=np.int64)
        self.documents = self.characters = self.bytes = self.words = 0
        self.languages, self.signs = Counter[str](), {name: Sign() for name in WHAT}
        self.lengths, self.token_lengths = LengthCounts(), LengthCounts()
        self.copies, self.lines = Sampled(), Sampled()
        self.signatures: list[tuple[str, np.ndarray]] = []
        self.largest: list[report.Source] = []
        self.now: _Document | None = None

    def add(self, part: Part) -> None:
        """Count one part of the text."""
        now = self.now = self.now or _Document(self.documents, part.source)
        text, codes = part.text, letters.codes(part.text)
        counts = np.bincount(codes) if len(codes) else np.zeros(1, dtype=np.int64)
        self.letters[: len(counts)] += counts
        scripts = np.bincount(letters.table()[codes], minlength=len(letters.SCRIPTS))
        encoded = text.encode()
        now.digest.update(encoded)
        now.characters += len(text)
        self.characters += len(text)
        self.bytes += len(encoded)
        if self.tokens is not None:
            now.tokens += self.tokens.add(text)
        self._guess(text)
        self._words(WORDS.findall(text.lower()))
        for name, count in signs_of(text, scripts).items():
            self.signs[name].add(count, now.number, now.source)
        self._lines(text, part.last)
        if part.last:
            self._close()

    def _guess(self, text: str) -> None:
        assert self.now is not None
        for first in range(0, len(text), _BLOCK):
            block = text[first : first + _BLOCK]
            scripts = np.bincount(letters.table()[letters.codes(block)], minlength=len(letters.SCRIPTS))
            self.now.languages[letters.language(block, scripts, block.lower().split())] += len(block)

    def _words(self, words: list[str]) -> None:
        now = self.now
        assert now is not None
        self.words += len(words)
        before = now.words
        hashes = np.concatenate([before, self.hasher.words(words)])
        now.words = hashes[-(RUN - 1) :]
        if len(self.signatures) < COMPARED:
            now.signature.add(runs(hashes[max(0, len(before) - SHINGLE + 1) :], SHINGLE))
        if self.held_out is not None:
            self.held_out.look(runs(hashes, RUN))

    def _lines(self, text: str, last: bool) -> None:
        now = self.now
        assert now is not None
        *lines, rest = (now.line + text).split("\n")
        if last or len(rest) > _LONG:
            lines, rest = [*lines, rest], ""
        now.line = rest
        for line in lines:
            self.signs["very long lines"].add(len(line) > LONG_LINE, now.number, now.source)
            bare = line.strip()
            if len(bare) >= LINE or (len(bare) >= 15 and bare[0] > "\u2e7f"):
                self.lines.add(key_of(bare), len(bare), f"{now.source}: {bare[:60]}", now.number)

    def _close(self) -> None:
        """Finish the counts of the current document."""
        now = self.now
        assert now is not None
        self.now = None
        self.documents += 1
        self.lengths.add(now.characters)
        if self.tokens is not None:
            self.token_lengths.add(max(1, now.tokens))
        self.signs["short documents"].add(now.characters < SHORT, now.number, now.source)
        self.copies.add(int.from_bytes(now.digest.digest(), "little"), now.characters, now.source, now.number)
        if now.signature.count >= 2 * SHINGLE and len(self.signatures) < COMPARED:
            self.signatures.append((now.source, now.signature.least))
        self.languages += now.languages
        tokens = now.tokens if self.tokens is not None else None
        language = now.languages.most_common(1)[0][0] if now.languages else "no letters"
        self.largest.append(report.Source(name=now.source, characters=now.characters, tokens=tokens, language=language))
        if len(self.largest) > 2 * report.SHOWN:
            self._cut()

    def _cut(self) -> None:
        self.largest = sorted(self.largest, key=lambda one: (-one.characters, one.name))[: report.SHOWN]

    def record(self, files: Files) -> report.Corpus:
        if not self.documents:
            raise DataError("the files hold no documents: give files with text")
        self._cut()
        total = max(1, self.characters)
        scripts = np.bincount(letters.table(), weights=self.letters, minlength=len(letters.SCRIPTS))
        named = sorted(zip(letters.SCRIPTS, (scripts / total).tolist(), strict=True), key=lambda one: -one[1])
        return report.Corpus(
            files=files.used,
            skipped=tuple(files.skipped + files.apart),
            documents=self.documents,
            characters=self.characters,
            bytes=self.bytes,
            words=self.words,
            languages=tuple((name, count / total) for name, count in self.languages.most_common()),
            scripts=tuple((name, share) for name, share in named if share),
            coverage=None if self.tokens is None else self.tokens.record(self.letters),
            lengths=self.lengths.record(),
            token_lengths=None if self.tokens is None else self.token_lengths.record(),
            duplicates=self._duplicates(),
            signs=tuple(
                report.Sign(name=name, what=what, count=sign.count, documents=sign.documents, example=sign.example)
                for (name, what), sign in zip(WHAT.items(), self.signs.values(), strict=True)
            ),
            overlap=None if self.held_out is None else self.held_out.record(),
            largest=tuple(self.largest),
        )

    def _duplicates(self) -> report.Duplicates:
        shown = report.SHOWN
        copies = list(self.copies.commonest())
        pairs = near_pairs([least for _, least in self.signatures])
        near = [(self.signatures[one][0], self.signatures[other][0], share) for one, other, share in pairs]
        common = [(one.source, one.times, one.documents) for one in self.lines.commonest()]
        return report.Duplicates(
            documents=round(sum(one.times - 1 for one in copies) / self.copies.share),
            examples=tuple((one.source, one.times) for one in copies[:shown]),
            compared=len(self.signatures),
            near=tuple(near[:shown]),
            near_count=len(near),
            lines=self.lines.repeated(),
            kept=self.lines.share,
            common=tuple(common[:shown]),
        )
