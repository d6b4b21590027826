"""A model is asked what it is, and never recognised: outside `models/` nobody names a family or a class of models."""

import ast
from functools import cache
from pathlib import Path

import pytest

from handscroll.base.spec import POSITIONS
from handscroll.base.tables import resolve
from handscroll.models.table import FAMILIES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "handscroll"
# `text/` has kinds of tokenizers, some of which are named as families are.
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("models", "text"))


@cache
def classes() -> set[str]:
    """The classes of models, of layers and of configurations: what `models/` defines."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (PACKAGE / "models").rglob("*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def offences(tree: ast.AST, models: set[str]) -> list[str]:
    """What in a file recognises a model, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name, arguments = node.func.id, node.args
            if name in ("isinstance", "issubclass") and models & names(arguments[1]):
                found.append(f"line {node.lineno}: {name} of a class of models")
            if name in ("getattr", "hasattr") and ast.unparse(arguments[0]).split(".")[-1] == "config":
                found.append(f"line {node.lineno}: {name} of a configuration")
        if isinstance(node, ast.Compare):
            texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            types = [part for part in ast.walk(node) if isinstance(part, ast.Call) and ast.unparse(part.func) == "type"]
            if "family" in ast.unparse(node) and texts & set(FAMILIES):
                found.append(f"line {node.lineno}: a family is recognised by its name")
            if types and models & names(node):
                found.append(f"line {node.lineno}: type() of a model")
        if isinstance(node, ast.Attribute) and node.attr == "told":
            found.append(f"line {node.lineno}: told")
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 1:
            texts = {part.value for part in node.elts if isinstance(part, ast.Constant)}
            if len(texts & set(FAMILIES)) > 1:
                found.append(f"line {node.lineno}: a list of families")
    return found


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_outside_recognises_a_model(path):
    assert offences(ast.parse(path.read_text(encoding="utf-8")), classes()) == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(model, EncoderDecoder)",
        "isinstance(lm.model, (Llama, Bert))",
        "type(model) is Llama",
        "config.family == 'gpt2'",
        "model.config.family not in ('bert', 'roberta')",
        "FUSED = ('gpt2', 'bloom')",
        "getattr(model.config, 'positions', None)",
        "hasattr(config, 'labels')",
        "config.told == 'rotary'",
    ],
)
def test_each_way_of_recognising_would_be_seen(code):
    assert offences(ast.parse(code), classes())


def test_a_way_of_telling_positions_is_a_file_and_a_line():
    files = {path.stem for path in (PACKAGE / "nn" / "positions").glob("*.py")}
    for name, place in POSITIONS.items():
        found = resolve(POSITIONS, name, "way of telling positions")
        assert found.model_fields["way"].default == name and found.words
        assert place.split(":")[0].rsplit(".", 1)[-1] in files
        assert bool(found.methods) != bool(found.unlengthened)
    for path in OUTSIDE:  # nobody else knows which ways there are
        if path.parent.name != "positions" and path.name != "spec.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            ways = {place.split(":")[0] for place in POSITIONS.values()}
            assert not modules & ways, path
