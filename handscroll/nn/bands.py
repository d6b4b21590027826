"""Attention with distance bands: each band of keys meets queries rotated for it, and log-sum-exp joins the bands.

Keys are kept in one rotation. Some bands need another one (the neighbours of Self-Extend). For these, the run of keys
that the band sees is rotated by the difference of the angles while it is read; the rotated copy is not kept.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from handscroll.nn.attend import Exchange, Part, attend_parts
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Mask
from handscroll.nn.pieces import pieces
from handscroll.nn.rope import BandRotation, Rotation
from handscroll.nn.span import Span


def attend_bands(  # noqa: PLR0913 - the arguments of `attend`, and the distance bands
    q: Float[Tensor, "B H T E"],
    spans: Sequence[Span],
    mask: Mask,
    marks: Marks,
    scale: float,
    bands: Sequence[BandRotation],
    exchange: Exchange | None = None,
    cap: float | None = None,
) -> Float[Tensor, "B H T E"]:
    """Attention of unrotated queries over keys as they are kept; the softmax is over all distance bands together."""
    every = marks if exchange is None else exchange.marks
    parts = []
    for band in bands:
        seen = mask & band.mask
        read = spans if band.further is None else [_turned(span, seen, every, band, q) for span in spans]
        parts.append(Part(band.queries.turn(q), [span for span in read if span.marks.length], seen))
    return attend_parts(parts, marks, scale, exchange, cap)


def _turned(span: Span, mask: Mask, marks: Marks, band: BandRotation, q: Tensor) -> Span:
    """The part of a span that the band sees, with its keys rotated for the band; their gradient is rotated back."""
    key = (mask, (span.marks.start, span.marks.length) if span.marks.plain else span.marks)
    if key not in band.known:
        found = pieces(mask, marks, span.marks)
        first, last = (found[0].first, found[-1].last) if found else (0, 0)
        part = span.marks.part(first, last)
        band.known[key] = (first, last, part, band.further(part) if band.further is not None and part.length else None)
    first, last, part, rotation = band.known[key]
    keys, values = span.read(first, last, q.dtype)
    if rotation is not None:
        keys = rotation.turn(keys)
    return Span(keys, values, part, accumulate=_returned(span, first, rotation))


def _returned(span: Span, offset: int, rotation: Rotation | None) -> Callable[[int, Tensor, Tensor], None] | None:
    """The `accumulate` function for a rotated run of a span that takes its own gradient."""
    if span.accumulate is None or rotation is None:
        return span.accumulate
    take = span.accumulate

    def accumulate(first: int, keys: Tensor, values: Tensor) -> None:
        turned = rotation.part(first, first + keys.shape[2]).turn(keys, back=True)
        take(offset + first, turned, values)

    return accumulate
