"""Several tuned models as one: their predictions averaged or voted, with what that gains over each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handscroll.base.errors import ConfigError
from handscroll.metrics.scores import Comparison, Measured
from handscroll.metrics.table import METRICS, compare
from handscroll.tasks.predict import Predicted, load_tuned, predict
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import Task

OnMember = Callable[[str, int], None]  # which model, and how many examples are done


@dataclass(frozen=True)
class Ensemble:
    """What the models say together, and where the rows tell the truth, the score of each and the gain over the best.

    The best is chosen by these scores, so the gain over it is rather too small than too large.
    """

    task: Task
    joint: Predicted
    members: dict[str, Measured]
    gain: Comparison | None
    metric: str


def together(
    sources: Sequence[str | Path], data: TaskData, vote: bool = False, on_done: OnMember = lambda name, done: None
) -> Ensemble:
    """What models that were tuned for one task say together of the rows of `data.train`; each is read by itself.

    Raises:
        ConfigError: fewer than two models, one twice, or models of different tasks or labels.
    """
    names = [str(source) for source in sources]
    if len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"{len(names)} models, {len(set(names))} of them different: give two different ones or more")
    found: list[tuple[Task, Predicted]] = []
    for name in names:
        lm, task = load_tuned(name)
        if found and _answers(task) != _answers(found[0][0]):
            raise ConfigError(
                f"{names[0]} and {name} were tuned for different tasks or labels ({_answers(found[0][0])} and "
                f"{_answers(task)}): what they say cannot be joined"
            )
        found.append((task, predict(lm, task, data, lambda done, name=name: on_done(name, done))))
    task, first = found[0]
    examples = first.part.examples
    said = task.together([one.predictions for _, one in found], vote)
    joint = Predicted(first.part, said, task)
    metric = next((name for name in joint.scores if all(name in one.scores for _, one in found)), "")
    if not metric:
        return Ensemble(task, joint, {}, None, metric)
    members = {name: one.scores[metric] for name, (_, one) in zip(names, found, strict=True)}
    sign = 1 if METRICS[metric].higher else -1
    best = max(range(len(names)), key=lambda at: sign * members[names[at]].value)
    alone = [one.output for one in found[best][1].predictions]
    gain = compare([metric], [task.truth(one) for one in examples], [one.output for one in said], alone)[metric]
    return Ensemble(task, joint, members, gain, metric)


def _answers(task: Task) -> tuple[str, tuple[str, ...]]:
    """What two tasks must have in common for their predictions to be joined."""
    return task.name, getattr(task, "labels", ())
