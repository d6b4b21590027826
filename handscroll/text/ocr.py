"""Text in pictures of pages, by RapidOCR, an optional package that holds its models (English and Chinese)."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

Picture = tuple[int, int, bytes]  # width, height, pixels (RGB)


def installed() -> bool:
    """Whether pictures can be read."""
    return all(find_spec(name) is not None for name in ("rapidocr", "onnxruntime"))


def texts(pictures: Iterable[Picture]) -> Iterator[str]:
    """The text of each picture: a line for what stands on one level, a tab for a wide gap."""
    import numpy as np
    from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports] - optional

    engine = RapidOCR(params={"Global.log_level": "error"})
    for width, height, pixels in pictures:
        found: Any = engine(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)[:, :, ::-1])
        yield "" if found.boxes is None else _lines(found.boxes, found.txts)


def _lines(boxes: Any, words: Iterable[str]) -> str:
    """Words (each with a box of four corners) as lines, by the middle of their boxes."""
    placed = []
    for box, word in zip(boxes.tolist(), words, strict=True):
        left, right = min(x for x, _ in box), max(x for x, _ in box)
        top, bottom = min(y for _, y in box), max(y for _, y in box)
        placed.append(((top + bottom) / 2, left, bottom - top, right, word))
    placed.sort()
    lines: list[list[Any]] = []
    for item in placed:
        if lines and item[0] - lines[-1][0][0] < 0.5 * lines[-1][0][2]:
            lines[-1].append(item)
        else:
            lines.append([item])
    return "\n".join(_joined(sorted(line, key=lambda item: item[1])) for line in lines)


def _joined(line: list[Any]) -> str:
    text, end = "", 0.0
    for _, left, high, right, word in line:
        text += ("" if not text else "\t" if left - end > 1.2 * high else " ") + word
        end = right
    return text
