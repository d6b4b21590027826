"""Where the artefacts of the zoo are made, what their payloads do, and what would show that one of them ran."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from typer.testing import CliRunner

from handscroll.cli.main import app
from handscroll.generate.chat import Speaker
from handscroll.lm import load
from handscroll.text import pdf_worker
from tests.serve import material

EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
FORBIDDEN = {*EVENTS, "os.spawn", "os.fork", "os.startfile", "pty.spawn", "webbrowser.open", "urllib.Request"}
USER = [{"role": "user", "content": "Hi"}]
Act = Callable[[], Any]


class Watch:
    """What the whole process does while it is on; a hook for audits cannot be taken away again."""

    on, seen, known, port = False, [], False, 0

    @classmethod
    def hook(cls, event: str, given: tuple[Any, ...]) -> None:
        if not cls.on or event not in FORBIDDEN:
            return
        worker = [sys.executable, "-P", "-m", pdf_worker.__name__]
        reads_a_pdf = event == "subprocess.Popen" and len(given[1]) == 5 and list(given[1][:4]) == worker
        our_client = event == "socket.connect" and given[1] == ("127.0.0.1", cls.port)
        if not (reads_a_pdf or our_client):
            cls.seen.append(f"{event}{given}"[:200])

    @classmethod
    @contextmanager
    def watching(cls) -> Iterator[list[str]]:
        if not cls.known:
            cls.known = True
            sys.addaudithook(cls.hook)
        cls.on, cls.seen = True, []
        try:
            yield cls.seen
        finally:
            cls.on = False


class Mark:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, call: Callable[..., Any], *given: Any):
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.given


@dataclass(frozen=True)
class Room:
    """Where an artefact is made, the file that its payload would make, and a sound model to spoil."""

    path: Path
    canary: Path
    base: Path
    server: material.Live

    @property
    def shell(self) -> str:
        return f"touch {self.canary}"

    @property
    def code(self) -> str:
        return f"open({str(self.canary)!r}, 'w').close()\n"

    def marks(self) -> list[Mark]:
        made = Mark(os.system, self.shell), Mark(exec, self.code), Mark(eval, self.code.strip())
        return [*made, Mark(subprocess.call, ["touch", str(self.canary)]), Mark(Path.touch, self.canary)]

    def pickled(self, name: str) -> bytes:
        """A payload in the form that goes with the name of a file; the five payloads take turns."""
        mark, out = self.marks()[sum(map(ord, name)) % 5], io.BytesIO()
        if name.endswith((".pt", ".pth", ".bin")):
            torch.save(mark, out, _use_new_zipfile_serialization=len(name) % 2 == 0)
        elif name.endswith(".npy"):
            np.save(out, np.array([mark], dtype=object), allow_pickle=True)
        elif name.endswith(".npz"):
            np.savez(out, a=np.array([mark], dtype=object))
        elif name.endswith(".joblib"):
            joblib.dump(mark, out)
        elif name.endswith(".ckpt"):
            return b"cos\nsystem\n(S'" + self.shell.encode() + b"'\ntR."
        else:
            pickle.dump(mark, out)
        return out.getvalue()

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, lacks: str = "", **given: Any) -> Path:
        """A copy of the sound model; `given` are changes of its JSON files, by their names without ending."""
        shutil.copytree(self.base, self.path, dirs_exist_ok=True)
        if lacks:
            (self.path / lacks).unlink()
        for name, changes in given.items():
            path = self.path / f"{name}.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | changes if isinstance(changes, dict) else changes))
        return self.path


Zoo = dict[str, Callable[[Room], Act]]


def use(path: Path, **how: Any) -> None:
    """Load a model and let it speak, as a user does first."""
    lm = load(path, **how)
    lm.generate("def", max_tokens=2)
    if lm.tokenizer.settings.get("chat_template"):
        Speaker(lm.tokenizer).render(USER)


def command(*words: Any) -> None:
    """A verb of the command line in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception


def each(zoo: Zoo, kind: str, cases: dict[str, Any], make: Callable[[Room, Any], Act]) -> None:
    """Put the cases of a kind into a zoo; `make` makes one of them, and returns what its user does."""
    for name, case in cases.items():
        assert f"{kind}: {name}" not in zoo
        zoo[f"{kind}: {name}"] = lambda room, case=case: make(room, case)


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}
