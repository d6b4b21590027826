"""`Reading`: a text that a model has read, as keys and values mapped from files; what generation goes on from.

A reading is a chain of parts: each part is a run of tokens in a folder of its own, and a longer text goes on from the
part of another that it shares. Nothing is copied: a part's keys and values are spans over the mapped files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from handscroll.generate.reading.identity import Identity
from handscroll.nn.cache import Cache, Span
from handscroll.nn.marks import Marks

LAYER = "layer-{:03d}.bin"  # keys (K, S, E), then values


@dataclass(frozen=True)
class Part:
    """Tokens first .. last - 1 of a reading, of the `stored` tokens that the folder holds from `first` on."""

    folder: Path
    first: int
    last: int
    stored: int


@dataclass(frozen=True, eq=False)
class Reading:
    """Token ids (S,) and the spans of every layer. Files that are deleted stay mapped as long as it lives."""

    number: str
    identity: Identity
    tokens: Tensor
    spans: Sequence[Sequence[Span]]

    @property
    def length(self) -> int:
        return len(self.tokens)

    def cache(self, capacity: int, device: torch.device) -> Cache:
        """A cache that goes on after the reading, with room for `capacity` further tokens."""
        spans = self.spans
        if device.type != "cpu":
            spans = [[Span(s.keys.to(device), s.values.to(device), s.marks) for s in layer] for layer in spans]
        return Cache(len(spans), capacity=capacity, past=spans)

    def part(self, length: int) -> "Reading":
        """The first `length` tokens of it."""
        spans = [[kept for span in layer if (kept := _until(span, length)) is not None] for layer in self.spans]
        return Reading(self.number, self.identity, self.tokens[:length], spans)


def mapped(parts: Sequence[Part], layers: int, shape: tuple[int, int], dtype: torch.dtype) -> list[list[Span]]:
    """Spans of every layer over the files of `parts`; `shape` is (kv heads, head size).

    The files are mapped privately: what is written to a span stays in memory and never reaches the file.
    """
    kv, size = shape
    found: list[list[Span]] = []
    for layer in range(layers):
        spans = []
        for part in parts:
            name = str(part.folder / LAYER.format(layer))
            count = 2 * kv * part.stored * size
            whole = torch.from_file(name, shared=False, size=count, dtype=dtype).view(2, 1, kv, part.stored, size)
            keys, values = whole[:, :, :, : part.last - part.first]
            spans.append(Span(keys, values, Marks.run(part.first, part.last - part.first)))
        found.append(spans)
    return found


def _until(span: Span, length: int) -> Span | None:
    assert span.marks.start is not None
    keep = min(span.marks.length, length - span.marks.start)
    if keep <= 0:
        return None
    return Span(span.keys[:, :, :keep], span.values[:, :, :keep], span.marks.part(0, keep), span.rotated)
