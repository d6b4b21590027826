"""The documents say what the tables say."""

import ast
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

import handscroll
from handscroll.base.spec import POSITIONS
from handscroll.base.tables import resolve
from handscroll.base.workload import CHUNKED
from handscroll.cli.main import app
from handscroll.lm import LM
from handscroll.metrics.table import METRICS
from handscroll.models.table import FAMILIES
from handscroll.nn.scaling.table import SCALINGS
from handscroll.objectives.settings import OBJECTIVES
from handscroll.tasks.task import TASKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LENGTHENING = {name for way in POSITIONS for name in resolve(POSITIONS, way, "way").methods}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def verbs() -> set[str]:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return names | {group.name for group in app.registered_groups if group.name}


def test_the_readme_lists_every_family_method_and_verb():
    for name in [*FAMILIES, *LENGTHENING]:
        assert f"`{name}`" in README, name
    for verb in verbs():
        assert f"handscroll {verb}" in README, verb


def test_every_method_has_a_row_and_every_scaling_a_method():
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    for name in LENGTHENING:
        [row] = [line for line in page.splitlines() if re.match(rf"\| [^|]*`{name}`", line)]
        files = re.findall(r"`([\w/]+\.py)`", row.split("|")[3])
        sources = [(ROOT / "handscroll" / file).read_text(encoding="utf-8") for file in files]
        assert any(f'"{name}"' in one or f"def {name}" in one for one in sources), name
    assert set(SCALINGS) <= set(LENGTHENING)


def test_the_glossary_explains_what_is_coined_and_lists_what_is_ambiguous():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words, several = page.split("## Words with several meanings")
    rows = {name.strip() for row in words.splitlines() for name in row.split("|")[1:2]}
    for name in ("Keeper", "Room", "Reads", *CHUNKED):
        assert any(f"`{name}`" in row for row in rows), name
    rows = {row.split("|")[1].strip() for row in several.splitlines() if row.startswith("| ")}
    assert {"task", "stage", "chunk", "page", "budget", "window", "recipe", "turn", "place"} <= rows


def test_every_metric_has_a_row_and_no_row_is_of_another():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = page.split("## The metrics")[1].split("\n## ")[0].splitlines()
    named = [name for row in rows if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(METRICS)


def test_the_readme_names_every_guide_on_adding_something():
    [row] = [line for line in README.splitlines() if line.startswith("| to add")]
    for guide in (ROOT / "docs" / "adding").glob("*.md"):
        assert f"(docs/adding/{guide.name})" in row, guide.name


def test_every_objective_has_a_row_and_the_page_on_adding_one_shows_real_code():
    table = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    for name in OBJECTIVES:
        assert f"`{name}`" in table, name
    page = (ROOT / "docs" / "adding" / "objective.md").read_text(encoding="utf-8")
    shown = [line.partition("  #")[0].rstrip() for line in page.split("```python\n")[1].split("```")[0].splitlines()]
    source = (ROOT / "handscroll" / "objectives" / "blanks.py").read_text(encoding="utf-8").splitlines()
    assert len(shown) > 20 and set(shown) <= set(source), set(shown) - set(source)


@pytest.mark.parametrize("name", ["house", "forward"])
def test_the_pictures_show_what_the_page_on_the_architecture_says(name):
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures.py"))[name]()
    assert drawn == (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8"), "run python docs/pictures.py"


def test_the_page_on_adding_a_number_format_shows_real_code():
    page = (ROOT / "docs" / "adding" / "format.md").read_text(encoding="utf-8")
    kernels = ROOT / "handscroll" / "kernels"
    sources = [kernels / name for name in ("blocks.py", "formats.py", "native/formats.h", "native/units.h")]
    lines = {line.strip() for source in sources for line in source.read_text(encoding="utf-8").splitlines()}
    shown = [line.strip() for code in page.split("```")[1::2] for line in code.splitlines()[1:]]
    assert len(shown) > 6 and set(shown) <= lines, set(shown) - lines


def test_every_task_has_a_row():
    table = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    for name in TASKS:
        assert f"| `{name}` |" in table, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_no_placeholder_is_left(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target
    assert not re.search(r"<!-- \w+ -->\s*\n\s*\n", text), "a place for real output is still empty"


SOURCES = [*(path for kind in ("py", "h", "cpp", "js", "md") for path in (ROOT / "handscroll").rglob(f"*.{kind}"))]
WRITTEN = [path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")]
FILES = "".join(f"/{path.relative_to(ROOT).as_posix()}\n" for path in [*SOURCES, *WRITTEN, *PAGES])
FOLDERS = {part for path in [*SOURCES, *WRITTEN] for part in path.relative_to(ROOT).parts[:-1]}


def test_a_file_that_is_named_with_its_folder_exists():
    """In pages, comments and docstrings alike; `nn/block.py: Block` names what stands in the file, too."""
    wrong = []
    for path in [*PAGES, *SOURCES, *WRITTEN]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w./{}*~-])([a-z]\w*(?:/\w+)+\.(?:py|h|cpp|js|md))\b", text):
            if name.split("/")[0] in FOLDERS and f"/{name}\n" not in FILES:
                wrong.append(f"{path}: {name}")
        for name, inside in re.findall(r"`([a-z]\w*(?:/\w+)+\.py): (\w+)[\w.]*`", text):
            found = [one.read_text(encoding="utf-8") for one in SOURCES if one.as_posix().endswith(f"/{name}")]
            if not any(re.search(rf"\b{inside}\b", source) for source in found):
                wrong.append(f"{path}: {name}: {inside}")
    assert wrong == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile", ROOT / ".ci" / "run"], ids=lambda page: page.name)
def test_modules_and_files_of_the_package_that_a_page_or_the_makefile_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])handscroll(?:\.[a-z]\w*)+", text):
        parts = name.split(".")
        public = len(parts) == 2 and (
            hasattr(handscroll, parts[1]) or parts[1] in {"json", "runs", "sentences", "checkpoints"}
        )
        example = parts[-1] == "name"  # handscroll.models.name, the file that a page wants to be added
        inside = len(parts) > 2 and (example or parts[-1] in defined(Path(*parts[:-1])))
        assert public or inside or find(Path(*parts)), name
    for path in re.findall(r"(?<![\w/.-])handscroll/[\w/]+(?:\.\w+)?", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_calls_or_imports_is_there(page):
    """Calls of the `LM`, calls by the name of a folder (`plan.predict(...)`), and imports in examples."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w./])lm\.([a-z]\w*)", text):
        known = {"py", *(field.name for field in fields(LM))} | defined(Path("handscroll", "lm"))
        assert hasattr(LM, name) or name in known, f"lm.{name}"
    for folder, name in re.findall(r"`([a-z]\w*)\.([a-z]\w*)\(", text):
        package = Path("handscroll", folder)
        assert not (ROOT / package).is_dir() or name in defined(package), f"{folder}.{name}(...)"
    for module, names in re.findall(r"^from (handscroll[\w.]*) import ([\w, ]+)", text, re.M):
        for name in re.findall(r"\w+", names):
            path = Path(*module.split("."))
            assert find(path / name) or hasattr(handscroll, name) or name in defined(path), f"{module}: {name}"


def find(module: Path) -> bool:
    return (ROOT / module).is_dir() or (ROOT / f"{module}.py").exists()


@pytest.mark.parametrize("script", sorted((ROOT / "bench").glob("*.py")), ids=lambda script: script.name)
def test_what_a_benchmark_imports_exists(script):
    """A benchmark runs rarely, so a name that moved would be noticed late."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("handscroll.", "bench.")):
            module = Path(*str(node.module).split("."))
            for alias in node.names:
                assert find(module / alias.name) or alias.name in defined(module), (node.module, alias.name)


def defined(module: Path) -> set[str]:
    """The names at the top of a module of ours."""
    source = ROOT / module.with_suffix(".py")
    source = source if source.exists() else ROOT / module / "__init__.py"
    assert source.exists(), module
    names = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            names |= {one.name for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    return names


def test_options_in_the_pages_exist():
    """Every --option that a page shows is one of some verb."""
    known = set()
    for source in (ROOT / "handscroll" / "cli").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        options = re.findall(r"^    (\w+): (?:Annotated|Adapter|Report|Dtype|Temperature|TopP)", text, re.M)
        known |= {f"--{name.replace('_', '-')}" for name in options}
        known |= set(re.findall(r'"(--[\w-]+)"', text))
        known.add("--nproc-per-node")  # of torchrun, which starts our command
    known |= {f"--no-{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): Annotated\[bool", text, re.M)}
    for name in (
        "README.md",
        "docs/extend.md",
        "docs/evaluate.md",
        "docs/generate.md",
        "docs/decoding.md",
        "docs/train.md",
    ):
        shown = set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", (ROOT / name).read_text(encoding="utf-8")))
        assert shown <= known, (name, shown - known)


def test_the_page_on_adding_a_cache_policy_shows_real_code():
    page = (ROOT / "docs" / "adding" / "policy.md").read_text(encoding="utf-8")
    shown = [line.partition("  #")[0].rstrip() for line in page.split("```python\n")[1].split("```")[0].splitlines()]
    source = (ROOT / "handscroll" / "cache" / "sinks.py").read_text(encoding="utf-8").splitlines()
    source = [line.partition("  #")[0].rstrip() for line in source]
    assert len(shown) > 8 and set(shown) <= set(source), set(shown) - set(source)
