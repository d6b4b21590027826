"""Examples in the prompt against tuning on them: the score by the number of shots, and where a LoRA overtakes.

    python -m bench.shots MODEL TASK TRAIN TEST --counts 0,1,4,16,64,256 --tests 100 --names label,text \
        --set task.words='["negative","positive"]'

The shots are the same for every question, and each larger number begins with the smaller one. They are read once for
each number, from their first token. For every number of shots a LoRA is tuned on the same examples for as many seconds
as the prompts took to be read and answered (in updates of at most 16 examples; never fewer than one).
"""

import argparse
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from handscroll.base.config import apply_override
from handscroll.base.errors import CapacityError, DataError
from handscroll.cache.reading.store import Store
from handscroll.data.table.read import read_table
from handscroll.data.table.table import Table
from handscroll.data.table.write import write_rows
from handscroll.lm import load
from handscroll.metrics.scores import Measured
from handscroll.tasks.examples import drawn
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Example, Task, task_from


def chosen(table: Table, count: int) -> Table:
    """`count` rows of a table in a random order; a larger number begins with the same ones."""
    order = np.random.default_rng(0).permutation(len(table.records))[:count]
    return Table.of([table.records[at].values for at in order])


def prompted(source: str, task: Task, tests: tuple[Example, ...], folder: Path) -> Any:
    """A function of the examples that are shown: the first score, and the seconds that it took. Each call has a store
    of its own, so that it reads all of its examples."""
    lm = load(source)

    def at(shown: tuple[Example, ...]) -> tuple[Measured, float]:
        store = Store(folder / f"{len(shown)}-shots") if shown else None
        begun = monotonic()
        found = task.prompted(lm, tests, Prompting(len(shown), shown, "first", store=store))
        seconds = monotonic() - begun
        return next(iter(task.score(tests, found).values())), seconds

    return at


def written(tables: dict[str, Table], folder: Path) -> dict[str, tuple[str]]:
    """The files of a tuning run."""
    files = {name: folder / f"{name}.jsonl" for name in tables}
    for name, path in files.items():
        write_rows(tables[name], path)
    return {name: (str(path),) for name, path in files.items()}


def tuned(values: dict[str, Any], tables: dict[str, Table], seconds: float, folder: Path) -> Measured:
    """The first score of a LoRA that is tuned on the rows of "train" for about `seconds`."""
    batch = min(16, len(tables["train"]))
    data = values["data"] | written(tables, folder) | {"held_out": 0, "names": ()}

    times: list[float] = []

    def run(steps: int, where: Path, most_scored: int) -> Any:
        how = {"way": "lora", "batch": batch, "steps": steps}
        made = TuningRecipe.parse(values | {"tuning": how, "data": data | {"most_scored": most_scored}}, "bench")
        return finetune(made, where, Options(on_record=lambda record: times.append(monotonic())))

    run(3, folder / "trial", 2)
    each = (times[2] - times[0]) / 2  # the first update also warms up
    made = run(max(1, round(seconds / each)), folder / "tuned", 0)
    print(f"  {made.progress.step} updates of {batch} examples", flush=True)
    return next(iter(made.scores["test"].values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "task", "train", "test"):
        parser.add_argument(name)
    parser.add_argument("--counts", default="0,1,4,16,64,256")
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--names", default="")
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def main() -> None:
    given = arguments()
    names = tuple(name for name in given.names.split(",") if name)
    counts = sorted(int(one) for one in given.counts.split(","))
    values: dict[str, Any] = {"task": {"name": given.task}, "model": given.model, "data": {}}
    for one in given.set:
        apply_override(values, one)
    task = task_from(values["task"])
    pool, tests = read_table(given.train, names), drawn(read_table(given.test, names), given.tests, 0)
    if max(counts) > len(pool):
        raise SystemExit(f"--counts {max(counts)}: {given.train} has {len(pool)} rows; ask for no more shots than that")
    task = task.settled(task.read(pool, {}).examples, load(given.model))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        at = prompted(given.model, task, task.read(tests, {}).examples, folder / "store")
        overtaken = None
        for count in counts:
            shown = chosen(pool, count) if count else None
            try:
                score, seconds = at(task.read(shown, {}).examples if shown else ())
            except CapacityError as error:
                print(f"{count:5} shots: {error}", flush=True)
                continue
            print(f"{count:5} shots: {score}  ({seconds:.0f} s)", flush=True)
            if shown is None:
                continue
            try:
                other = tuned(values, {"train": shown, "test": tests}, seconds, folder / str(count))
            except DataError as error:  # such as one example, which has one label
                print(f"{count:5} examples, no LoRA: {error}", flush=True)
                continue
            print(f"{count:5} examples, LoRA of {seconds:.0f} s: {other}", flush=True)
            overtaken = count if overtaken is None and other.value > score.value else overtaken
        print("a LoRA overtakes at " + (f"{overtaken:,} examples" if overtaken else "none of these numbers"))


if __name__ == "__main__":
    main()
