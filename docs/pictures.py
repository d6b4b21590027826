"""Draws the two pictures of docs/architecture.md: the house (folders by layer) and a forward (tokens to logits).

python docs/pictures.py        # writes docs/house.svg and docs/forward.svg

The house is read from the table in docs/architecture.md, so that picture and table cannot differ.
"""

import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
INK, PAPER, SOFT, LINE, ACCENT = "#22303c", "#ffffff", "#eef3f6", "#9fb2bf", "#b5442e"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(
    x: float, y: float, words: str, size: int = 13, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = " font-weight='bold'" if bold else ""
    style = f"{FONT} font-size='{size}' fill='{fill}' text-anchor='{anchor}'{weight}"
    return f"<text x='{x}' y='{y}' {style}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str = SOFT, line: str = LINE) -> str:
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{line}'/>"


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = INK) -> str:
    return (
        f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}' stroke-width='1.4' marker-end='url(#tip)'/>"
    )


def sheet(width: int, height: int, parts: list[str]) -> str:
    tip = (
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0,0 L8,4 L0,8 z' fill='{INK}'/></marker></defs>"
    )
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>\n"
        f"{tip}\n<rect width='{width}' height='{height}' fill='{PAPER}'/>\n{body}\n</svg>\n"
    )


def layers() -> dict[int, list[tuple[str, str]]]:
    """Layer -> (folder, what lives there), from the table of the page."""
    found: dict[int, list[tuple[str, str]]] = {}
    for line in (DOCS / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].isdigit():
            words = re.sub(r"[`*]", "", cells[2]).split(";")[0].split(":")[0]
            found.setdefault(int(cells[0]), []).append((cells[1].strip("`"), words))
    return found


def wrapped(words: str, width: int, lines: int) -> list[str]:
    """Words in lines of at most `width` letters; the last of `lines` ends with an ellipsis where something is left."""
    out, row = [], ""
    for word in words.split():
        if row and len(row) + 1 + len(word) > width:
            out.append(row)
            row = word
        else:
            row = f"{row} {word}".strip()
    out.append(row)
    return out if len(out) <= lines else [*out[: lines - 1], out[lines - 1][: width - 1] + "…"]


def house() -> str:
    floors, width, height = layers(), 980, 62
    parts = [text(20, 26, "The house: a folder imports only from floors below its own", 15, bold=True)]
    for row, number in enumerate(sorted(floors, reverse=True)):
        y, rooms = 44 + row * (height + 10), floors[number]
        parts.append(text(20, y + height / 2 + 4, str(number), 14, ACCENT, bold=True))
        each = (width - 60 - 10 * (len(rooms) - 1)) / len(rooms)
        for place, (name, words) in enumerate(rooms):
            x = 46 + place * (each + 10)
            parts += [box(x, y, each, height), text(x + 10, y + 20, name, 14, bold=True)]
            for at, line in enumerate(wrapped(words, int(each / 6.1), 2)):
                parts.append(text(x + 10, y + 37 + 14 * at, line, 11))
    return sheet(width, 54 + len(floors) * (height + 10), parts)


STEPS = [  # what happens, in which file, shapes
    ("token ids", "text/tokenizer.py", "(B, T)"),
    ("embed", "models/llama.py", "(B, T, D)"),
    ("BLOCK", "", ""),
    ("final norm", "nn/norm.py", "(B, T, D)"),
    ("logits", "models/model.py", "(B, T, V)"),
]
INSIDE = [
    ("norm", "nn/norm.py", "(B, T, D)"),
    ("query, key, value", "nn/attention.py", "(B, H, T, E) and (B, K, T, E)"),
    ("rotate queries and keys", "nn/rope.py", "angles come from the positions of the tokens"),
    ("append to the cache", "cache/", "returns spans: keys, values and their marks"),
    ("attend", "nn/attend.py", "mask and bias; the kernel is chosen in kernels/registry.py"),
    ("output projection, add to x", "nn/attention.py, nn/block.py", "x + attention(norm(x))"),
    ("norm", "nn/norm.py", "(B, T, D)"),
    ("gated MLP, add to x", "nn/mlp.py", "x + mlp(norm(x))"),
]


def forward() -> str:
    parts = [text(20, 26, "A forward of a Llama, from tokens to logits", 15, bold=True)]
    y, x = 46, 150
    for name, file, shape in STEPS:
        if name == "BLOCK":
            top = y
            parts.append(box(x - 120, top, 800, 22 + 46 * len(INSIDE), "#f7f3ea", ACCENT))
            parts.append(text(x - 106, top + 24, "Block", 14, ACCENT, bold=True))
            parts.append(text(x - 106, top + 42, "once a layer", 11, ACCENT))
            inner = top + 14
            for number, (what, where, note) in enumerate(INSIDE):
                at = inner + number * 46
                parts += [
                    box(x + 40, at, 260, 32),
                    text(x + 52, at + 21, what),
                    text(x + 314, at + 14, where, 11, ACCENT),
                ]
                parts.append(text(x + 314, at + 28, note, 11))
                parts.append(arrow(x + 170, at + 32, x + 170, at + 46))
            for begin, end in ((0, 5), (6, 7)):  # the residual paths
                a, b = inner + 46 * begin - 7, inner + 46 * end + 16
                path = f"M{x + 170},{a} H{x + 20} V{b} H{x + 39}"
                parts.append(
                    f"<path d='{path}' fill='none' stroke='{ACCENT}' stroke-width='1.4' marker-end='url(#tip)'/>"
                )
            y = top + 40 + 46 * len(INSIDE)
            parts.append(arrow(x + 170, y - 18, x + 170, y))
            continue
        parts += [box(x + 40, y, 260, 32), text(x + 52, y + 21, name, bold=True)]
        parts += [text(x + 314, y + 14, file, 11, ACCENT), text(x + 314, y + 28, shape, 11)]
        if name != "logits":
            parts.append(arrow(x + 170, y + 32, x + 170, y + 46))
        y += 46
    return sheet(860, y + 10, parts)


if __name__ == "__main__":
    (DOCS / "house.svg").write_text(house(), encoding="utf-8")
    (DOCS / "forward.svg").write_text(forward(), encoding="utf-8")
