"""The report on a text before it is trained on: what was counted, and the page that shows it."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from handscroll.report.bars import histogram
from handscroll.report.drawing import NARROW, WIDE
from handscroll.report.page import Facts, Figure, Item, Page, Section, Table
from handscroll.report.records import Count, Part, Share

SHOWN = 20  # rows of a table that may be long


class Lengths(Part):
    """Lengths of documents: quantiles, and `counts[i]` documents from `edges[i]` to below `edges[i + 1]`."""

    least: Count
    quarter: Count
    median: Count
    three_quarters: Count
    ninety: Count
    most: Count
    edges: tuple[Count, ...]
    counts: tuple[Count, ...]


class Coverage(Part):
    """What a tokenizer makes of the text. `spelled`: characters that have no token of their own and are written as
    several tokens of bytes; `unknown`: tokens that stand for text it does not know; `half` of its used tokens make up
    half of the text's, `nearly_all` 95 %."""

    name: str
    vocab: Count
    used: Count
    half: Count
    nearly_all: Count
    tokens: Count
    unknown: Count
    broken: Count | None = Field(description="tokens that hold a part of a character; None where tokens have no text")
    spelled: Share
    rare: tuple[tuple[str, Count], ...] = Field(description="the commonest of those characters")


class Duplicates(Part):
    """Copies. `documents` are those that repeat an earlier one to the letter, `near` pairs those alike in their runs of
    words; `lines` is the share of characters in lines that stand elsewhere too, as far as `kept` says of all."""

    documents: Count
    examples: tuple[tuple[str, Count], ...]
    compared: Count
    near: tuple[tuple[str, str, Share], ...]
    near_count: Count
    lines: Share
    kept: Share
    common: tuple[tuple[str, Count, Count], ...] = Field(description="where a line stood first, copies, documents")


class Sign(Part):
    """A sign of poor quality (`data/survey/quality.py`)."""

    name: str
    what: str
    count: Count
    documents: Count
    example: str = ""


class Overlap(Part):
    """Share of the held-out text's runs of `run` words that the training text has too, whole and by document."""

    run: Count
    share: Share
    runs: Count
    documents: tuple[tuple[str, Share], ...]


class Source(Part):
    """One document."""

    name: str
    characters: Count
    tokens: Count | None
    language: str


class Corpus(Part):
    """All that is known of a text. Shares are of its characters."""

    files: Count
    documents: Count
    characters: Count
    bytes: Count
    words: Count
    languages: tuple[tuple[str, Share], ...]
    scripts: tuple[tuple[str, Share], ...]
    coverage: Coverage | None
    lengths: Lengths
    token_lengths: Lengths | None
    duplicates: Duplicates
    signs: tuple[Sign, ...]
    overlap: Overlap | None
    largest: tuple[Source, ...]
    skipped: tuple[str, ...] = Field(default=(), description="files and folders that were not read, and why")


def corpus_page(corpus: Corpus, provenance: Mapping[str, str] | None = None) -> Page:
    """The page of a corpus, in the order of the decisions before training: is it enough, is it clean, is it fair."""
    sections = [
        Section("In short", "", [Facts(_facts(corpus))]),
        *([_skipped(corpus.skipped)] if corpus.skipped else []),
        _languages(corpus),
        _lengths(corpus),
        *([_coverage(corpus.coverage, corpus)] if corpus.coverage else []),
        _duplicates(corpus.duplicates),
        _signs(corpus.signs),
        *([_overlap(corpus.overlap)] if corpus.overlap else []),
        _largest(corpus),
    ]
    about = f"{corpus.documents:,} documents, {corpus.characters:,} characters, before anything is trained on them."
    return Page("What is in the text", about, sections, dict(provenance or {}))


def percent(share: float) -> str:
    """A share in percent: 0 % only for none, 100 % only for all."""
    if 0 < share < 0.0005:
        return "under 0.1%"
    return "over 99.9%" if 0.9995 <= share < 1 else f"{100 * share:.1f}%"


def _facts(corpus: Corpus) -> list[tuple[str, str]]:
    facts = [(f"{corpus.characters:,}", "characters")]
    if corpus.coverage is not None:
        rate = corpus.bytes / max(1, corpus.coverage.tokens)
        facts.append((f"{corpus.coverage.tokens:,}", f"tokens, {rate:.2f} bytes each"))
    name, share = corpus.languages[0]
    facts.append((percent(share), f"of it {name}"))
    facts.append((percent(corpus.duplicates.lines), "of the characters in lines that repeat others"))
    if corpus.overlap is not None:
        facts.append((percent(corpus.overlap.share), "of the held-out text stands in the training text"))
    return facts


def _skipped(problems: Sequence[str]) -> Section:
    lead = f"{len(problems):,} files or folders were not read. What follows is about the others."
    return Section("Left out", lead, [Table(("what, and why",), [(problem,) for problem in problems])])


def _languages(corpus: Corpus) -> Section:
    lead = "Languages are guessed part by part, by script and common words; scripts are counted."
    languages = Table(("language", "of the characters"), [(name, percent(share)) for name, share in corpus.languages])
    scripts = Table(("script", "of the characters"), [(name, percent(share)) for name, share in corpus.scripts])
    return Section("Languages", lead, [languages, scripts])


def _lengths(corpus: Corpus) -> Section:
    kinds = [("characters", corpus.lengths)]
    if corpus.token_lengths is not None:
        kinds.append(("tokens", corpus.token_lengths))
    items: list[Item] = []
    for name, lengths in kinds:
        title = f"Documents by length in {name}"
        narrow, wide = (
            histogram(lengths.edges, lengths.counts, title, f"{name} (log scale)", width=width)
            for width in (NARROW, WIDE)
        )
        said = f"Bar chart, {title.lower()}: half are of {lengths.quarter:,} to {lengths.three_quarters:,} {name}."
        items.append(Figure(wide, "", said, narrow))
    columns = ("", "shortest", "25%", "median", "75%", "90%", "longest")
    rows = [(name, *(f"{getattr(one, field):,}" for field in list(Lengths.model_fields)[:6])) for name, one in kinds]
    items.append(Table(columns, rows, "Quantiles are within 3%; shortest and longest are exact."))
    half = f"{corpus.lengths.quarter:,} to {corpus.lengths.three_quarters:,} characters"
    return Section("Lengths", f"Half of the {corpus.documents:,} documents are of {half}.", items)


def _coverage(coverage: Coverage, corpus: Corpus) -> Section:
    rows: list[tuple[str, str]] = [
        ("tokens", f"{coverage.tokens:,}"),
        ("bytes a token", f"{corpus.bytes / max(1, coverage.tokens):.2f}"),
        ("characters a token", f"{corpus.characters / max(1, coverage.tokens):.2f}"),
        ("tokens a word or Chinese character", f"{coverage.tokens / max(1, corpus.words):.2f}"),
        ("unknown tokens", f"{coverage.unknown:,} ({percent(coverage.unknown / max(1, coverage.tokens))})"),
        ("characters spelled in bytes or unknown", percent(coverage.spelled)),
        ("tokens used, of the vocabulary", f"{coverage.used:,} of {coverage.vocab:,}"),
        ("tokens that make half of the text", f"{coverage.half:,}"),
        ("tokens that make 95%", f"{coverage.nearly_all:,}"),
    ]
    if coverage.broken is not None:
        broken = f"{coverage.broken:,} ({percent(coverage.broken / max(1, coverage.tokens))})"
        rows.insert(5, ("tokens that hold part of a character", broken))
    items: list[Item] = [Table(("", coverage.name), rows, align=("left", "right"))]
    if coverage.rare:
        named = [(f"{letter} (U+{ord(letter):04X})", f"{count:,}") for letter, count in coverage.rare]
        items.append(Table(("character", "times"), named, "Characters without a token of their own", folded=True))
    return Section("Coverage", "How the tokenizer fits the text.", items)


def _duplicates(found: Duplicates) -> Section:
    lead = (
        f"{found.documents:,} documents repeat an earlier one to the letter, {found.near_count:,} of "
        f"{found.compared:,} compared are nearly the same as an earlier one; {percent(found.lines)} of the characters "
        "stand in lines that are copies."
    )
    items: list[Item] = []
    if found.examples:
        items.append(Table(("repeated document", "copies"), [(name, f"{count:,}") for name, count in found.examples]))
    if found.near:
        pairs = [(one, other, percent(share)) for one, other, share in found.near]
        items.append(Table(("document", "nearly the same", "of their runs of words"), pairs))
    if found.common:
        rows = [(where, f"{copies:,}", f"{documents:,}") for where, copies, documents in found.common]
        caption = "Lines that take most room by their copies"
        caption += "" if found.kept == 1 else f" (estimated from {percent(found.kept)} of the lines)"
        items.append(Table(("line, where it stood first", "times", "documents"), rows, caption, folded=True))
    return Section("Duplicates", lead, items)


def _signs(signs: Sequence[Sign]) -> Section:
    seen = [one for one in signs if one.count]
    lead = "Signs of poor quality, counted and not judged."
    if not seen:
        return Section("Quality", f"{lead} None was seen.", [])
    rows = [(one.name, f"{one.count:,}", f"{one.documents:,}", one.example) for one in seen]
    none = ", ".join(one.name for one in signs if not one.count)
    caption = f"Not seen: {none}." if none else ""
    meanings = Table(("sign", "what it is"), [(one.name, one.what) for one in signs], "What the signs are", folded=True)
    return Section("Quality", lead, [Table(("sign", "times", "documents", "first in"), rows, caption), meanings])


def _overlap(overlap: Overlap) -> Section:
    lead = (
        f"{percent(overlap.share)} of the held-out text's {overlap.runs:,} different runs of {overlap.run} words stand "
        "in the training text too" + ("; a loss measured on them says nothing." if overlap.share else ".")
    )
    rows = [(name, percent(share)) for name, share in overlap.documents]
    return Section("Overlap", lead, [Table(("held-out document", "of its runs in the training text"), rows)])


def _largest(corpus: Corpus) -> Section:
    rows = [
        (one.name, f"{one.characters:,}", None if one.tokens is None else f"{one.tokens:,}", one.language)
        for one in corpus.largest
    ]
    table = Table(("document", "characters", "tokens", "language"), rows)
    return Section("Documents", f"The {len(rows)} largest of {corpus.documents:,}.", [table])
