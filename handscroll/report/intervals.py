"""Scores with their intervals, one row a system, as an SVG string."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handscroll.base.errors import DataError
from handscroll.report.checks import finite
from handscroll.report.drawing import SMALL, TEXT, TITLE, WIDE, draw, extent, label
from handscroll.report.palette import placeholder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _TOP, _BOTTOM, _RIGHT = 30, 36, 44, 62


@dataclass(frozen=True)
class Interval:
    """A score and the ends of its interval, if it has one; `chosen` is drawn stronger."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chosen: bool = False


def intervals(rows: Sequence[Interval], title: str, x_label: str, *, width: int = WIDE) -> str:
    """SVG of a dot a row, with a line from the low to the high end of its interval and the value beside it.

    The axis need not begin at 0: what is compared are places, not lengths.

    Raises:
        DataError: no row, or a number that is not finite.
    """
    if not rows:
        raise DataError(f"plot '{title}': no score; there is nothing to draw")
    finite([value for row in rows for value in (row.value, row.low, row.high)], f"plot '{title}'")
    names = [label(row.name, 26 if width >= 600 else 16) for row in rows]
    left = min(max(map(extent, names)) + 14, 0.45 * width)
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        box = (left / width, _BOTTOM / height, (width - left - _RIGHT) / width, _ROW * len(rows) / height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="x", color=placeholder("rule"), linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.tick_params(axis="x", length=4, labelsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7 if width >= 600 else 4))
        ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
        pad = 0.06 * (max(ends) - min(ends)) or 0.05
        axes.set_xlim(min(ends) - pad, max(ends) + pad)
        axes.set_xlabel(label(x_label), fontsize=SMALL, color=placeholder("muted"))
        for at, (row, name) in enumerate(zip(rows, names, strict=True)):
            tint = placeholder("accent" if row.chosen else "line-reference")
            ink = placeholder("ink" if row.chosen else "muted")
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [at, at], color=tint, linewidth=3 if row.chosen else 2)
            axes.plot([row.value], [at], color=tint, marker="o", markersize=8 if row.chosen else 6)
            y = (_BOTTOM + _ROW * (len(rows) - at - 0.5)) / height
            figure.text(0, y, name, va="center", fontsize=TEXT, color=ink)
            figure.text(1 - (_RIGHT - 10) / width, y, _said(row.value), va="center", fontsize=TEXT, color=ink)
        place = (0, 1 - 14 / height)
        figure.text(*place, label(title), fontsize=TITLE, fontweight="bold", color=placeholder("ink"), va="baseline")

    return draw(width, height, paint)


def _said(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
