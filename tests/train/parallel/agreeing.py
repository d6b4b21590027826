"""Run by torchrun: two ranks that see different machines and different losses. What each decides goes to a file."""

import json
import sys
from pathlib import Path

import torch

from handscroll.base.config import read_recipe
from handscroll.base.errors import CapacityError
from handscroll.plan.machine import Machine
from handscroll.plan.workloads import recipe_workloads
from handscroll.train import planned
from handscroll.train.loop import _validated
from handscroll.train.optim import Optimizer
from handscroll.train.parallel.world import Parallel, join_world
from handscroll.train.recipe import Recipe
from handscroll.train.run import Loop, Run
from handscroll.train.schedule import Schedule
from handscroll.train.step import Memory
from tests.train.conftest import RECIPE
from tests.train.parallel.ranks import built

GB = 10**9


def plan(world, folder, *sizes):
    """The strategy of a run on ranks whose machines have memory of these sizes, or its refusal."""
    mine = Machine(memory=sizes[world.rank] * world.size, disk=100 * GB)
    planned.this_machine = lambda *given: mine
    one = recipe_workloads(Recipe.parse(read_recipe(RECIPE, []), "recipe"))[-1].changed(length=30_000)
    try:
        return planned.planned(Memory(), [one], folder, world).memory.strategy
    except CapacityError as error:
        return str(error)


def validation(world, folder):
    """The best loss and step after each of four validations, whose losses are not the same on both ranks."""
    loop = Loop(steps=9, evaluate_every=1, patience=2)
    run = Run(folder, built("llama", torch.float32), Optimizer(name="adamw"), Schedule(), loop, world=world)
    found, progress = [], run.progress
    for losses in ((1.0, 1.0), (0.9, 1.0), (0.95, 0.9), (0.95, 0.8)):
        progress.step += 1
        _validated(run, lambda model, pulse, mine=losses[world.rank]: mine, lambda done: None)
        found.append([progress.best_loss, progress.best_step, progress.bad])
    return [*found[1:], bool(progress.stopped)]


def main():
    torch.set_num_threads(1)
    folder, world = Path(sys.argv[1]), join_world(Parallel())
    found = {
        "plan": plan(world, folder / "fits", 100 * GB, 6 * GB // 10),
        "refusal": plan(world, folder / "refused", 100 * GB, GB // 10),
        "validation": validation(world, folder / "validated"),
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))
    world.close()


if __name__ == "__main__":
    main()
