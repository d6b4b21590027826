"""The pages on adding something show code that runs, and name what its base wants to be written."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from handscroll.base.spec import POSITIONS, LayerSpec, Positions
from handscroll.tasks.generative import Generative
from handscroll.tasks.headed import Headed
from handscroll.tasks.task import Task

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / "adding" / f"{name}.md").read_text(encoding="utf-8")


def snippet(name: str) -> str:
    """The first code that a page shows."""
    return page(name).split("```python\n")[1].split("```")[0]


def defined(code: str, what: str) -> Any:
    """What code that stands by itself gives this name to."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "page", "exec"), names)
    return names[what]


def same(shown: str, path: str) -> bool:
    """Whether code is that of a file, apart from comments and the sentence at its top."""
    file = ast.parse((ROOT / "handscroll" / path).read_text(encoding="utf-8"))
    return [ast.dump(node) for node in ast.parse(shown).body] == [ast.dump(node) for node in file.body[1:]]


def test_the_page_on_adding_a_task_shows_a_whole_task_that_can_be_made():
    assert same(snippet("task"), "tasks/translate.py")
    task = defined(snippet("task"), "Translate")()
    assert task.name == "translate" and task.metrics == ("chrf", "bleu")


@pytest.mark.parametrize("base", [Headed, Generative, Task])
def test_the_page_on_adding_a_task_says_what_each_base_wants_to_be_written(base):
    [row] = [line for line in page("task").splitlines() if f"| `{base.__name__}`" in line]
    wanted = set(re.findall(r"`(\w+)`", row.strip("|").split("|")[2]))
    assert base.__abstractmethods__ <= wanted, base.__abstractmethods__ - wanted
    for name in wanted:
        assert hasattr(base, name), name


def test_the_page_on_adding_positions_shows_a_whole_way_that_can_be_lengthened():
    assert same(snippet("positions"), "nn/positions/slopes.py")
    way = defined(snippet("positions"), "Slopes")(context=64, trained=64)
    layer = LayerSpec(width=8, heads=1, kv_heads=1, head_size=8, mlp_width=8)
    found = way.candidates("all", 256, way, layer)
    assert [one.name for one in found] == ["none", "slopes (factor 2)", "slopes (factor 4)"]
    assert way.restored({"factor": 4.0}, 64).describe(layer) == "ALiBi, slopes divided by 4"


def test_the_page_on_adding_positions_names_every_way_and_the_whole_contract():
    rows = [line for line in page("positions").splitlines() if line.startswith("| ")]
    assert {name for name in POSITIONS if any(f"`{name}`" in row.split("|")[1] for row in rows)} == set(POSITIONS)
    wanted = {name for name in vars(Positions) if not name.startswith("_") and name != "model_config"}
    missing = {name for name in wanted if f"`{name}" not in page("positions")}
    assert missing == set()
