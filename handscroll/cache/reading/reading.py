"""`Reading`: a text that a model has read, as keys and values mapped from files, which generation continues.

A reading is a chain of parts. Each part is a run of tokens in its own folder, and a longer text continues from the part
of another text that it shares. Nothing is copied: a part's keys and values are spans over the mapped files.

For a layer that sees a window, a part keeps the last window - 1 + `rewind` tokens before its end; earlier parts may
have made them. So a text can continue from the end of a part, or from up to `rewind` tokens before it (the border
between a text and a question may fall within a token), and from no other place: tokens after it are read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from handscroll.base.errors import DataError
from handscroll.cache.reading.identity import Identity
from handscroll.nn.marks import Marks
from handscroll.nn.pages import Past
from handscroll.nn.span import Span

PARTS = 8  # cuts of a reading that are kept: requests about one text share what is found out about them
LAYER = "layer-{:03d}.bin"  # keys (K, S, E), then values; in int8 then the scales (K, S) of both


@dataclass(frozen=True)
class Part:
    """Tokens first .. last - 1 of a reading, in one folder.

    For a full layer the folder holds `stored` tokens from `first` on. `counts` are the tokens that it holds of each
    layer; the last of them is the same token in all layers.
    """

    folder: Path
    first: int
    last: int
    stored: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """A text that was read as part of a user's turn, and when (seconds since 1970): a template may write the date."""

    text: str
    when: float


@dataclass(frozen=True, eq=False)
class There:
    """The spans of the first `length` tokens of a reading on one device.

    On a GPU they are a copy, which is freed with the last request that holds it, or views of a longer one (`of`).
    """

    length: int
    spans: Sequence[Sequence[Span]]
    of: "There | None" = None

    @cached_property
    def pasts(self) -> list[Past]:
        """What every layer of an engine reads of it."""
        return [Past(spans) for spans in self.spans]


@dataclass(frozen=True, eq=False)
class Reading:
    """Token ids (S,) and the spans of every layer. Deleted files stay mapped as long as the reading is in use."""

    number: str
    identity: Identity
    tokens: Tensor
    spans: Sequence[Sequence[Span]]
    windows: Sequence[int | None] = ()
    _parts: dict[int, "Reading"] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)
    _there: WeakValueDictionary[torch.device, There] = field(default_factory=WeakValueDictionary, repr=False)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def filed(self) -> bool:
        """Whether it lies in the files of a store; otherwise it lies in the memory of its model."""
        return self.number != ""

    def past(self, device: torch.device) -> dict[str, Any]:
        """The arguments for a cache that continues the reading."""
        return {"past": self.on(device).spans, "before": self.length}

    def on(self, device: torch.device) -> There:
        """The reading on a device. Its parts share one copy there, for as long as somebody holds what this gives."""
        if all(span.keys.device == device for layer in self.spans for span in layer):
            return self._here
        found = self._there.get(device)
        if found is None or found.length < self.length:
            found = There(self.length, [[_moved(span, device) for span in layer] for layer in self.spans])
            self._there[device] = found
        return found if found.length == self.length else There(self.length, _first(found.spans, self.length), found)

    @cached_property
    def _here(self) -> There:
        return There(self.length, self.spans)

    def part(self, length: int) -> "Reading":
        """The first `length` tokens of the reading.

        Raises:
            DataError: its windows do not reach back so far (`Store.find` finds readings that do).
        """
        with self._lock:  # requests are prepared on several threads
            found = self._parts.get(length)
            if found is None:
                found = self._cut(length)
                if len(self._parts) == PARTS:
                    del self._parts[next(iter(self._parts))]
                self._parts[length] = found
            return found

    def _cut(self, length: int) -> "Reading":
        for layer, window in enumerate(self.windows):
            begin = self.spans[layer][0].marks.start if self.spans[layer] else length
            if window is not None and begin is not None and begin > max(0, length - window + 1):
                raise DataError(
                    f"a reading of {self.length} tokens cannot be cut to {length}: in layers that see {window} "
                    f"tokens, it keeps only those from {begin} on; read the text again"
                )
        spans = _first(self.spans, length)
        return Reading(self.number, self.identity, self.tokens[:length], spans, self.windows, _there=self._there)


def mapped(
    parts: Sequence[Part], windows: Sequence[int | None], shape: tuple[int, int], dtype: torch.dtype
) -> list[list[Span]]:
    """Spans of every layer over the files of `parts` (for a windowed layer, of the last part).

    `shape` is (kv heads, head size). The files are mapped privately: changes of a span stay in memory and never reach
    the file.
    """
    return [
        [_mapped(part, layer, shape, dtype) for part in (parts if window is None else parts[-1:])]
        for layer, window in enumerate(windows)
    ]


def _mapped(part: Part, layer: int, shape: tuple[int, int], dtype: torch.dtype) -> Span:
    (kv, size), stored = shape, part.counts[layer]
    first = part.first + part.stored - stored
    count, keep = kv * stored, max(0, part.last - first)
    numbers, scales = 2 * count * size * dtype.itemsize, 8 * count if dtype == torch.int8 else 0
    name = str(part.folder / LAYER.format(layer))
    whole = torch.from_file(name, shared=False, size=numbers + scales, dtype=torch.uint8)
    keys, values = whole[:numbers].view(dtype).view(2, 1, kv, stored, size)[:, :, :, :keep]
    span = Span(keys, values, Marks.run(first, keep))
    if not scales:
        return span
    both = whole[numbers:].view(torch.float32).view(2, 1, kv, stored)[:, :, :, :keep]
    return replace(span, scales=(both[0], both[1]))


def _first(spans: Sequence[Sequence[Span]], length: int) -> list[list[Span]]:
    """The first `length` tokens of every layer."""
    return [[kept for span in layer if (kept := _until(span, length)) is not None] for layer in spans]


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
