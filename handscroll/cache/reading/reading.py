"""`Reading`: a text that a model has read, as keys and values mapped from files; what generation goes on from.

A reading is a chain of parts: each part is a run of tokens in a folder of its own, and a longer text goes on from the
part of another that it shares. Nothing is copied: a part's keys and values are spans over the mapped files.

Of a layer that sees a window a part keeps the last window - 1 + `rewind` tokens before its end, whichever part made
them. So a text can go on from the end of a part, or from up to `rewind` tokens before it (the border between a text and
a question may fall within a token), and from nowhere else: what lies between is read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.cache.reading.identity import Identity
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

LAYER = "layer-{:03d}.bin"  # keys (K, S, E), then values; in int8 then the scales (K, S) of both


@dataclass(frozen=True)
class Part:
    """Tokens first .. last - 1 of a reading, of the `stored` tokens that the folder holds of a full layer from `first`
    on; `counts` are those that it holds of each layer, the last of them at the same place."""

    folder: Path
    first: int
    last: int
    stored: int
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """Token ids (S,) and the spans of every layer. Files that are deleted stay mapped as long as it lives."""

    number: str
    identity: Identity
    tokens: Tensor
    spans: Sequence[Sequence[Span]]
    windows: Sequence[int | None] = ()

    @property
    def length(self) -> int:
        return len(self.tokens)

    def past(self, device: torch.device) -> dict[str, Any]:
        """What a cache is made with that goes on after the reading."""
        spans = self.spans if device.type == "cpu" else [[_moved(s, device) for s in layer] for layer in self.spans]
        return {"past": spans, "before": self.length}

    def part(self, length: int) -> "Reading":
        """The first `length` tokens of it.

        Raises:
            DataError: its windows do not reach so far back (`Store.find` gives what does).
        """
        for layer, window in enumerate(self.windows):
            begin = self.spans[layer][0].marks.start if self.spans[layer] else length
            if window is not None and begin is not None and begin > max(0, length - window + 1):
                raise DataError(
                    f"a reading of {self.length} tokens cannot be cut to {length}: of the layers that see {window} "
                    f"tokens it keeps those from {begin} on; read the text again"
                )
        spans = [[kept for span in layer if (kept := _until(span, length)) is not None] for layer in self.spans]
        return replace(self, tokens=self.tokens[:length], spans=spans)


def mapped(
    parts: Sequence[Part], windows: Sequence[int | None], shape: tuple[int, int], dtype: torch.dtype
) -> list[list[Span]]:
    """Spans of every layer over the files of `parts`, of a windowed layer over the last one's; `shape` is (kv heads,
    head size).

    The files are mapped privately: what is written to a span stays in memory and never reaches the file.
    """
    return [
        [_mapped(part, layer, shape, dtype) for part in (parts if window is None else parts[-1:])]
        for layer, window in enumerate(windows)
    ]


def _mapped(part: Part, layer: int, shape: tuple[int, int], dtype: torch.dtype) -> Span:
    (kv, size), stored = shape, part.counts[layer]
    first = part.first + part.stored - stored
    count, keep = kv * stored, part.last - first
    numbers, scales = 2 * count * size * dtype.itemsize, 8 * count if dtype == torch.int8 else 0
    name = str(part.folder / LAYER.format(layer))
    whole = torch.from_file(name, shared=False, size=numbers + scales, dtype=torch.uint8)
    keys, values = whole[:numbers].view(dtype).view(2, 1, kv, stored, size)[:, :, :, :keep]
    span = Span(keys, values, Marks.run(first, keep))
    if not scales:
        return span
    both = whole[numbers:].view(torch.float32).view(2, 1, kv, stored)[:, :, :, :keep]
    return replace(span, scales=(both[0], both[1]))


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
