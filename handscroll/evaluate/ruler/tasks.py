"""The tasks: RULER's thirteen, and the questions that plain needles do not ask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from handscroll.base.errors import ConfigError, nearest
from handscroll.evaluate.ruler.ask import Ask, Planted
from handscroll.evaluate.ruler.bench import Bench, Piece
from handscroll.evaluate.ruler.chains import scattered, tracking
from handscroll.evaluate.ruler.counts import coded, common
from handscroll.evaluate.ruler.documents import again, answering
from handscroll.evaluate.ruler.needles import needles, unlike
from handscroll.evaluate.ruler.words import Draw

Text = Literal["noise", "prose", "needles", "documents", "common", "coded"]
Counting = Callable[[Bench, Draw, str, int, int], tuple[list[Piece], Ask]]


@dataclass(frozen=True)
class Task:
    """One task: the `text` around what it asks for, and how a sample is made (`plant`, or `counting` words)."""

    name: str
    text: Text
    about: str
    plant: Callable[[Bench, Draw, str], Planted] | None = None
    counting: Counting | None = None

    @property
    def group(self) -> str:
        """The kind of shared text that the task belongs to."""
        return {"needles": "needles", "prose": "prose", "documents": "prose"}.get(self.text, "lists")


_ALL = (
    Task("niah_single_1", "noise", "one number among repeated noise", needles),
    Task("niah_single_2", "prose", "one number in prose", needles),
    Task("niah_single_3", "prose", "one identifier in prose", needles),
    Task("niah_multikey_1", "prose", "one of four keys in prose", needles),
    Task("niah_multikey_2", "needles", "one number among numbers", needles),
    Task("niah_multikey_3", "needles", "one identifier among identifiers", needles),
    Task("niah_multivalue", "prose", "all four values of a key", needles),
    Task("niah_multiquery", "prose", "the values of four keys", needles),
    Task("vt", "noise", "all variables of a chain", tracking),
    Task("cwe", "common", "the ten most common words of a list", counting=common),
    Task("fwe", "coded", "the three most frequent coded words", counting=coded),
    Task("qa_1", "documents", "a question about one of many documents", answering),
    Task("qa_2", "documents", "a question over two of many documents", answering),
    Task("unlike", "prose", "a needle without a word of its question (NoLiMa's form)", unlike),
    Task("scattered_1", "prose", "where somebody is: the last of several facts (BABILong's form)", scattered),
    Task("scattered_2", "prose", "where something is: two facts (BABILong's form)", scattered),
    Task("scattered_3", "prose", "where something was before: three facts (BABILong's form)", scattered),
    Task("alike", "documents", "one of several pieces of the same title, again (MRCR's form)", again),
)
TASKS = {task.name: task for task in _ALL}
RULER = tuple(TASKS)[:13]
BEYOND = tuple(TASKS)[13:]


def named(names: Sequence[str]) -> tuple[str, ...]:
    """The names of tasks, in the table's order; `ruler`, `beyond` and `all` stand for several.

    Raises:
        ConfigError: an unknown name, or none.
    """
    several = {"ruler": RULER, "beyond": BEYOND, "all": tuple(TASKS)}
    chosen: set[str] = set()
    for name in names:
        if name not in TASKS and name not in several:
            raise ConfigError(f"unknown task '{name}': {nearest(name, [*several, *TASKS])}")
        chosen.update(several.get(name, (name,)))
    if not chosen:
        raise ConfigError("no task: name some, or 'ruler' for all thirteen")
    return tuple(name for name in TASKS if name in chosen)
