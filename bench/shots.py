"""Examples in the prompt against tuning on them: the score by the number of shots, and where a LoRA overtakes.

    python -m bench.shots MODEL TASK TRAIN TEST --counts 0,1,4,16,64,256 --tests 100 --names label,text \
        --set task.words='["negative","positive"]'

The shots are the same for every question and each larger number begins with the smaller one, so all are read once, into
a saved reading. For every number of shots a LoRA is tuned on the same examples for as many seconds as the prompts took
to be read and answered (in updates of at most 16 examples; never fewer than one).
"""

import argparse
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from handscroll.base.config import apply_override
from handscroll.cache.reading.store import Store
from handscroll.data.table.read import read_table
from handscroll.lm import load
from handscroll.metrics.scores import Measured
from handscroll.tasks.examples import drawn
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Example, Task, task_from


def prompted(source: str, task: Task, pool: tuple[Example, ...], tests: tuple[Example, ...], folder: Path) -> Any:
    """A function of the number of shots: the first score, the seconds, and the tokens that were read for it."""
    lm = load(source)

    def at(count: int) -> tuple[Measured, float]:
        begun = monotonic()
        found = task.prompted(lm, tests, Prompting(count, pool, "random", store=Store(folder)))
        seconds = monotonic() - begun
        return next(iter(task.score(tests, found).values())), seconds

    return at


def tuned(values: dict[str, Any], files: tuple[str, str], count: int, seconds: float, folder: Path) -> Measured:
    """The first score of a LoRA that is tuned on `count` examples for about `seconds`."""
    batch = min(16, count)
    data = values["data"] | {"train": [files[0]], "test": [files[1]], "held_out": 0, "most": count}

    times: list[float] = []

    def run(steps: int, where: Path, most_scored: int) -> Any:
        how = {"way": "lora", "batch": batch, "steps": steps}
        made = TuningRecipe.parse(values | {"tuning": how, "data": data | {"most_scored": most_scored}}, "bench")
        return finetune(made, where, Options(on_record=lambda record: times.append(monotonic())))

    run(3, folder / f"trial-{count}", 2)
    each = (times[2] - times[0]) / 2  # the first update also warms up
    made = run(max(1, round(seconds / each)), folder / f"tuned-{count}", values["data"]["most_scored"])
    print(f"  {made.progress.step} updates of {batch} examples", flush=True)
    return next(iter(made.scores["test"].values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "task", "train", "test"):
        parser.add_argument(name)
    parser.add_argument("--counts", default="0,1,4,16,64,256")
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--names", default="")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    names = tuple(name for name in given.names.split(",") if name)
    values: dict[str, Any] = {"task": {"name": given.task}, "model": given.model, "data": {}}
    for one in given.set:
        apply_override(values, one)
    values["data"] |= {"names": names, "most_scored": given.tests}
    task = task_from(values["task"])
    tables = [read_table(path, names) for path in (given.train, given.test)]
    pool, tests = task.read(tables[0], {}).examples, task.read(drawn(tables[1], given.tests, 0), {}).examples
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        at = prompted(given.model, task.settled(pool, load(given.model)), pool, tests, folder / "store")
        overtaken = None
        for count in map(int, given.counts.split(",")):
            score, seconds = at(count)
            print(f"{count:5} shots: {score}  ({seconds:.0f} s)", flush=True)
            if count:
                other = tuned(values, (given.train, given.test), count, seconds, folder)
                print(f"{count:5} examples, LoRA of {seconds:.0f} s: {other}", flush=True)
                overtaken = count if overtaken is None and other.value > score.value else overtaken
        print("a LoRA overtakes at " + (f"{overtaken:,} examples" if overtaken else "none of these numbers"))


if __name__ == "__main__":
    main()
