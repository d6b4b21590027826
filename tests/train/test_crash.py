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
from handscroll.train.recipe import Recipe, run_recipe
torch.set_num_threads(1)
recipe = Recipe.parse(read_recipe(Path(sys.argv[1]), sys.argv[4:]), "recipe")
folder = Path(sys.argv[2])
children = int(sys.argv[3])
import os
# One warm parent forks a child per attempt: importing torch once instead of twenty times.
for number in range(children):
    line = sys.stdin.readline()
    if not line:
        break
    child = os.fork()
    if child == 0:
        run_recipe(recipe, folder)
        os._exit(0)
    sys.stdout.write(f"{child}\\n"); sys.stdout.flush()
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"done {status}\\n"); sys.stdout.flush()
"""
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "llama.toml"
SETTINGS = ["threads=1", "loop.save_every=3"]


class Parent:
    """The forking parent process: `attempt` runs a child and kills it after a while, or lets it finish."""

    def __init__(self, folder: Path, children: int):
        command = [sys.executable, "-c", RUN, str(RECIPE), str(folder), str(children), *SETTINGS]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attempt(self, seconds: float | None) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
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


@pytest.mark.parametrize("kills", [20])
def test_twenty_kills_leave_the_same_records(tmp_path, kills):
    calm = Parent(tmp_path / "calm", 1)
    started = time.monotonic()
    assert calm.attempt(None) == 0
    whole = time.monotonic() - started
    calm.close()
    parent = Parent(tmp_path / "run", kills + 1)
    draw = random.Random(0)
    killed = finished = 0
    for _ in range(kills):
        # Short lives, so that twenty of them fall inside the run: it resumes from its last checkpoint each time.
        status = parent.attempt(draw.uniform(0.05, 0.6) * whole)
        killed += status == signal.SIGKILL
        finished += status == 0
    assert parent.attempt(None) == 0
    parent.close()
    assert killed >= kills // 2, f"only {killed} of {kills} attempts were killed in flight ({finished} had finished)"
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == (tmp_path / "calm" / "records.jsonl").read_bytes()
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "calm" / model).read_bytes()
