"""From matplotlib to a clean inline SVG, and the check that any SVG passes before it enters a page."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from handscroll.base.errors import DataError
from handscroll.report.palette import placeholder, variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMESPACE = "http://www.w3.org/2000/svg"
ELEMENTS = frozenset(
    ["svg", "g", "defs", "path", "text", "tspan", "use", "clipPath", "rect", "line", "circle", "title", "desc"]
)
WIDE, NARROW = 736, 360
TITLE, TEXT, SMALL = 14.0, 12.5, 11.5
LETTER = 7.3  # px: a cautious width of a letter at TEXT
_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "handscroll",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "path.simplify": False,
}
_COLOURS = {
    "text.color": "ink",
    "xtick.color": "rule",
    "ytick.color": "rule",
    "xtick.labelcolor": "muted",
    "ytick.labelcolor": "muted",
    "axes.edgecolor": "rule",
}
# Everything XML 1.0 cannot carry: controls, lone surrogates, two non-characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """`text` with each character that neither XML nor HTML can carry replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def label(text: str, longest: int = 40) -> str:
    """`text` on one line, at most `longest` characters; a shortened one ends in an ellipsis."""
    line = " ".join(printable(text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def extent(text: str) -> float:
    """A cautious width of `text` in px at TEXT: Chinese characters and their punctuation are square."""
    return sum(TEXT if ord(letter) >= 0x2E80 else LETTER for letter in text)


def draw(width: int, height: int, paint: Callable[["Figure"], None]) -> str:
    """An SVG of `width` x `height` pixels that `paint` filled; the same bytes for the same input.

    Matplotlib's settings are its defaults while painting, whatever the user's matplotlibrc says, and are
    put back afterwards. They are global to the process: do not draw from two threads at once.
    """
    with _settings():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _tidy(file.getvalue(), width, height)


def vetted(svg: str, prefix: str, description: str) -> str:
    """`svg` ready to stand in a page: harmless, ids unique by `prefix`, named for screen readers.

    Raises:
        DataError: not well-formed SVG, or it holds scripts, event handlers, styles or links that load.
    """
    if "<!" in svg:
        raise DataError("an SVG with a DOCTYPE, comment or CDATA cannot stand in a page; pass the bare <svg> element")
    try:
        root = ElementTree.fromstring(printable(svg))
    except ElementTree.ParseError as error:
        raise DataError(f"a figure's SVG is not well-formed XML: {error}") from None
    if root.tag not in ("svg", f"{{{NAMESPACE}}}svg"):
        raise DataError(f"a figure's SVG starts with <{root.tag}>; expected <svg>")
    for element in root.iter():
        _vet(element)
        _prefix_ids(element, prefix)
    root.attrib.update({"xmlns": NAMESPACE, "role": "img", "aria-label": printable(description)})
    return ElementTree.tostring(root, encoding="unicode")


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser chooses the font; DejaVu only measures, so a glyph it lacks (Chinese labels) is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        settings: Any = _SETTINGS | {name: placeholder(colour) for name, colour in _COLOURS.items()}
        matplotlib.rcParams.update(settings)
        yield


def _tidy(svg: str, width: int, height: int) -> str:
    """Matplotlib's SVG without its document shell, metadata, page-wide <style>, fonts and unused ids."""
    source = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    root = _copy(source, used)
    assert root is not None
    attributes = {"xmlns": NAMESPACE, "viewBox": f"0 0 {width} {height}", "stroke-linejoin": "round"}
    root.attrib.clear()
    root.attrib.update(attributes)
    return ElementTree.tostring(root, encoding="unicode")


def _copy(source: ElementTree.Element, used: set[str]) -> ElementTree.Element | None:
    tag = _local(source.tag)
    if tag not in ELEMENTS:
        return None
    target = ElementTree.Element(tag)
    for name, value in source.attrib.items():
        name = _local(name)
        if (name == "id" and value not in used) or value.startswith("rotate(-0 "):
            continue
        target.set(name, _style(value) if name == "style" else value)
    if source.text and source.text.strip():
        target.text = source.text
    for child in source:
        copied = _copy(child, used)
        if copied is not None and copied.tag == "g" and not copied.attrib:
            target.extend(copied)
        elif copied is not None:
            target.append(copied)
    if tag in ("g", "defs") and len(target) == 0:
        return None
    return target


def _style(style: str) -> str:
    """Placeholders become variables; the family of a font is left to the page."""
    style = re.sub(r"#[0-9a-f]{6}", lambda match: variable(match.group()), style)
    return re.sub(r"font-family: [^;]*; ?", "", style)


def _vet(element: ElementTree.Element) -> None:
    element.tag = _local(element.tag)
    if element.tag not in ELEMENTS:
        raise DataError(f"<{element.tag}> is not allowed in a figure's SVG; allowed: {', '.join(sorted(ELEMENTS))}")
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        name = _local(name)
        loads = name in ("href", "src") and not value.startswith("#")
        loads = loads or re.search(r"url\(\s*['\"]?\s*(?!#)[^\s'\"#]|@import|\\", value, re.IGNORECASE) is not None
        if name.lower().startswith("on") or loads:
            raise DataError(f"{name}={value!r} on <{element.tag}> runs or loads something; a report page is static")
        element.set(name, value)


def _prefix_ids(element: ElementTree.Element, prefix: str) -> None:
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, prefix + value)
        elif name == "href":
            element.set(name, f"#{prefix}{value[1:]}")
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{prefix}"))


def _local(name: str) -> str:
    return name.rpartition("}")[2]
