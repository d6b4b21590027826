"""A cache policy is asked what it is, and never recognised: outside `cache/` nobody compares its name.

Whether it is the default (`cache/table.py: DEFAULT`) may be asked: that is whether one was named at all.
"""

import ast
from pathlib import Path

import pytest

from handscroll.cache.table import POLICIES

PACKAGE = Path(__file__).parents[2] / "handscroll"
# The cache of a recurrent model asserts that it is asked for no policy.
INSIDE = ("cache", "models/lstm.py")
OUTSIDE = sorted(p for p in PACKAGE.rglob("*.py") if not p.relative_to(PACKAGE).as_posix().startswith(INSIDE))
OTHERS = {"tuning.way"}  # what has a value of the same name: a way of training may be "full"
ASKED = {"bytes", "cache_of", "footprint", "hosted", "kind_of", "workload"}  # what takes a policy by name
CLASSES = {kind.__name__ for kind in POLICIES.values()}


def offences(tree: ast.AST) -> list[str]:
    """What in a file recognises a policy, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and policies(node) and not OTHERS & {ast.unparse(x) for x in sides(node)}:
            found.append(
                f"line {node.lineno}: a policy is recognised by its name; ask its class, or whether it is DEFAULT"
            )
        if isinstance(node, ast.Compare) and CLASSES & names(node):
            found.append(f"line {node.lineno}: a policy is recognised by its class")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("startswith", "endswith", *ASKED) and any(map(policies, node.args)):
                found.append(f"line {node.lineno}: {called} of the name of a policy")
            if called in ("isinstance", "issubclass") and CLASSES & names(node.args[1]):
                found.append(f"line {node.lineno}: {called} of a policy")
    return found


def policies(node: ast.AST) -> set[object]:
    """The names of policies that are written in a part of a file."""
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & set(POLICIES)


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def sides(node: ast.Compare) -> list[ast.expr]:
    return [node.left, *node.comparators]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_outside_recognises_a_policy(path):
    assert offences(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "request.policy != 'full'",
        "'int8' == name",
        "policy in ('full', 'int8')",
        "policy.startswith('h2o')",
        "request.policy != FullCache.policy",
        "kind is not FullCache",
        "isinstance(cache, Int8Cache)",
        "footprint('full', config, 4)",
        "demand.bytes('full', model, chunk)",
    ],
)
def test_each_way_of_recognising_would_be_seen(code):
    assert offences(ast.parse(code))
    assert not offences(ast.parse("tuning.way == 'full' and policy != DEFAULT and kind_of(policy).exact"))
