"""Imports go downwards only: the table of docs/architecture.md, checked file by file."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "handscroll"


def layers() -> dict[str, int]:
    """Folder or file -> layer, read from the table in docs/architecture.md."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].isdigit():
            found[cells[1].strip("`/")] = int(cells[0])
    return found


def room(parts: tuple[str, ...]) -> str:
    """The folder (or top-level file) a module path belongs to."""
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path):
    """(line, module) of every import of our own package in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("handscroll"):
            yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("handscroll"))


def offences(table: dict[str, int]) -> list[str]:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        here = parts[0] if parts[0] != "lm" else "lm.py"
        if here in ("__init__", "__main__"):
            continue
        for line, module in imports(path):
            there = room(tuple(module.split(".")))
            there = "lm.py" if there == "lm" else there
            if not there or there == here:
                continue
            if here not in table or there not in table:
                wrong.append(f"{path}:{line}: {here} or {there} has no row in docs/architecture.md")
            elif table[there] >= table[here] and there != "base":
                wrong.append(f"{path}:{line}: {here} (layer {table[here]}) imports {there} (layer {table[there]})")
    return wrong


def test_every_import_goes_down():
    assert offences(layers()) == []


def test_an_upward_import_would_be_seen():
    upside_down = {name: -layer for name, layer in layers().items()}
    assert any("imports" in line for line in offences(upside_down))


def test_every_folder_has_a_row():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders <= set(layers())
