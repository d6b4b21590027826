"""Imports go downwards only: the tables of docs/architecture.md, checked file by file."""

import ast
import re
from pathlib import Path

from handscroll.cli.main import app

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


def test_every_folder_has_tests_and_the_page_names_those_that_are_a_verb():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in folders if not (ROOT / "tests" / name).is_dir()} == set()
    verbs = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    verbs |= {group.name or "" for group in app.registered_groups}
    both = {name for name in folders & verbs if (ROOT / "docs" / f"{name}.md").exists()}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = page.split("a verb of the command line with a page of the documentation (")[1].split(")")[0]
    assert set(re.findall(r"`(\w+)`", named)) == both


INSIDE = ("nn", "kernels", "cache")


def floors() -> dict[str, dict[str, int]]:
    """Folder -> file or folder in it -> its row in the table of what lies inside, read from docs/architecture.md."""
    found: dict[str, dict[str, int]] = {name: {} for name in INSIDE}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].strip("`/") in found:
            rows = found[cells[0].strip("`/")]
            floor = 1 + max(rows.values(), default=-1)
            rows |= {name.strip("`/"): floor for name in cells[1].split()}
    return found


def place(rows: dict[str, int], module: str) -> str | None:
    """The entry that a module (a path in its folder) belongs to: its own, its folder's, or `*` (the rest)."""
    return next((name for name in (module, module.split("/")[0], "*") if name in rows), None)


def inner_imports(folder: str):
    """(file, line, importing module, imported module) of the imports within a folder, as paths in it.

    Names that only type checkers read are left out: no import runs for them.
    """
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        here = path.relative_to(PACKAGE / folder).with_suffix("").as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        types = {id(inner) for node in ast.walk(tree) if _for_types(node) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if (
                id(node) in types
                or not isinstance(node, ast.ImportFrom)
                or not (node.module or "").startswith(f"handscroll.{folder}")
            ):
                continue
            base = "/".join((node.module or "").split(".")[2:])
            for alias in node.names:
                there = f"{base}/{alias.name}".strip("/")
                is_module = (PACKAGE / folder / f"{there}.py").exists()
                yield path, node.lineno, here, there if is_module else base


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_inside_a_folder_imports_go_up_no_row():
    wrong = []
    for folder, rows in floors().items():
        for path, line, here, there in inner_imports(folder):
            mine, other = place(rows, here), place(rows, there)
            if mine is None or other is None:
                wrong.append(f"{path}:{line}: {here if mine is None else there} has no row inside {folder}/")
            elif mine != other and rows[other] >= rows[mine]:
                wrong.append(f"{path}:{line}: {here} (row {rows[mine]}) imports {there} (row {rows[other]})")
    assert wrong == []


def test_inside_a_folder_every_file_has_a_row_and_every_row_is_a_file():
    for folder, rows in floors().items():
        there = {
            path.relative_to(PACKAGE / folder).with_suffix("").as_posix() for path in (PACKAGE / folder).rglob("*.py")
        }
        modules = {name for name in there if not name.endswith("__init__")}
        assert {name for name in modules if place(rows, name) is None} == set()
        assert set(rows) <= modules | {name.split("/")[0] for name in modules} | {"*"}


def test_inside_a_folder_no_files_import_each_other():
    for folder in INSIDE:
        below: dict[str, set[str]] = {}
        for _, _, here, there in inner_imports(folder):
            below.setdefault(here, set()).add(there)
        while below:
            free = [name for name, others in below.items() if not others & set(below)]
            assert free, f"these files of {folder}/ import each other in a circle: {sorted(below)}"
            for name in free:
                del below[name]
