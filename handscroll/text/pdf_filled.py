"""What was put on a page of a PDF after it was made: values of forms, ticked boxes, notes typed onto the page.

They are annotations, which the text of a page does not hold. Here each finds its place in that text: behind the words
on its left, else before those on its right, else below those above it.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

TICKED, OPEN = "☑", "☐"
FIRST = 24  # units (points, as a rule) from the top of a box in which its first line stands


class Box(NamedTuple):
    """A part of a page, in its units of measure, counted from below."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> float:
        return (self.bottom + self.top) / 2

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.bottom <= y <= self.top


class Filled(NamedTuple):
    """A text that was put on the page, and whether it is a box to be ticked."""

    box: Box
    text: str
    tick: bool


def filled(raw: Any, document: Any, page: Any, number: int) -> list[Filled]:
    """What was put on a page. Hidden fields and notes that open in a window of their own do not stand on it."""
    aside = {raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP, raw.FPDF_ANNOT_TEXT}
    found: list[Filled] = []
    others: list[Box] = []
    for annotation in _annotations(raw, page):
        box, kind = _box(raw, annotation), raw.FPDFAnnot_GetSubtype(annotation)
        if raw.FPDFAnnot_GetFlags(annotation) & (raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW):
            continue
        if kind in aside:
            others.append(box)
        else:
            found.append(_value(raw, document.formenv, annotation, box))
    if not found:
        return []
    boxes = [one.box for one in found] + others
    shown = _shown(raw, document, page, number, boxes)
    return [
        one if one.tick else one._replace(text=text or one.text)
        for one, text in zip(found, shown, strict=False)
        if text or one.text
    ]


def _annotations(raw: Any, page: Any) -> Iterator[Any]:
    for at in range(raw.FPDFPage_GetAnnotCount(page)):
        if annotation := raw.FPDFPage_GetAnnot(page, at):
            yield annotation
            raw.FPDFPage_CloseAnnot(annotation)


def _box(raw: Any, annotation: Any) -> Box:
    found = raw.FS_RECTF()
    raw.FPDFAnnot_GetRect(annotation, found)
    bottom, top = sorted((found.bottom, found.top))
    return Box(found.left, bottom, found.right, top)


def _value(raw: Any, form: Any, annotation: Any, box: Box) -> Filled:
    """What the file says of a field or note, which counts where nothing is drawn."""
    if raw.FPDFAnnot_GetSubtype(annotation) != raw.FPDF_ANNOT_WIDGET:
        free = raw.FPDFAnnot_GetSubtype(annotation) == raw.FPDF_ANNOT_FREETEXT
        text = _string(lambda *out: raw.FPDFAnnot_GetStringValue(annotation, b"Contents", *out)) if free else ""
        return Filled(box, text, tick=False)
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
        state = _string(lambda *out: raw.FPDFAnnot_GetStringValue(annotation, b"AS", *out))
        ticked = raw.FPDFAnnot_IsChecked(form, annotation) or state not in ("", "Off")
        return Filled(box, TICKED if ticked else OPEN, tick=True)
    if kind not in (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
        return Filled(box, "", tick=False)
    return Filled(box, _string(lambda *out: raw.FPDFAnnot_GetFormFieldValue(form, annotation, *out)), tick=False)


def _string(ask: Callable[..., int]) -> str:
    size = ask(None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    ask(buffer, size)
    return _tidy(bytes(buffer)[:size].decode("utf-16-le", errors="ignore"))


def _tidy(text: str) -> str:
    lines = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.strip() for line in lines if line.strip())


def _shown(raw: Any, document: Any, page: Any, number: int, boxes: Sequence[Box]) -> list[str]:
    """The text that is drawn in each box: the page is flattened and loses all that it had before, in memory."""
    before = raw.FPDFPage_CountObjects(page)
    if raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY) != raw.FLATTEN_SUCCESS:
        return [""] * len(boxes)
    flat = document[number - 1]
    for _ in range(before):
        one = raw.FPDFPage_GetObject(flat, 0)
        raw.FPDFPage_RemoveObject(flat, one)
        raw.FPDFPageObj_Destroy(one)
    text = flat.get_textpage()
    parts: dict[int, list[int]] = defaultdict(list)
    at = 0
    for place in range(text.count_chars()):
        code = raw.FPDFText_GetUnicode(text, place)
        if code not in (0x0A, 0x0D, 0x20):
            left, bottom, right, top = text.get_charbox(place)
            x, y = (left + right) / 2, (bottom + top) / 2
            at = next((which for which, box in enumerate(boxes) if box.holds(x, y)), at)
        parts[at].append(code)
    return [_tidy(characters(parts[at])) for at in range(len(boxes))]


def characters(codes: Sequence[int]) -> str:
    """The text of some codes of PDFium, which gives characters beyond U+FFFF in two halves; lone halves go."""
    # 0x02 and 0xFFFE are the hyphen of a word that goes on in the next line.
    text = "".join(chr(code) for code in codes if code not in (0, 0x02, 0xFFFE))
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="ignore")


def placed(page: Any, codes: Sequence[int], texts: Sequence[Filled]) -> dict[int, str]:
    """What is written before which character of a page's text (`codes`), or behind its last."""
    if not texts:
        return {}
    words = [(at, Box(*page.get_charbox(at, loose=True))) for at, code in enumerate(codes) if code > 0x20]
    beside: dict[int, str] = {}
    below: dict[int, list[Filled]] = defaultdict(list)
    for one in sorted(texts, key=lambda one: (one.box.left, -one.box.top)):
        at, text = _beside(codes, words, one)
        if text:
            beside[at] = beside.get(at, "") + text
        else:
            below[at].append(one)
    return {at: beside.get(at, "") + _rows(below[at]) for at in {*beside, *below}}


def _beside(codes: Sequence[int], words: Sequence[tuple[int, Box]], one: Filled) -> tuple[int, str]:
    """Where a text stands, and the text with blanks around it, "" where it stands on lines of its own."""
    box = one.box
    first = box._replace(bottom=max(box.bottom, box.top - FIRST))
    level = [
        (at, word)
        for at, word in words
        if first.bottom <= word.middle <= box.top or word.holds(word.left, first.middle)
    ]
    lefts = [(box.left - word.right, at) for at, word in level if word.left < box.left]
    rights = [(word.left - box.right, at) for at, word in level if word.right > box.right]
    left, right = min(lefts, default=None), min(rights, default=None)
    if left and not (one.tick and right and right[0] < left[0]):
        at = left[1] + 1
        return at, f" {one.text}" + (" " if at < len(codes) and codes[at] > 0x20 else "")
    if right:
        at = right[1]
        return at, (" " if at and codes[at - 1] > 0x20 else "") + f"{one.text} "
    above = [(word.bottom, -at) for at, word in words if word.bottom >= box.middle]
    if not above:
        return len(codes), ""
    last = -min(above)[1]
    return next((at for at in range(last, len(codes)) if codes[at] in (0x0A, 0x0D)), len(codes)), ""


def _rows(texts: Sequence[Filled]) -> str:
    """Texts on lines of their own: a tab between those that stand side by side."""
    lines: list[list[Filled]] = []
    for one in sorted(texts, key=lambda one: (-one.box.middle, one.box.left)):
        if lines and lines[-1][0].box.bottom <= one.box.middle:
            lines[-1].append(one)
        else:
            lines.append([one])
    rows = ["\t".join(one.text for one in sorted(line, key=lambda one: one.box.left)) for line in lines]
    return "".join(f"\n{row}" for row in rows)
