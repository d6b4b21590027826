"""The plots of a report as SVG strings: loss by position, heat maps of needle accuracy, training curves.

Drawn at `width` pixels, one unit of the SVG per pixel: WIDE for a screen or paper, NARROW for a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from handscroll.base.errors import DataError
from handscroll.report.checks import finite, rising
from handscroll.report.drawing import LETTER, NARROW, SMALL, TEXT, TITLE, WIDE, draw, extent, label
from handscroll.report.heat import HeatMap, heat_map, heat_maps
from handscroll.report.language import say
from handscroll.report.palette import placeholder
from handscroll.report.ticks import binary_steps, compact, powers_of_two, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = [
    "NARROW",
    "WIDE",
    "HeatMap",
    "Series",
    "curve",
    "heat_map",
    "heat_maps",
    "loss_by_position",
    "score_by_length",
]

_LINE = 17
_DASHES: dict[str, tuple[str, object]] = {
    "after": ("line-after", "solid"),
    "before": ("line-before", (0, (5, 2.5))),
    "reference": ("line-reference", (0, (1.2, 2))),
}
_OTHERS: tuple[tuple[str, object], ...] = (
    ("line-0", (0, (8, 2, 1.5, 2))),
    ("line-1", (0, (3, 1.5))),
    ("line-2", (0, (10, 3))),
    ("line-3", (0, (5, 1.5, 1, 1.5, 1, 1.5))),
)
_TINTS = ("line-0", "line-1", "line-2", "line-3")


@dataclass(frozen=True)
class Series:
    """One curve: the loss (nats per token) of each block of positions; None is 'not measured'.

    `positions` are the centres of the blocks, rising. `low` and `high` bound an optional confidence band.

    Raises:
        DataError: lists of unequal length, positions that do not rise, a number that is not finite.
    """

    name: str
    positions: Sequence[float]
    loss: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    emphasis: Literal["before", "after", "reference"] | None = None

    def __post_init__(self) -> None:
        for what, values in (("loss", self.loss), ("low", self.low), ("high", self.high)):
            if values is not None and len(values) != len(self.positions):
                raise DataError(f"series '{self.name}': {len(values)} {what} for {len(self.positions)} positions")
            finite(values or (), f"series '{self.name}': {what}")
        rising(self.positions, f"series '{self.name}': positions")
        if (self.low is None) != (self.high is None):
            raise DataError(f"series '{self.name}': a confidence band needs both low and high")

    @property
    def points(self) -> list[tuple[float, float]]:
        """The measured (position, loss) pairs."""
        return [(x, y) for x, y in zip(self.positions, self.loss, strict=True) if y is not None]


def loss_by_position(
    series: Sequence[Series],
    trained: int | None,
    target: int | None,
    title: str,
    *,
    log: bool | None = None,
    width: int = WIDE,
) -> str:
    """SVG of loss by position, with lines at the trained length and the target.

    `log` chooses a base-2 position axis; by default it is taken when the longest curve reaches beyond four
    times the trained length. A curve that leaves the others far behind is cut at the top; the axis label says so.

    Raises:
        DataError: no series has a measured point.
    """
    series = [one for one in series if one.points]
    if not series:
        raise DataError(f"plot '{title}': no series has a measured value; there is nothing to draw")
    right = max(one.points[-1][0] for one in series)
    right = max(right, target or 0, trained or 0)
    log = bool(trained and right > 4 * trained) if log is None else log
    bottom, top, cut = _vertical_range(series)
    styles = _styles(series)
    longest = max(len(label(one.name)) for one in series)
    direct = len(series) <= 6 and longest <= 22 and width >= 600
    frame = _Frame(
        width,
        right=(longest + 6 * bool(cut)) * LETTER + 14 if direct else 16,
        rows=0 if direct else len(series),
        marks=True,
    )

    def paint(figure: "Figure") -> None:
        axes = frame.axes(figure, title, say("nats per token") + cut)
        axes.set_ylim(bottom, top)
        _length_axis(axes, min(one.positions[0] for one in series), right, log, width)
        _marks(axes, trained, target)
        for one, (colour, dash) in zip(series, styles, strict=True):
            _line(axes, one, colour, dash)
        if direct:
            _direct_labels(axes, frame, series, styles)
        else:
            peaks = [max(y for _, y in one.points) for one in series]
            notes = [f" ↑ {peak:.1f}" if peak > top else "" for peak in peaks]
            names = [label(one.name) + note for one, note in zip(series, notes, strict=True)]
            frame.legend(figure, [(name, *style) for name, style in zip(names, styles, strict=True)])

    return draw(width, frame.height, paint)


def score_by_length(
    series: Sequence[Series],
    threshold: float | None,
    title: str,
    unit: str,
    *,
    width: int = WIDE,
) -> str:
    """SVG of scores (`Series.loss`, 0 to 100) over the length of the text, on a log scale, with a line at `threshold`.

    Raises:
        DataError: no series has a measured point.
    """
    series = [one for one in series if one.points]
    if not series:
        raise DataError(f"plot '{title}': no series has a measured value; there is nothing to draw")
    first, last = (end(end(one.positions) for one in series) for end in (min, max))
    styles = _styles(series)
    longest = max(extent(label(one.name)) for one in series)
    direct = len(series) <= 6 and longest <= 22 * LETTER and width >= 600
    frame = _Frame(width, right=longest + 14 if direct else 16, rows=0 if direct else len(series), marks=False)

    def paint(figure: "Figure") -> None:
        axes = frame.axes(figure, title, unit)
        axes.set_ylim(0, 104)
        _length_axis(axes, first, last, first < last, width, say("length (tokens)"))
        if threshold is not None:
            axes.axhline(threshold, color=placeholder("muted"), linewidth=1, linestyle=(0, (2, 2)))
            at = ((0.0 if first < last else 0.02), threshold)
            look = {"fontsize": SMALL, "color": placeholder("muted"), "textcoords": "offset pixels"}
            said = say("threshold {value}", value=f"{threshold:g}")
            axes.annotate(said, at, xytext=(4, 4), xycoords=("axes fraction", "data"), **look)
        for one, (colour, dash) in zip(series, styles, strict=True):
            _line(axes, one, colour, dash)
        if direct:
            _direct_labels(axes, frame, series, styles)
        else:
            frame.legend(figure, [(one.name, *style) for one, style in zip(series, styles, strict=True)])

    return draw(width, frame.height, paint)


def curve(
    xs: Sequence[float],
    ys: Sequence[float | None],
    title: str,
    *,
    x_label: str | None = None,
    y_label: str | None = None,
    width: int = WIDE,
) -> str:
    """SVG of one curve over steps; from 60 points on, a running mean is drawn over the pale raw values.

    Raises:
        DataError: lists of unequal length, steps that do not rise, numbers that are not finite, nothing measured.
    """
    if len(xs) != len(ys):
        raise DataError(f"plot '{title}': {len(ys)} values for {len(xs)} steps")
    rising(xs, f"plot '{title}': steps")
    finite(ys, f"plot '{title}': values")
    measured = [y for y in ys if y is not None]
    if not measured:
        raise DataError(f"plot '{title}': no measured value; there is nothing to draw")
    span = max(3, len(measured) // 40 * 2 + 1) if len(measured) >= 60 else 1
    smooth = _running_mean(ys, span)
    note = say("; bold: mean of {span} steps", span=span) if span > 1 else ""
    frame = _Frame(width, right=16, rows=0, marks=False)

    def paint(figure: "Figure") -> None:
        axes = frame.axes(figure, title, label(say("nats per token") if y_label is None else y_label) + note)
        low, high = min(measured), max(measured)
        pad = 0.06 * (high - low) or 0.05
        axes.set_ylim(low - pad, high + pad)
        axes.set_xlim(xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1)
        axes.set_xlabel(label(say("step") if x_label is None else x_label), fontsize=SMALL, color=placeholder("muted"))
        axes.xaxis.set_major_locator(_integers(width))
        if span > 1:
            axes.plot(xs, _gaps(ys), color=placeholder("accent"), alpha=0.3, linewidth=1)
        marker = "o" if len(measured) < 3 else ""
        axes.plot(xs, _gaps(smooth), color=placeholder("accent"), linewidth=2, marker=marker)

    return draw(width, frame.height, paint)


class _Frame:
    """The pixel layout of a line plot: header (title, unit, legend, marks), plot, axis labels."""

    def __init__(self, width: int, right: float, rows: int, marks: bool) -> None:
        self.width, self.left, self.right = width, 42, right
        self.rows = rows
        self.top = 48 + rows * _LINE + (_LINE + 3 if marks else 0)
        self.bottom = 44
        self.plot = 250 if width >= 600 else 210
        self.height = self.top + self.plot + self.bottom

    def axes(self, figure: "Figure", title: str, unit: str) -> "Axes":
        """Axes in their place, the header written, only horizontal rules."""
        size = (self.width - self.left - self.right, self.plot)
        box = (self.left / self.width, self.bottom / self.height, size[0] / self.width, size[1] / self.height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.grid(axis="y", color=placeholder("rule"), linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0, labelsize=SMALL)
        axes.tick_params(axis="x", length=4, labelsize=SMALL)
        most = int((self.width - 8) / LETTER)
        self.write(figure, 0, 14, label(title, most), size=TITLE, weight="bold", colour="ink")
        self.write(figure, 0, 33, label(unit, most), size=SMALL, colour="muted")
        return axes

    def write(self, figure: "Figure", x: float, y: float, text: str, **look: object) -> None:
        """Text with its baseline `y` pixels from the top."""
        colour = placeholder(str(look.pop("colour", "ink")))
        place = (x / self.width, 1 - y / self.height)
        figure.text(*place, text, color=colour, va="baseline", **look)  # pyright: ignore[reportArgumentType]

    def legend(self, figure: "Figure", entries: Sequence[tuple[str, str, object]]) -> None:
        """One row for each entry: a piece of the line, then the name."""
        from matplotlib.lines import Line2D

        most = int((self.width - 50) / LETTER)
        for row, (name, colour, dash) in enumerate(entries):
            y = 52 + row * _LINE
            ends = ([1 / self.width, 30 / self.width], [1 - (y - 4) / self.height] * 2)
            line = Line2D(*ends, color=placeholder(colour), linestyle=dash, linewidth=2)  # pyright: ignore[reportArgumentType]
            figure.add_artist(line)
            self.write(figure, 38, y, label(name, most), size=SMALL, colour=colour)


def _vertical_range(series: Sequence[Series]) -> tuple[float, float, str]:
    """Bottom and top of the loss axis, and what its label must add when a curve is cut."""
    highest = [max(y for _, y in one.points) for one in series]
    bottom = min(y for one in series for _, y in one.points)
    calm = min(highest)
    top = max(highest)
    limit = bottom + max(2.5 * (calm - bottom), 1.5)
    if top <= limit:
        pad = 0.06 * (top - bottom) or 0.05
        return bottom - pad, top + pad, ""
    return (
        bottom - 0.06 * (limit - bottom),
        limit,
        say(", cut at {limit} (highest: {top})", limit=f"{limit:.1f}", top=f"{top:.1f}"),
    )


def _styles(series: Sequence[Series]) -> list[tuple[str, object]]:
    """Colour name and dash of each series; the second 'before' and so on falls back to the other styles."""
    taken: set[str] = set()
    styles, spare = [], 0
    for one in series:
        if one.emphasis is not None and one.emphasis not in taken:
            taken.add(one.emphasis)
            styles.append(_DASHES[one.emphasis])
        else:
            # Colours and dashes repeat with different periods, so twelve others stay different.
            styles.append((_TINTS[spare % 4], _OTHERS[(spare + spare // 4) % 4][1]))
            spare += 1
    return styles


def _length_axis(axes: "Axes", first: float, last: float, log: bool, width: int, said: str = "") -> None:
    most = (9 if log else 7) if width >= 600 else 5
    if log:
        axes.set_xscale("log", base=2)
        ticks = powers_of_two(first, last, most)
        axes.set_xlim(first, last)
    else:
        ticks = binary_steps(last, most)
        axes.set_xlim(0, last)
    axes.set_xticks(ticks, [compact(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    name = say("position (tokens, log scale)") if log else say("position (tokens)")
    axes.set_xlabel(said or name, fontsize=SMALL, color=placeholder("muted"))


def _marks(axes: "Axes", trained: int | None, target: int | None) -> None:
    """Vertical lines at the trained length and the target, named above the plot."""
    left, right = axes.get_xlim()
    span = axes.get_window_extent().width
    named: list[float] = []
    for length, name in ((trained, say("trained")), (target if target != trained else None, say("target"))):
        if length is None or not left <= length <= right:
            continue
        axes.axvline(length, color=placeholder("muted"), linewidth=1, linestyle=(0, (2, 2)) if named else "solid")
        text = f"{name} {compact(length)}"
        pixel = axes.transData.transform((length, 0))[0] - axes.get_window_extent().x0
        half = extent(text) / 2
        side = "left" if pixel < half else "right" if pixel > span - half else "center"
        if not named or abs(pixel - named[-1]) > 2.6 * half:
            axes.annotate(
                text,
                (length, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 6),
                textcoords="offset pixels",
                ha=side,
                fontsize=SMALL,
                color=placeholder("muted"),
            )
        named.append(pixel)


def _line(axes: "Axes", one: Series, colour: str, dash: object) -> None:
    xs, tint = list(one.positions), placeholder(colour)
    if one.low is not None and one.high is not None:
        axes.fill_between(xs, _gaps(one.low), _gaps(one.high), color=tint, alpha=0.16, linewidth=0)
    weight = 2.4 if one.emphasis == "after" else 1.8
    marker = "o" if len(one.points) == 1 else ""
    axes.plot(xs, _gaps(one.loss), color=tint, linestyle=dash, linewidth=weight, marker=marker)  # pyright: ignore[reportArgumentType]


def _direct_labels(axes: "Axes", frame: _Frame, series: Sequence[Series], styles: Sequence[tuple[str, object]]) -> None:
    """Each name at the end of its line: in the margin, or inside where the line stops early or leaves the top."""
    window = axes.get_window_extent()
    top = axes.get_ylim()[1]
    margin: list[tuple[float, str, str]] = []
    for one, (colour, _) in zip(series, styles, strict=True):
        out = next((point for point in one.points if point[1] > top), None)
        x, y = one.points[-1] if out is None else (out[0], top)
        pixel = axes.transData.transform((x, y))
        name = label(one.name)
        if out is not None and window.x1 - pixel[0] > 30:
            _name_exit(axes, one, pixel[0], colour)
        elif out is not None:
            margin.append((window.y1 - 6, f"{name} ↑ {max(y for _, y in one.points):.1f}", colour))
        elif window.x1 - pixel[0] > 60:
            axes.annotate(
                name,
                (x, y),
                xytext=(7, 0),
                textcoords="offset pixels",
                va="center",
                fontsize=TEXT,
                color=placeholder(colour),
            )
        else:
            margin.append((pixel[1], name, colour))
    heights = spread([height for height, _, _ in margin], _LINE, window.y0 + 4, window.y1)
    for height, (_, name, colour) in zip(heights, margin, strict=True):
        place = ((window.x1 + 8) / frame.width, height / frame.height)
        axes.figure.text(*place, name, va="center", fontsize=TEXT, color=placeholder(colour))


def _name_exit(axes: "Axes", one: Series, pixel: float, colour: str) -> None:
    """Name a curve where it leaves the plot, on the side of the line that has room, with its highest value."""
    window = axes.get_window_extent()
    text = f"{label(one.name)} ↑ {max(y for _, y in one.points):.1f}"
    right = window.x1 - pixel > extent(text) + 12
    axes.annotate(
        text,
        ((pixel - window.x0) / window.width, 1),
        xycoords="axes fraction",
        xytext=(8 if right else -14, -9),
        textcoords="offset pixels",
        ha="left" if right else "right",
        va="center",
        fontsize=TEXT,
        color=placeholder(colour),
        bbox={"facecolor": placeholder("paper"), "edgecolor": "none", "pad": 2},
    )


def _integers(width: int) -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=8 if width >= 600 else 4, integer=True)


def _gaps(values: Sequence[float | None]) -> list[float]:
    """None becomes NaN, where matplotlib interrupts a line."""
    return [math.nan if value is None else value for value in values]


def _running_mean(values: Sequence[float | None], span: int) -> list[float | None]:
    """Centred mean over `span` values, of those that exist; missing stays missing."""
    means: list[float | None] = []
    for index, value in enumerate(values):
        around = [v for v in values[max(0, index - span // 2) : index + span // 2 + 1] if v is not None]
        means.append(None if value is None else sum(around) / len(around))
    return means
