"""kill -9 in the middle of a training run, then resume: the records are byte-identical to an undisturbed run.

A child kills itself at a given call of the system. The calls of an undisturbed run are counted, so every kill strikes
in flight on a machine of any speed. `base/test_runs.py` kills from outside, at random moments.
"""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os
import signal
import sys
from pathlib import Path
import torch
from handscroll.base.config import read_recipe
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import load
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
torch.set_num_threads(1)
kind, where, *settings = sys.argv[1:]
if kind == "train":
    recipe = Recipe.parse(read_recipe(Path(where), settings), "recipe")
calls = 0
def counted(real, last):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
def work(folder):
    if kind == "train":
        return run_recipe(recipe, folder)
    lm = load(where)  # the whole of extend: the choice of a method, tuning in chunks with its file, saving
    memory = {"strategy": "staged", "stage_layers": 1, "chunk": 64, "offload": "disk"}
    files = (str(Path(os.__file__).parent / "argparse.py"),)
    values = {"files": files, "steps": 12, "rows": 2, "save_every": 2, "memory": memory, "lora": {"rank": 2}}
    settings = TuneSettings.parse(values, "tune")
    found = extension(lm, 128, text=files, tune=settings, folder=folder, measured=128)
    found.lm.save(folder / "model")
# One warm parent forks a child per attempt: importing torch once instead of sixty times.
for line in sys.stdin:
    last, folder = line.rstrip("\\n").split(" ", 1)
    board, pen = os.pipe()
    child = os.fork()
    if child == 0:
        for name in ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name), int(last)))
        work(Path(folder))
        os.write(pen, str(calls).encode())
        os._exit(0)
    os.close(pen)
    _, status = os.waitpid(child, 0)
    made = os.read(board, 20).decode() or last
    os.close(board)
    sys.stdout.write(f"{status} {made}\\n"); sys.stdout.flush()
"""
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"
OFFLOAD = ["memory={strategy='staged',stage_layers=1,chunk=64,offload='disk'}", "regularise.dropout=0.1"]
CASES = {
    "train": ["train", str(RECIPE), "threads=1", "loop.save_every=3"],
    "train, offloading": ["train", str(RECIPE), "threads=1", "loop.save_every=3", *OFFLOAD],
    "extend, offloading": ["extend"],
}
KILLS = [2, pytest.param(20, marks=pytest.mark.long)]  # of each case; the long campaign has sixty in all


class Parent:
    """The forking parent process: `attempt` runs a child, which kills itself at a call of the system or finishes."""

    def __init__(self, *case):
        command = [sys.executable, "-c", RUN, *case]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attempt(self, folder: Path, last: int = 0) -> tuple[int, int]:
        """Exit status of one child that trains in `folder`, and how many calls it made; 0 lets it finish."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{last} {folder}\n")
        self.process.stdin.flush()
        status, made = map(int, self.process.stdout.readline().split())
        return status, made

    def close(self):
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


@pytest.mark.promise("R1")
@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] if case == "train, offloading" else []) for case in CASES]
)
def test_kills_leave_the_same_records(case, kills, tiny_folder, tmp_path):
    """A run is killed and resumed until it gets through; then another, until so many kills have struck in flight."""
    parent = Parent(*CASES[case], *([str(tiny_folder)] if case.startswith("extend") else []))
    calm = tmp_path / "calm"
    status, calls = parent.attempt(calm)
    assert status == 0 and calls > 50
    draw = random.Random(0)
    killed = runs = 0
    while killed < kills:
        run, status = tmp_path / f"run-{runs}", signal.SIGKILL
        while status == signal.SIGKILL:
            # Within the first half of what is left of a run, or later ones would rarely be in flight.
            status, _ = parent.attempt(run, draw.randint(1, calls // 2) if killed < kills else 0)
            killed += status == signal.SIGKILL
        assert status == 0
        for name in ("records.jsonl", "model/model.safetensors"):
            assert (run / name).read_bytes() == (calm / name).read_bytes(), (run, name)
        runs += 1
    parent.close()
