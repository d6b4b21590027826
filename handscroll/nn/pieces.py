"""The parts of a span that a tile of queries reads: runs that need no mask and runs that need one.

The mask is asked about blocks of keys before any tensor is made (`Mask.within`). So the cost of a packed row grows
with its documents, not with its square, and the cost of a window with the window.
"""

from dataclasses import dataclass, replace

from handscroll.base.portions import KEYS, QUERIES, WIDEST
from handscroll.nn.marks import Extent, Marks
from handscroll.nn.mask import Causal, Everything, Mask


@dataclass(frozen=True)
class Piece:
    """Keys first .. last - 1 of a span. `mask` None: all are seen.

    `square`: the block on the plain causal diagonal; `joined` adds the keys before it.
    """

    first: int
    last: int
    mask: Mask | None = None
    square: bool = False


def query_tiles(mask: Mask, query: Marks, spans: list[Marks], biased: bool = False) -> list[tuple[int, int]]:
    """The tiles of the queries: one tile if no mask or bias tensor is needed, else tiles of `QUERIES` tokens."""
    whole = [piece for key in spans for piece in pieces(mask, query, key)]
    if not biased and all(piece.mask is None for piece in whole):
        return [(0, query.length)]
    return [(a, min(a + QUERIES, query.length)) for a in range(0, query.length, QUERIES)]


def pieces(mask: Mask, query: Marks, key: Marks) -> list[Piece]:
    """The pieces of a span that these queries read, in order; empty if they see nothing of it.

    The result is remembered with the queries, since all layers of a forward ask the same.
    """
    known = query.pieces.get((mask, key))
    if known is None:
        known = query.pieces[mask, key] = _pieces(mask, query, key)
    return known


def narrow(found: list[Piece], heads: int) -> list[Piece]:
    """The same pieces, cut so that a tensor with a score for every head is no larger than one mask tensor may be."""
    width = max(KEYS, WIDEST // heads)
    cut = []
    for piece in found:
        mask = Causal() if piece.square else piece.mask
        edges = range(piece.first, piece.last, width)
        cut += [Piece(first, min(first + width, piece.last), mask) for first in edges]
    return cut


def joined(found: list[Piece]) -> list[Piece]:
    """The same pieces; keys that all queries see, and the square after them, are one piece."""
    if len(found) < 2 or not found[-1].square:
        return found
    *others, before, square = found
    follows = before.mask is None and before.last == square.first
    return [*others, replace(square, first=before.first)] if follows else found


def decided(mask: Mask, query: Marks, key: Marks, edges: tuple[int, ...]) -> list[Mask | bool]:
    """For every block edges[i] .. edges[i + 1] - 1 of the keys: True (all seen), False (none seen), or a mask."""
    (queries,) = query.extents((0, query.length))
    return [_left(mask, queries, extents) for extents in key.extents(edges)]


def _pieces(mask: Mask, query: Marks, key: Marks) -> list[Piece]:
    (queries,) = query.extents((0, query.length))
    if key.length and _left(mask, queries, key.extents((0, key.length))[0]) is True:  # a new token sees all
        return [Piece(0, key.length)]
    edges = _edges(query, key)
    found: list[Piece] = []
    for first, last, left in zip(edges, edges[1:], decided(mask, query, key, edges), strict=False):
        if left is False:
            continue
        piece = Piece(first, last, None if left is True else left)
        if left == Causal() and query.plain and key.plain and _same(query, key, first, last):
            piece = Piece(first, last, None, square=True)
        if found and _joins(found[-1], piece):
            piece = Piece(found.pop().first, last, piece.mask)
        found.append(piece)
    return found


def _edges(query: Marks, key: Marks) -> tuple[int, ...]:
    """Block edges in a span, with one at each end of the queries' own run, so that the diagonal block is a square."""
    edges = {*range(0, key.length, KEYS), key.length}
    if query.start is not None and key.start is not None:
        first, last = query.start - key.start, query.start + query.length - key.start
        edges = {edge for edge in edges if not first < edge < last} | {max(0, first), min(last, key.length)}
    return tuple(sorted(edge for edge in edges if 0 <= edge <= key.length))


def _left(mask: Mask, queries: list[Extent], keys: list[Extent]) -> Mask | bool:
    """`within` for all rows together; no query sees padding keys."""
    rows = max(len(queries), len(keys))
    answers = [_row(mask, queries[row % len(queries)], keys[row % len(keys)]) for row in range(rows)]
    return answers[0] if all(answer == answers[0] for answer in answers) else mask


def _row(mask: Mask, query: Extent, key: Extent) -> Mask | bool:
    if key.last < 0:
        return False
    left = mask.within(query, key)
    return Everything() if left is True and key.first < 0 else left


def _same(query: Marks, key: Marks, first: int, last: int) -> bool:
    assert query.start is not None and key.start is not None
    return key.start + first == query.start and last - first == query.length


def _joins(before: Piece, piece: Piece) -> bool:
    """Whether two neighbours have the same mask and together fit in the widest mask tensor."""
    follows = before.last == piece.first and before.mask == piece.mask and not before.square and not piece.square
    return follows and (piece.mask is None or piece.last - before.first <= WIDEST)
