"""What runs the package elsewhere: the container file, the service and the notebook name what exists, and work."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from handscroll.cli.main import app
from handscroll.extend.story import STARTER

ROOT = Path(__file__).parents[2]
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
UNIT = ROOT / "deploy" / "handscroll.service"


def options():
    return set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["serve", "--help"]).output))


def test_the_container_installs_extras_that_exist_and_runs_without_privileges():
    extras = re.search(r'"\.\[([a-z,]+)\]"', CONTAINER)[1].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) <= set(known)
    lines = CONTAINER.splitlines()
    assert lines.index("USER 10001") < next(at for at, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert "VOLUME /data" in lines and "HEALTHCHECK" in CONTAINER and "/health" in CONTAINER
    for copied in re.findall(r"^COPY (.+) \S+$", CONTAINER, re.M):
        assert all((ROOT / name).exists() for name in copied.split())
    words = json.loads(re.search(r"^CMD (\[\"serve.+\])$", CONTAINER, re.M)[1])
    assert {word for word in words if word.startswith("--")} <= options()


def test_the_service_is_confined():
    text = UNIT.read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(.+)$", text, re.M)[1]
    assert set(re.findall(r"--[a-z-]+", command)) <= options()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is absent")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)], capture_output=True, text=True
    )
    level = re.search(r"Overall exposure level for handscroll.service: ([\d.]+)", done.stdout)
    assert level is not None and float(level[1]) < 2.0, done.stdout + done.stderr


def test_the_notebook_reads_a_book_and_asks_it(tmp_path):
    """Its cells run in order as one script, on the starter model."""
    notebook = json.loads((ROOT / "notebooks" / "read_and_ask.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "book.txt").write_text("The turtle walks home.\n\nIt carries a lamp.\n", encoding="utf-8")
    (tmp_path / "cells.py").write_text("\n\n".join(cells), encoding="utf-8")
    given = {"HANDSCROLL_MODEL": str(STARTER), "HANDSCROLL_BOOK": "book.txt", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "cells.py"],
        cwd=tmp_path,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "context 512 tokens" in done.stdout and "> How does it end?" in done.stdout
    assert done.stdout.count("[first words after") == 2
