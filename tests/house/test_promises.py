"""The page of promises and the tests say the same: every row has its tests, or says that it is not kept yet."""

import ast
import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "promises.md"
ROW = re.compile(r"^\| (R\d+) \| .+? \| (kept|in part|not yet)(?:: .+?)? \| (.*?) ?\|$")


def rows() -> dict[str, tuple[str, set[str]]]:
    """The state of every row of the page, and its tests."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| R"):
            match = ROW.match(line)
            assert match, f"not a row of the page: {line}"
            assert match[1] not in found, f"{match[1]} stands twice"
            found[match[1]] = match[2], set(re.findall(r"`(\S+::\S+)`", match[3]))
    return found


def marked() -> dict[str, set[str]]:
    """The tests that are marked with each row."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "mark.promise" not in source:
            continue
        for node in ast.parse(source).body:
            for one in getattr(node, "decorator_list", []):
                if isinstance(one, ast.Call) and ast.unparse(one.func) == "pytest.mark.promise":
                    place = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    found.setdefault(ast.literal_eval(one.args[0]), set()).add(place)
    return found


def test_every_row_is_there_and_has_the_tests_that_are_marked_with_it():
    page, marks = rows(), marked()
    assert list(page) == [f"R{number}" for number in range(1, 39)]
    assert {row: tests for row, (_, tests) in page.items() if tests} == marks


def test_only_what_has_a_test_is_kept():
    for row, (state, tests) in rows().items():
        assert bool(tests) == (state != "not yet"), f"{row} is '{state}' with {len(tests)} tests"


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 80
    for path, name in sorted(named):
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_every_kind_of_incident_has_a_test():
    _, _, table = PAGE.read_text(encoding="utf-8").partition("## What went wrong elsewhere")
    kinds = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(kinds) >= 10
    assert not [line for line in kinds if "::test_" not in line]
