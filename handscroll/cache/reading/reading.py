"""`Reading`: a text that a model has read, as keys and values mapped from files; what generation goes on from.

A reading is a chain of parts: each part is a run of tokens in a folder of its own, and a longer text goes on from the
part of another that it shares. Nothing is copied: a part's keys and values are spans over the mapped files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from handscroll.cache.full import Cache
from handscroll.cache.reading.identity import Identity
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

LAYER = "layer-{:03d}.bin"  # keys (K, S, E), then values; in int8 then the scales (K, S) of both


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

    def cache(self, capacity: int, device: torch.device, kind: Callable[..., Cache] = Cache) -> Cache:
        """A cache that goes on after the reading, with room for `capacity` further tokens."""
        spans = self.spans if device.type == "cpu" else [[_moved(s, device) for s in layer] for layer in self.spans]
        return kind(len(spans), capacity=capacity, past=spans)

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
            count, keep = kv * part.stored, part.last - part.first
            numbers, scales = 2 * count * size * dtype.itemsize, 8 * count if dtype == torch.int8 else 0
            name = str(part.folder / LAYER.format(layer))
            whole = torch.from_file(name, shared=False, size=numbers + scales, dtype=torch.uint8)
            keys, values = whole[:numbers].view(dtype).view(2, 1, kv, part.stored, size)[:, :, :, :keep]
            span = Span(keys, values, Marks.run(part.first, keep))
            if scales:
                both = whole[numbers:].view(torch.float32).view(2, 1, kv, part.stored)[:, :, :, :keep]
                span = replace(span, scales=(both[0], both[1]))
            spans.append(span)
        found.append(spans)
    return found


def _until(span: Span, length: int) -> Span | None:
    assert span.marks.start is not None
    keep = min(span.marks.length, length - span.marks.start)
    if keep <= 0:
        return None
    scales = None if span.scales is None else (span.scales[0][:, :, :keep], span.scales[1][:, :, :keep])
    keys, values = span.keys[:, :, :keep], span.values[:, :, :keep]
    return replace(span, keys=keys, values=values, marks=span.marks.part(0, keep), scales=scales)


def _moved(span: Span, device: torch.device) -> Span:
    scales = None if span.scales is None else (span.scales[0].to(device), span.scales[1].to(device))
    return replace(span, keys=span.keys.to(device), values=span.values.to(device), scales=scales)
