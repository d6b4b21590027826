"""What is found in the documents of an owner: passages ranked by words and, where an encoder has read them, vectors.

The index lives in memory and is made at the first search; vectors lie in the folder of their document. So nothing of a
document is left anywhere once it is deleted.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from handscroll.search.joined import joined
from handscroll.search.passages import Passage, passages
from handscroll.search.similar import Similar, stems
from handscroll.serve.documents.shelf import Entry, Shelf
from handscroll.serve.documents.vectors import Vectors
from handscroll.serve.models import Served

BEST = 200  # passages of each ranking that are joined
PASSAGES = 200_000  # that are kept in the index at most; those of documents asked long ago are made again
RANKINGS = 8  # sets of documents whose ranking is kept


@dataclass(frozen=True, eq=False)
class Hit:
    """A passage that was found: its text, its joined score, and its score and rank by each kind of search."""

    entry: Entry
    passage: Passage
    text: str
    score: float
    ranks: dict[str, int]
    scores: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The passage as an answer of the interface, without its text."""
        return {
            "start": self.passage.start,
            "end": self.passage.end,
            "place": self.passage.place,
            "heading": self.passage.heading,
            "score": round(self.score, 5),
            "ranks": self.ranks,
            "scores": {name: round(value, 4) for name, value in self.scores.items()},
        }


class Found(NamedTuple):
    """What a search found, the best first, how it searched ("words", "vectors"), and what a person should know."""

    hits: list[Hit]
    by: tuple[str, ...]
    notes: tuple[str, ...] = ()


class _Indexed(NamedTuple):
    text: str
    passages: list[Passage]
    terms: list[list[str]]


class Library:
    """The search over all documents. Safe to use from several threads."""

    def __init__(self, shelf: Shelf, vectors: Vectors):
        self._shelf, self._vectors = shelf, vectors
        self._indexed: OrderedDict[Entry, _Indexed] = OrderedDict()
        self._ranked: OrderedDict[tuple[Entry, ...], Similar] = OrderedDict()
        self._tokens: dict[tuple[Entry, str], int] = {}
        self._working = WeakKeyDictionary[Entry, threading.Lock]()
        self._lock = threading.RLock()

    def search(self, entries: Sequence[Entry], query: str) -> Found:
        """The passages of some documents that belong to a query.

        Runs beside the event loop, and not on the thread that computes: it waits for the vector of the query there.

        Raises:
            CheckpointError: the text of a document is missing.
        """
        try:
            return self._found(entries, query)
        finally:
            for entry in entries:
                if entry.gone:  # it was deleted while it was searched
                    self.forget(entry)

    def _found(self, entries: Sequence[Entry], query: str) -> Found:
        known = [self._index(entry) for entry in entries]
        places = [(which, at) for which, one in enumerate(known) for at in range(len(one.passages))]
        words = self._by_words(tuple(entries), known).scores(query)
        rankings, scores = {"words": _best(words, above=0.0)}, {"words": words}
        cosines, notes = self._vectors.cosines(entries, [len(one.passages) for one in known], query)
        if cosines is not None:
            rankings["vectors"], scores["vectors"] = _best(cosines), cosines
        ranks = {kind: {one: rank for rank, one in enumerate(found, 1)} for kind, found in rankings.items()}
        hits = []
        for one, score in joined(list(rankings.values())).items():
            which, at = places[one]
            passage = known[which].passages[at]
            hits.append(
                Hit(
                    entries[which],
                    passage,
                    known[which].text[passage.start : passage.end],
                    score,
                    {kind: found[one] for kind, found in ranks.items() if one in found},
                    {kind: float(values[one]) for kind, values in scores.items()},
                )
            )
        return Found(hits, tuple(rankings), notes)

    def passages(self, entry: Entry) -> list[str]:
        """The texts of all passages of a document."""
        known = self._index(entry)
        return [known.text[one.start : one.end] for one in known.passages]

    def tokens(self, entry: Entry, served: Served) -> int:
        """The tokens of a document's text for a model."""
        key = (entry, served.name)
        with self._alone(entry):
            known = self._tokens.get(key)
            if known is None:
                known = len(served.loaded.tokenizer.encode(self._shelf.text(entry).text, special=False))
                with self._lock:
                    if not entry.gone:
                        self._tokens[key] = known
            return known

    def forget(self, entry: Entry) -> None:
        """Drop whatever was made of a document."""
        with self._lock:
            self._indexed.pop(entry, None)
            for one in [one for one in self._tokens if one[0] is entry]:
                del self._tokens[one]
            for key in [key for key in self._ranked if entry in key]:
                del self._ranked[key]

    def _alone(self, entry: Entry) -> threading.Lock:
        """What lets one thread at a time work through a document: the others wait for what it makes."""
        with self._lock:
            return self._working.setdefault(entry, threading.Lock())

    def _index(self, entry: Entry) -> _Indexed:
        with self._alone(entry):
            with self._lock:
                if entry in self._indexed:
                    self._indexed.move_to_end(entry)
                    return self._indexed[entry]
            document = self._shelf.text(entry)
            found = passages(document)
            made = _Indexed(document.text, found, [stems(document.text[one.start : one.end]) for one in found])
            with self._lock:
                self._indexed[entry] = made
                while len(self._indexed) > 1 and sum(len(one.passages) for one in self._indexed.values()) > PASSAGES:
                    self._indexed.popitem(last=False)
            return made

    def _by_words(self, entries: tuple[Entry, ...], known: list[_Indexed]) -> Similar:
        with self._lock:
            if entries in self._ranked:
                self._ranked.move_to_end(entries)
                return self._ranked[entries]
        made = Similar.of([terms for one in known for terms in one.terms], stems)
        with self._lock:
            self._ranked[entries] = made
            while len(self._ranked) > RANKINGS:
                self._ranked.popitem(last=False)
        return made


def _best(scores: np.ndarray, above: float = -np.inf) -> list[int]:
    """The places of the best scores, the earlier one where two are alike."""
    order = np.argsort(-scores, kind="stable")[:BEST]
    return [int(one) for one in order if scores[one] > above]
