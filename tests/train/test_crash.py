"""kill -9 at random moments of a training run, then resume: the records are byte-identical to an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
import torch
from handscroll.base.config import read_recipe
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import load
from handscroll.train.recipe import Recipe, run_recipe
torch.set_num_threads(1)
kind, where, *settings = sys.argv[1:]
if kind == "train":
    recipe = Recipe.parse(read_recipe(Path(where), settings), "recipe")
import os
def work(folder):
    if kind == "train":
        return run_recipe(recipe, folder)
    lm = load(where)  # the whole of extend: the choice of a method, tuning on the chunked rung with its file, saving
    memory = {"rung": "staged", "stage_layers": 1, "chunk": 64, "offload": "disk"}
    files = (str(Path(os.__file__).parent / "argparse.py"),)
    values = {"files": files, "steps": 12, "rows": 2, "save_every": 2, "memory": memory, "lora": {"rank": 2}}
    settings = TuneSettings.parse(values, "tune")
    found = extension(lm, 128, text=files, tune=settings, folder=folder, measured=128)
    found.lm.save(folder / "model")
# One warm parent forks a child per attempt: importing torch once instead of sixty times.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(Path(line.strip()))
        os._exit(0)
    sys.stdout.write(f"{child}\\n"); sys.stdout.flush()
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"done {status}\\n"); sys.stdout.flush()
"""
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"
OFFLOAD = ["memory={rung='staged',stage_layers=1,chunk=64,offload='disk'}", "regularise.dropout=0.1"]
CASES = {
    "train": ["train", str(RECIPE), "threads=1", "loop.save_every=3"],
    "train, offloading": ["train", str(RECIPE), "threads=1", "loop.save_every=3", *OFFLOAD],
    "extend, offloading": ["extend"],
}
KILLS = [7, pytest.param(20, marks=pytest.mark.long)]  # of each case; the long campaign has sixty in all


class Parent:
    """The forking parent process: `attempt` runs a child and kills it after a while, or lets it finish."""

    def __init__(self, *case):
        command = [sys.executable, "-c", RUN, *case]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attempt(self, folder: Path, seconds: float | None) -> int:
        """Exit status of one child that trains in `folder`, killed after `seconds` if it still runs."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):  # it had finished
                os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline().split()[1])

    def close(self):
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("case", CASES)
def test_kills_leave_the_same_records(case, kills, tiny_folder, tmp_path):
    """A run is killed and resumed until it gets through; then another, until so many kills have struck in flight."""
    parent = Parent(*CASES[case], *([str(tiny_folder)] if case.startswith("extend") else []))
    calm = tmp_path / "calm"
    started = time.monotonic()
    assert parent.attempt(calm, None) == 0
    whole = time.monotonic() - started
    draw = random.Random(0)
    killed = attempts = 0
    run = tmp_path / "run-0"
    while killed < kills or not (run / "model").exists():
        attempts += 1
        assert attempts < 20 * kills, f"only {killed} kills struck in {attempts} attempts"
        status = parent.attempt(run, draw.uniform(0.02, 0.6) * whole if killed < kills else None)
        assert status in (0, signal.SIGKILL)
        killed += status == signal.SIGKILL
        if status == 0:
            for name in ("records.jsonl", "model/model.safetensors"):
                assert (run / name).read_bytes() == (calm / name).read_bytes(), (run, name)
            if killed < kills:
                run = tmp_path / f"run-{attempts}"
    parent.close()
