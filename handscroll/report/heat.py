"""Heat maps of needle accuracy as SVG strings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handscroll.base.errors import DataError
from handscroll.report.checks import rising
from handscroll.report.drawing import LETTER, SMALL, TITLE, WIDE, draw, label
from handscroll.report.language import say
from handscroll.report.palette import heat_step, placeholder
from handscroll.report.ticks import compact, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class HeatMap:
    """Needle accuracy: `accuracy[i][j]` in [0, 1] belongs to `depths[i]` (0 = start of the text) and `lengths[j]`.

    None is 'not measured'. A line marks the trained length when it is given.

    Raises:
        DataError: a grid of another shape, or a value outside [0, 1].
    """

    title: str
    lengths: Sequence[int]
    depths: Sequence[float]
    accuracy: Sequence[Sequence[float | None]]
    trained: int | None = None

    def __post_init__(self) -> None:
        rows, columns = len(self.depths), len(self.lengths)
        if not rows or not columns:
            raise DataError(f"heat map '{self.title}': it needs at least one length and one depth")
        if len(self.accuracy) != rows or any(len(row) != columns for row in self.accuracy):
            shape = f"{len(self.accuracy)} x {sorted({len(row) for row in self.accuracy})}"
            raise DataError(
                f"heat map '{self.title}': accuracy is {shape}; expected one row for each of {rows} depths "
                f"and in it one value for each of {columns} lengths"
            )
        rising(self.lengths, f"heat map '{self.title}': lengths")
        shares = [value for row in self.accuracy for value in row if value is not None]
        for what, values in (("accuracy", shares), ("depth", self.depths)):
            wrong = [value for value in values if not 0 <= value <= 1]
            if wrong:
                raise DataError(f"heat map '{self.title}': {what} {wrong[0]} is not a share between 0 and 1")


def heat_map(
    lengths: Sequence[int],
    depths: Sequence[float],
    accuracy: Sequence[Sequence[float | None]],
    title: str,
    *,
    width: int = WIDE,
) -> str:
    """SVG of one heat map; see `HeatMap` for the arguments."""
    return heat_maps([HeatMap(title, lengths, depths, accuracy)], width=width)


def heat_maps(maps: Sequence[HeatMap], *, width: int = WIDE) -> str:
    """SVG of heat maps, two in a row where the width allows, each cell with its percentage.

    Raises:
        DataError: no map was given.
    """
    if not maps:
        raise DataError("heat_maps: no map was given")
    widest = max(len(one.lengths) for one in maps)
    columns = 2 if len(maps) > 1 and width >= 600 and (width - 128) / 2 / widest >= 25 else 1
    cell = min(64.0, ((width - 20 * (columns - 1)) / columns - 54) / widest)
    tall = max(22.0, min(34.0, cell * 0.8))
    heights = [88 + len(one.depths) * tall for one in maps]
    rows = [max(heights[i : i + columns]) for i in range(0, len(maps), columns)]
    height = math.ceil(sum(rows) + 22 * (len(rows) - 1))

    def paint(figure: "Figure") -> None:
        for index, one in enumerate(maps):
            row, column = divmod(index, columns)
            left = 46 + column * (width + 20) / columns
            upper = sum(rows[:row]) + 22 * row + 46
            box = (left, height - upper - len(one.depths) * tall, cell * len(one.lengths), len(one.depths) * tall)
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            _heat(axes, one, cell, tall)
            _heat_header(axes, label(one.title, int((width / columns - 12) / LETTER)))

    return draw(width, height, paint)


def _heat(axes: "Axes", one: HeatMap, cell: float, tall: float) -> None:
    from matplotlib.patches import Rectangle

    axes.patch.set_visible(False)
    axes.set_xlim(0, len(one.lengths))
    axes.set_ylim(len(one.depths), 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL)
    every = max(1, math.ceil(30 / cell))
    columns = range(0, len(one.lengths), every)
    axes.set_xticks([j + 0.5 for j in columns], [_fitting(one.lengths[j]) for j in columns])
    axes.set_yticks([i + 0.5 for i in range(len(one.depths))], [f"{depth:.0%}" for depth in one.depths])
    axes.set_xlabel(say("length (tokens)"), fontsize=SMALL, color=placeholder("muted"))
    sign = "%" if cell >= 40 else ""
    for i, row in enumerate(one.accuracy):
        for j, value in enumerate(row):
            step = None if value is None else heat_step(value)
            fill = placeholder("wash" if step is None else f"heat-{step}")
            gap = 1 / cell, 1 / tall
            axes.add_patch(Rectangle((j + gap[0], i + gap[1]), 1 - 2 * gap[0], 1 - 2 * gap[1], facecolor=fill, lw=0))
            ink = placeholder("muted" if step is None else f"heat-ink-{step}")
            text = "–" if value is None else _percent(value) + sign
            size = SMALL if cell >= 32 else 10
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline", color=ink, fontsize=size)
    _trained_rule(axes, one)


def _heat_header(axes: "Axes", title: str) -> None:
    corner = {"xycoords": "axes fraction", "textcoords": "offset pixels", "annotation_clip": False}
    axes.annotate(
        title, (0, 1), xytext=(-46, 30), fontsize=TITLE, fontweight="bold", color=placeholder("ink"), **corner
    )
    axes.annotate(
        say("depth"), (0, 1), xytext=(-6, 7), ha="right", fontsize=SMALL, color=placeholder("muted"), **corner
    )


def _trained_rule(axes: "Axes", one: HeatMap) -> None:
    """A line between the lengths the model was trained for and those beyond."""
    within = sum(length <= (one.trained or 0) for length in one.lengths)
    if not one.trained or within == len(one.lengths):
        return
    axes.plot([within] * 2, [0, len(one.depths)], color=placeholder("ink"), linewidth=2.2, clip_on=False)
    room = len(one.lengths) - within
    side = "left" if room >= within else "right"
    length = compact(one.trained)
    text = say("beyond trained {length} →", length=length) if side == "left" else f"{say('trained')} {length}"
    axes.annotate(
        text,
        (within, 0),
        xytext=(0, 7),
        textcoords="offset pixels",
        ha=side,
        fontsize=SMALL,
        color=placeholder("muted"),
        annotation_clip=False,
    )


def _percent(value: float) -> str:
    """A whole percentage that says 100 only for all and 0 only for none."""
    percent = round(100 * value)
    if percent == 100 and value < 1:
        return "99"
    return "1" if percent == 0 and value > 0 else str(percent)


def _fitting(length: int) -> str:
    exact = compact(length)
    return exact if len(exact) <= 4 else rounded(length)
