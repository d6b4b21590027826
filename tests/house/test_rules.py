"""House rules that a reader should not have to check by eye."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKED

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "handscroll").rglob("*.py"))
LONGEST = 500


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_nothing():
    code = "import sys; import handscroll; print(sorted(m for m in ('torch','numpy','matplotlib') if m in sys.modules))"
    assert run(code).strip() == "[]"


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom handscroll.cli.main import app\nfrom typer.testing import CliRunner\n"
        "r = CliRunner().invoke(app, ['--help'])\nprint(r.exit_code, 'torch' in sys.modules)"
    )
    assert run(code).strip() == "0 False"


def test_base_and_report_and_text_import_no_torch():
    code = (
        "import sys\nimport handscroll.base.runs, handscroll.base.records, handscroll.report, handscroll.text.readers\n"
        "import handscroll.text.training, handscroll.metrics\nprint('torch' in sys.modules)"
    )
    assert run(code).strip() == "False"


@pytest.mark.promise("R31")
def test_loading_a_folder_opens_no_socket(tmp_path):
    """Sockets are forbidden in a fresh process that loads, scores and generates from a local folder."""
    code = f"""
import socket
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import torch, handscroll
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.lm import LM
from handscroll.text.training import TokenizerConfig, train_tokenizer
tokenizer = train_tokenizer(["hello hello world " * 20], TokenizerConfig(vocab=266))
positions = dict(base=10000.0, scaling=dict(name="none"), context=64, trained=64)
config = LlamaConfig(vocab=266, width=16, layers=1, heads=2, kv_heads=1, head_size=8, mlp_width=16, positions=positions)
LM(Llama(config), tokenizer, "x").save(r"{tmp_path}")
lm = handscroll.load(r"{tmp_path}")
lm.nll("hello world hello"); lm.generate("hello", max_tokens=3)
print("quiet")
"""
    assert run(code).strip() == "quiet"


@pytest.mark.promise("R30")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_sober(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) is not None or not text.strip(), "a module says in one sentence what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("print", "eval", "exec"), f"line {node.lineno}: {called}"
            named = {keyword.arg for keyword in node.keywords}
            assert "weights_only" not in named and "trust_remote_code" not in named, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "joblib", "dill", "marshal"} & set(names), f"line {node.lineno}: pickle"
        if isinstance(node, ast.ExceptHandler):
            bare = isinstance(node.type, ast.Name) and node.type.id == "Exception"
            line = text.splitlines()[node.lineno - 1]
            excused = "the library raises bare Exceptions" in line or "the code is the caller's" in line
            assert not bare or excused, f"line {node.lineno}"


def test_tests_are_no_libraries():
    """What several tests need stands in a module that holds no tests."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = (getattr(node, "module", None) or "").split(".") if isinstance(node, ast.ImportFrom) else []
            assert not any(part.startswith("test_") for part in parts), f"{path}, line {node.lineno}"


def test_every_module_whose_shapes_are_checked_is_there():
    for name in CHECKED:
        assert (ROOT / "handscroll" / f"{name.replace('.', '/')}.py").exists(), f"tests/conftest.py checks {name}"


def registries(text: str) -> list[str]:
    """The tables of a file: its constants that map names."""
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict | ast.DictComp):
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            found += [target] if target.isupper() else []
    return found


def test_a_file_called_table_is_the_registry_of_its_folder():
    others = {ROOT / "handscroll" / "data" / "table" / "table.py"}  # rows of files, as its folder says
    for path in {path for path in SOURCES if path.stem == "table"} - others:
        assert registries(path.read_text(encoding="utf-8")), path
    assert registries('CHECKS: dict[str, str] = {"window": "place"}') and not registries("WIDE = 24")
