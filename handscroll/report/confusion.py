"""A confusion matrix as an SVG string."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from handscroll.base.errors import DataError
from handscroll.report.drawing import SMALL, TEXT, TITLE, WIDE, draw, extent, label
from handscroll.report.palette import heat_step, placeholder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 20  # labels that fit a page


def confusion_map(
    labels: Sequence[str], counts: Sequence[Sequence[int]], title: str, called: Sequence[str] = (), *, width: int = WIDE
) -> str:
    """SVG of `counts[i][j]` examples of `labels[i]` that were called `called[j]` (by default the labels themselves).

    A cell is as dark as its share of its row, and says its count; the right ones lie on the diagonal.

    Raises:
        DataError: a grid of another shape, no label, more than 20 of them, or a negative count.
    """
    called = called or labels
    if not labels or len(labels) > MOST:
        raise DataError(f"plot '{title}': {len(labels)} labels; from 1 to {MOST} can be drawn")
    if len(counts) != len(labels) or any(len(row) != len(called) for row in counts):
        raise DataError(f"plot '{title}': expected {len(labels)} rows of {len(called)} counts")
    if any(count < 0 for row in counts for count in row):
        raise DataError(f"plot '{title}': a count is negative")
    room = 22 if width >= 600 else 12
    names, tops = [label(name, room) for name in labels], [label(name, room) for name in called]
    left = min(max(map(extent, names)) + 10, 0.4 * width)
    cell = min(74.0, (width - left - 4) / len(called))
    tall = max(20.0, min(38.0, cell * 0.7))
    turned = max(map(extent, tops)) > cell - 6
    head = 64 + (min(max(map(extent, tops)), 170) if turned else 12)
    height = math.ceil(head + tall * len(labels) + 6)

    def paint(figure: "Figure") -> None:
        bottom = height - head - tall * len(labels)
        box = (left / width, bottom / height, cell * len(called) / width, tall * len(labels) / height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.set_xlim(0, len(called))
        axes.set_ylim(len(labels), 0)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=placeholder("ink"))
        axes.set_xticks([at + 0.5 for at in range(len(called))], tops, rotation=90 if turned else 0)
        axes.set_yticks([at + 0.5 for at in range(len(labels))], names, fontsize=TEXT)
        _cells(axes, counts, cell, tall)
        place = (0, 1 - 14 / height)
        figure.text(*place, label(title), fontsize=TITLE, fontweight="bold", color=placeholder("ink"), va="baseline")
        note = "rows: what is true; columns: what it was called"
        figure.text(0, 1 - 34 / height, note, fontsize=SMALL, color=placeholder("muted"), va="baseline")

    return draw(width, height, paint)


def _cells(axes: "Axes", counts: Sequence[Sequence[int]], cell: float, tall: float) -> None:
    from matplotlib.patches import Rectangle

    gap = 1 / cell, 1 / tall
    for i, row in enumerate(counts):
        total = sum(row)
        for j, count in enumerate(row):
            step = heat_step(count / total) if count else None
            fill = placeholder("wash" if step is None else f"heat-{step}")
            axes.add_patch(Rectangle((j + gap[0], i + gap[1]), 1 - 2 * gap[0], 1 - 2 * gap[1], facecolor=fill, lw=0))
            ink = placeholder("muted" if step is None else f"heat-ink-{step}")
            text = f"{count:,}" if extent(f"{count:,}") < cell else f"{count / 1000:.0f}k"
            size = SMALL if cell >= 34 else 9
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline", color=ink, fontsize=size)
