"""Learned position tables made longer: each function gives a table (context, D) `to` rows.

Only "extrapolate" gives every position a row of its own whose likeness to its neighbours is what the model learned; the
others are known remedies, some of them for comparison.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SHARE = 0.4  # of a block's number in a row of "hierarchical"
SMALLEST = 1e-6  # of the largest singular value: below it a direction is rounding


def interpolate(table: Tensor, to: int) -> Tensor:
    """Linear between the rows, ends kept (as ViT and BERT extensions do): nothing stays where it was."""
    wide = table.T[None].to(torch.float64)
    return F.interpolate(wide, size=to, mode="linear", align_corners=True)[0].T.to(table.dtype).contiguous()


def tile(table: Tensor, to: int) -> Tensor:
    """The table over and over, so that distances inside a trained length look as they did (Beltagy et al. 2020,
    "Longformer", section 5); places a trained length apart are the same."""
    return table.repeat(-(-to // len(table)), 1)[:to].clone()


def hierarchical(table: Tensor, to: int) -> Tensor:
    """As tile, but every block tells its number too: with u_k = (p_k - a p_0) / (1 - a), row i n + j is
    a u_i + (1 - a) u_j, so the first n rows stay (Su 2020, "Hierarchical decomposition of position embeddings",
    kexue.fm/archives/7947, where a = 0.4 too), up to n^2 rows."""
    assert to <= len(table) ** 2, (to, len(table))
    basis = (table - BLOCK_SHARE * table[:1]) / (1 - BLOCK_SHARE)
    places = torch.arange(to, device=table.device)
    return tile(table, to) + BLOCK_SHARE * (basis[places // len(table)] - basis[:1])


def copy_last_row(table: Tensor, to: int) -> Tensor:
    """The last row for all that follow, a folk remedy that tells no position beyond from another."""
    return torch.cat([table, table[-1:].expand(to - len(table), -1)])


def extrapolate(table: Tensor, to: int) -> Tensor:
    """The table continued by the one rotation that best leads each of its rows to the next.

    Trained tables are nearly such curves: their rows go round in many planes, as sinusoids do (Wang and Chen 2020,
    "What do position embeddings learn?"). With x the rows less their mean, in the directions that they have, the
    orthogonal matrix T that makes x_i T nearest to x_i+1 comes from one singular value decomposition (Schoenemann
    1966), and the rows beyond are mean + x T^i, x averaged over all rows. A row beyond is then about as like its
    neighbours as rows were to theirs, which is what a model reads from them. It need not be where a longer training had
    put it: planes that do not go round once within the table are not known well enough for that. Row 0 is not learned
    from: it often marks the beginning of a text. Rows that follow no curve average out: those beyond are then near the
    mean and tell little.
    """
    rows = table[1:].to(torch.float64)
    if len(rows) < 2:  # no step to learn
        return copy_last_row(table, to)
    mean = rows.mean(0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    axes = axes[sizes > SMALLEST * sizes.max()]
    x = (rows - mean) @ axes.T
    left, _, right = torch.linalg.svd(x[:-1].T @ x[1:])
    turn = left @ right
    back = x[-1]
    for row in x[:-1].flip(0):
        back = row + back @ turn.T
    curve = back[None] / len(x)
    while len(curve) < to - 1:
        curve, turn = torch.cat([curve, curve @ turn]), turn @ turn
    return torch.cat([table, (mean + curve[len(x) : to - 1] @ axes).to(table.dtype)])


LEARNED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "extrapolate": extrapolate,
    "interpolate": interpolate,
    "tile": tile,
    "hierarchical": hierarchical,
    "copy-last-row": copy_last_row,
}
