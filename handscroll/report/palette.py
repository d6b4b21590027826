"""The colours of a report, each with a light and a dark value, and the arithmetic behind them.

Plots are drawn with placeholder colours, one per name; `handscroll.report.drawing` turns each into
`var(--name, light value)`, so that one SVG follows the colour scheme of the page it stands in.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

HEAT_STEPS = 20
_HUE = math.radians(178.0)
_BLACK, _WHITE = "#000000", "#ffffff"


def oklch(lightness: float, chroma: float, hue: float) -> str:
    """An OKLCH colour as sRGB hex, clipped into gamut (Ottosson 2020, "A perceptual color space").

    `lightness` lies in [0, 1], `hue` is in radians.
    """
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(1.0, max(0.0, value)))):02x}" for value in linear)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1 contrast ratio of two hex colours, from 1 (the same) to 21 (black on white)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def readable(background: str) -> str:
    """Black or white, whichever stands out more on `background`: at least 4.58 : 1 on any colour."""
    return max((_BLACK, _WHITE), key=lambda ink: contrast(ink, background))


def heat(step: int, dark: bool) -> str:
    """Colour `step` of 0..HEAT_STEPS: one hue, lightness linear in OKLab, hence perceptually uniform."""
    share = step / HEAT_STEPS
    if dark:
        return oklch(0.27 + 0.53 * share, 0.012 + 0.088 * share, _HUE)
    return oklch(0.945 - 0.475 * share, 0.012 + 0.073 * share, _HUE)


def heat_step(share: float) -> int:
    """The step of the ramp for a value in [0, 1]."""
    return round(share * HEAT_STEPS)


def css(dark: bool) -> str:
    """The declarations `--name: value;` of one scheme."""
    return " ".join(f"--{name}: {values[dark]};" for name, values in COLOURS.items())


def placeholder(name: str) -> str:
    """The colour that stands for `name` while a plot is drawn."""
    return f"#{0x01FE00 + _ORDER[name]:06x}"


def variable(colour: str) -> str:
    """The CSS value for a placeholder colour; any other colour is returned as it came."""
    name = _NAMES.get(colour)
    return colour if name is None else f"var(--{name}, {COLOURS[name][0]})"


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _colours() -> dict[str, tuple[str, str]]:
    table = {
        "paper": ("#fcfbf8", "#141917"),
        "wash": ("#f3f3ed", "#1c2320"),
        "ink": ("#1b2421", "#e6ebe8"),
        "muted": ("#59645f", "#9ba8a2"),
        "rule": ("#dadfd9", "#343d39"),
        "accent": ("#0d6656", "#62c9b3"),
        # Lines: told apart under deuteranopia and protanopia by lightness and by blue against orange.
        "line-after": ("#0d6656", "#62c9b3"),
        "line-before": ("#bd4b1d", "#f2965f"),
        "line-reference": ("#59645f", "#9ba8a2"),
        "line-0": ("#2b5fb0", "#8cb6f5"),
        "line-1": ("#8a4a98", "#d7a5e3"),
        "line-2": ("#8c6a00", "#dfbd55"),
        "line-3": ("#2a3130", "#d5dcd8"),
    }
    for step in range(HEAT_STEPS + 1):
        light, dark = heat(step, dark=False), heat(step, dark=True)
        table[f"heat-{step}"] = (light, dark)
        table[f"heat-ink-{step}"] = (readable(light), readable(dark))
    return table


COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(_colours())
_ORDER = {name: index for index, name in enumerate(COLOURS)}
_NAMES = {placeholder(name): name for name in COLOURS}
