"""A zoo of files that strangers may send, each with a payload that leaves a mark if any code in it runs; none does."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from handscroll.text.chat import sandbox
from tests.artefacts import files, models, templates
from tests.artefacts.room import Room, Watch, use
from tests.hostile import answered
from tests.serve import material

ZOO = models.ZOO | templates.ZOO | files.ZOO


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.decoder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[material.Live]:
    with material.live(tmp_path_factory.mktemp("store"), {"tiny": base}) as made:
        use(base)  # what is imported at its first use is imported now
        yield made


@pytest.fixture
def room(tmp_path: Path, base: Path, server: material.Live, monkeypatch: pytest.MonkeyPatch) -> Room:
    """The user stands in the folder of the artefact, as after a download."""
    made = Room(tmp_path / "a" / "artefact", tmp_path / "canary", base, server)
    made.path.mkdir(parents=True)
    monkeypatch.chdir(made.path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it may name the folder where the user stands
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    Watch.port = server.port
    return made


def traces(room: Room, seen: list[str]) -> list[str]:
    """What code of an artefact left behind."""
    files = {name: str(getattr(module, "__file__", None) or "") for name, module in sys.modules.items()}
    imported = [name for name, file in files.items() if file.startswith(f"{room.path}{os.sep}")]
    marks = [f"the file {path.name}" for path in room.canary.parent.glob("canary*")]
    return [*seen, *imported, *marks]


@pytest.mark.promise("R30")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ZOO)
def test_no_artefact_runs_code(name: str, room: Room):
    act = ZOO[name](room)
    assert not traces(room, []), "the artefact was used while it was made"
    with Watch.watching() as seen, answered(name):
        act()
    assert not traces(room, seen)


@pytest.mark.promise("R30")
def test_the_zoo_is_large_and_its_payloads_work(room: Room):
    """Where somebody unpickles, imports or renders without care, all signs by which the zoo judges are there."""
    assert len(ZOO) >= 60
    for mark in room.marks():
        code = f"import pickle; pickle.loads({pickle.dumps(mark)!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert traces(room, []) == ["the file canary"]
        room.canary.unlink()
    with Watch.watching() as seen:
        pickle.loads(room.pickled("a.ckpt"))
    assert len(seen) == 2 and traces(room, seen) == [*seen, "the file canary"]
    room.canary.unlink()
    jinja2.Template((templates.GLOBALS % "cycler").replace("SHELL", room.shell)).render()
    assert room.canary.exists()


@pytest.mark.promise("R30")
def test_a_command_in_a_strangers_folder_runs_nothing_of_it(room: Room):
    for name in (*models.SHADOWS, "typer", "csv"):
        room.file(f"{name}.py", room.code)
    room.file("a.csv", "text,label\nText,1\nOther,2\n")
    command = [Path(sys.executable).parent / "handscroll", "data", "look", "a.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not traces(room, []), done.stderr
