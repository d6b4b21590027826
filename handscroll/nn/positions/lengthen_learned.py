"""Ways to lengthen a learned position table: each function gives a table (context, D) `to` rows.

Only "extrapolate" gives every position its own row, as similar to its neighbours as the model learned it. The others
are known remedies, some of them for comparison.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SHARE = 0.4  # weight of the block's number in a row of "hierarchical"
SMALLEST = 1e-6  # times the largest singular value: a direction with a smaller one is rounding noise


def interpolate(table: Tensor, to: int) -> Tensor:
    """Linear interpolation between the rows with fixed ends (as in ViT and BERT extensions); all other rows move."""
    wide = table.T[None].to(torch.float64)
    return F.interpolate(wide, size=to, mode="linear", align_corners=True)[0].T.to(table.dtype).contiguous()


def tile(table: Tensor, to: int) -> Tensor:
    """Repeat the table, so that distances inside a trained length look as before.

    Places that are a trained length apart get the same row. Source: Beltagy et al. 2020, "Longformer", section 5.
    """
    return table.repeat(-(-to // len(table)), 1)[:to].clone()


def hierarchical(table: Tensor, to: int) -> Tensor:
    """As `tile`, but each block adds its number: with u_k = (p_k - a p_0) / (1 - a), row i n + j is a u_i + (1 - a)
    u_j.

    So the first n rows stay (Su 2020, "Hierarchical decomposition of position embeddings", kexue.fm/archives/7947,
    where a = 0.4 too). It makes up to n^2 rows.
    """
    assert to <= len(table) ** 2, (to, len(table))
    basis = (table - BLOCK_SHARE * table[:1]) / (1 - BLOCK_SHARE)
    places = torch.arange(to, device=table.device)
    return tile(table, to) + BLOCK_SHARE * (basis[places // len(table)] - basis[:1])


def copy_last_row(table: Tensor, to: int) -> Tensor:
    """Repeat the last row: a folk remedy, under which all new positions look the same."""
    return torch.cat([table, table[-1:].expand(to - len(table), -1)])


def extrapolate(table: Tensor, to: int) -> Tensor:
    """Continue the table by the one rotation that best maps each of its rows to the next.

    Trained tables are nearly such curves: like sinusoids, their rows rotate in many planes (Wang and Chen 2020, "What
    do position embeddings learn?"). Let x be the rows minus their mean, in the directions that they span. The
    orthogonal matrix T that brings x_i T nearest to x_i+1 comes from one singular value decomposition (Schoenemann
    1966). The new rows are mean + x T^i, with x averaged over all rows. A new row is then about as similar to its
    neighbours as trained rows are to theirs, and this similarity is what a model reads from them. A longer training
    might have put the row elsewhere: a plane that does not rotate once within the table is not known well enough. Row 0
    is left out of the fit, because it often marks the beginning of a text. If the rows follow no curve, they average
    out: the new rows are then near the mean and carry little information.
    """
    rows = table[1:].to(torch.float64)
    if len(rows) < 2:  # there is no step to learn from
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
