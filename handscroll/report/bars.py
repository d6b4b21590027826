"""A histogram over a logarithmic axis as an SVG string."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from handscroll.base.errors import DataError
from handscroll.report.checks import rising
from handscroll.report.drawing import SMALL, TITLE, WIDE, draw, label
from handscroll.report.palette import placeholder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEFT, _RIGHT, _TOP, _BOTTOM, _PLOT = 46, 16, 30, 44, 190


def histogram(edges: Sequence[float], counts: Sequence[int], title: str, x_label: str, *, width: int = WIDE) -> str:
    """SVG of `counts[i]` things from `edges[i]` to `edges[i + 1]`, the edges on a log scale.

    Raises:
        DataError: not one edge more than counts, edges that do not rise or are not positive, or nothing counted.
    """
    if len(edges) != len(counts) + 1 or not sum(counts):
        raise DataError(f"plot '{title}': {len(edges)} edges for {len(counts)} counts of {sum(counts)} in all")
    rising(edges, f"plot '{title}': edges")
    if edges[0] <= 0:
        raise DataError(f"plot '{title}': a log scale begins above 0, not at {edges[0]}")
    height = _TOP + _PLOT + _BOTTOM

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import FixedLocator, MaxNLocator

        box = (_LEFT / width, _BOTTOM / height, (width - _LEFT - _RIGHT) / width, _PLOT / height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="y", color=placeholder("rule"), linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0, labelsize=SMALL)
        axes.tick_params(axis="x", which="both", length=4, labelsize=SMALL)
        axes.set_xscale("log")
        sizes = [right - left for left, right in pairwise(edges)]
        axes.bar(edges[:-1], counts, width=sizes, align="edge", color=placeholder("accent"), linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.06 * max(counts))
        if edges[-1] < 10 * edges[0]:  # hardly a power of ten lies within
            steps = MaxNLocator(nbins=5).tick_values(edges[0], edges[-1])
            axes.xaxis.set_major_locator(FixedLocator([step for step in steps if edges[0] <= step <= edges[-1]]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel(label(x_label), fontsize=SMALL, color=placeholder("muted"))
        place = (0, 1 - 14 / height)
        figure.text(*place, label(title), fontsize=TITLE, fontweight="bold", color=placeholder("ink"), va="baseline")

    return draw(width, height, paint)
