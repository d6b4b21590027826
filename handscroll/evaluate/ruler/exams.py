"""Samples as a model reads them: a text (`head`) and the questions about it, each of which follows the text directly.

In the layout `published` every sample is a text of its own, as RULER has it. In the layout `shared` the tasks of one
sample number share three texts: prose and documents; needles among needles; noise, word list and code. What each task
needs lies in the same text, so one reading serves the questions of many tasks. docs/ruler.md says what that costs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.evaluate.ruler import counts, texts
from handscroll.evaluate.ruler.ask import Ask, Planted, Unfit
from handscroll.evaluate.ruler.bench import Bench, Piece, size
from handscroll.evaluate.ruler.chains import tracking
from handscroll.evaluate.ruler.frame import Frame
from handscroll.evaluate.ruler.tasks import RULER, TASKS, named
from handscroll.evaluate.ruler.words import Draw

SHORTEST, LONGEST = 256, 1 << 20
FULL_ROOM = 2048  # from this length on an answer has all of the room that is published; below, what it needs and a bit
SHOTS = 2  # solved examples of the template few-shot
SOLVED = ("vt", "cwe")  # tasks that have one solved example in every template, as published
ROUND = 1500  # tokens of a shared text of lists after which its parts come again
DENSE = 0.5  # largest share of a shared text that what is asked for may take


TRIES = 5  # a text is made again so often until it fits together with its questions
Make = Callable[[int], "tuple[list[Piece], list[Question]]"]


class Setting(Config):
    """What is measured. `samples` for each task and length; the `seed` decides all that is drawn."""

    lengths: tuple[int, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = RULER
    samples: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    layout: Literal["shared", "published"] = "shared"
    template: Literal["base", "chat", "few-shot"] = "base"

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return named(value)

    @field_validator("lengths")
    @classmethod
    def _reasonable(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [one for one in value if not SHORTEST <= one <= LONGEST]:
            raise ConfigError(f"length {wrong[0]}: samples have {SHORTEST} to {LONGEST:,} tokens")
        return tuple(sorted(set(value)))


@dataclass(frozen=True)
class Question:
    """A question after its text: the token ids that follow, and the tokens that are free for the answer."""

    ask: Ask
    number: int
    tail: Piece
    room: int


@dataclass(frozen=True)
class Exam:
    """A text and the questions about it. `unfit` are tasks that do not fit, with the tokens that are missing."""

    name: str
    length: int
    number: int
    head: Piece
    questions: tuple[Question, ...]
    unfit: tuple[tuple[str, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are read if the text is read once, without those of the answers."""
        return len(self.head.ids) + sum(len(one.tail.ids) for one in self.questions)


def exams(bench: Bench, setting: Setting, frame: Frame) -> Iterator[Exam]:
    """All exams in order; each depends on the seed and its own name only."""
    for length in setting.lengths:
        for number in range(setting.samples):
            yield from exams_of(bench, setting, frame, length, number)


def exams_of(bench: Bench, setting: Setting, frame: Frame, length: int, number: int) -> Iterator[Exam]:
    """The exams of one length and sample number."""
    maker = Maker(bench, setting, frame, length, number)
    if setting.layout == "published":
        yield from (maker.alone(task) for task in setting.tasks)
        return
    for group in ("prose", "needles", "lists"):
        tasks = [task for task in setting.tasks if TASKS[task].group == group]
        if tasks:
            yield from maker.prose(tasks) if group == "prose" else maker.together(group, tasks)


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes the exams of one length and sample number."""

    bench: Bench
    setting: Setting
    frame: Frame
    length: int
    number: int

    def alone(self, task: str) -> Exam:
        """A sample by itself: introduction, text, question."""
        name = f"{task}/{self.length}/{self.number}"
        try:
            before = self._solved(task, "published")
            if TASKS[task].counting is None:
                draw = self._draw(name)
                plant = self._plant(draw, task)
                start, question = self._start(before, plant.ask), self._question(plant.ask)
                pieces = _woven(self.bench, draw, [plant], self._left(start, [question]))
            else:
                start = self._start(before, self._counted(name, task, self.length)[1])
                pieces, (question,) = self._fitted(start, lambda budget: self._asked(name, task, budget))
        except Unfit as error:
            return self._none(name, [(task, self._missing(task, error.missing))])
        return self._exam(name, [*start, *pieces], [question])

    def _missing(self, task: str, missing: int) -> int:
        """The tokens that a length lacks which holds the task: a longer text, with other words, may need more again."""
        missing = max(1, missing)
        longer = replace(self, length=self.length + missing).alone(task)
        return missing + sum(more for _, more in longer.unfit)

    def prose(self, tasks: Sequence[str]) -> Iterator[Exam]:
        """Exams of prose and documents: as few as hold what the tasks need without crowding."""
        draw = self._draw("shared/prose")
        start = self._start([], None, "prose")
        parts: list[list[Planted]] = []
        for task in tasks:
            plant = self._plant(draw, task)
            if not parts or not self._roomy(start, [*parts[-1], plant]):
                parts.append([])
            parts[-1].append(plant)
        for at, part in enumerate(parts):
            name = f"shared/prose{at}/{self.length}/{self.number}"
            try:
                questions = [self._question(one.ask, shared=True) for one in part]
                pieces = texts.mixed(self.bench, draw, part, self._left(start, questions))
            except Unfit:
                yield from self._apart([one.ask.task for one in part])
                continue
            yield self._exam(name, [*start, *pieces], questions)

    def together(self, group: str, tasks: Sequence[str]) -> Iterator[Exam]:
        """One exam of needles or lists, or several where it would be too small for all tasks."""
        name, start = f"shared/{group}/{self.length}/{self.number}", self._start([], None, group)
        make = self._lists if group == "lists" else self._needles
        try:
            pieces, questions = self._fitted(start, lambda budget: make(tasks, budget))
        except Unfit:
            yield from self._apart(tasks)
            return
        yield self._exam(name, [*start, *pieces], questions)

    def _apart(self, tasks: Sequence[str]) -> Iterator[Exam]:
        """Tasks that do not fit into one text, each in a text of its own."""
        yield from (self.alone(task) for task in tasks)

    def _needles(self, tasks: Sequence[str], budget: int) -> tuple[list[Piece], list[Question]]:
        draw = self._draw("shared/needles")
        part = [self._plant(draw, task) for task in tasks]
        questions = [self._question(one.ask, shared=True) for one in part]
        return texts.needles(self.bench, draw, part, budget), questions

    def _lists(self, tasks: Sequence[str], budget: int) -> tuple[list[Piece], list[Question]]:
        """Noise, a list of words and a coded text, cut into rounds, so that each reaches over the whole text."""
        draw, spell = self._draw("shared/lists"), self.bench.speller
        kinds = list(dict.fromkeys(TASKS[task].text for task in tasks))
        rounds = max(1, min(8, budget // ROUND))
        heads = {kind: [spell(self.bench.say.parts[kind])] for kind in kinds}
        each = (budget - rounds * sum(size(head) + texts.EDGE for head in heads.values())) // len(kinds)
        parts: dict[str, list[Sequence[Piece]]] = {}
        asks: dict[str, Ask] = {}
        noisy = [self._plant(draw, task) for task in tasks if TASKS[task].plant]
        if noisy:
            asks |= {one.ask.task: one.ask for one in noisy}
            parts["noise"] = _cut(texts.noise(self.bench, draw, noisy, each), rounds, 1)
        for task in (task for task in tasks if TASKS[task].counting):
            pieces, asks[task] = TASKS[task].counting(self.bench, draw, task, each, self.length)  # type: ignore[misc]
            parts[TASKS[task].text] = _cut(pieces, rounds, 2 if task == "cwe" else 1)
        draw.random.shuffle(kinds)
        found: list[Piece] = []
        for at in range(rounds):
            for kind in kinds:
                run = list(parts[kind][at])
                if run:
                    run[0] = spell(run[0].text.lstrip())
                    found += [*heads[kind], *texts.ended(self.bench, run, "\n" if kind == "noise" else "\n\n")]
        return found, [self._question(asks[task], shared=True) for task in tasks]

    def _fitted(self, start: Sequence[Piece], make: Make) -> tuple[list[Piece], list[Question]]:
        """A text whose questions are known only once it is made: made again until all of it fits."""
        budget = self._left(start, make(self.length)[1])
        for _ in range(TRIES):
            pieces, questions = make(budget)
            over = size(pieces) - self._left(start, questions)
            if over <= 0:
                return pieces, questions
            budget -= over
        raise Unfit(over)

    def _asked(self, name: str, task: str, budget: int) -> tuple[list[Piece], list[Question]]:
        pieces, ask = self._counted(name, task, budget)
        return pieces, [self._question(ask)]

    def _counted(self, name: str, task: str, budget: int) -> tuple[list[Piece], Ask]:
        make = TASKS[task].counting
        assert make is not None
        pieces, ask = make(self.bench, self._draw(name), task, budget, self.length)
        return texts.ended(self.bench, pieces, "\n"), ask

    def _plant(self, draw: Draw, task: str) -> Planted:
        make = TASKS[task].plant
        assert make is not None
        return make(self.bench, draw, task)

    def _draw(self, name: str) -> Draw:
        return self.bench.draw(self.setting.seed, name, self.length, self.number)

    def _start(self, before: list[Piece], ask: Ask | None, group: str = "") -> list[Piece]:
        """What stands before the text: the template's beginning, examples, what it is about."""
        say = self.bench.say
        about = say.intro[group] if ask is None else ask.about.format(where=say.below) + "\n"
        return [self.frame.before, *before, self.bench.speller(about)]

    def _question(self, ask: Ask, shared: bool = False) -> Question:
        """A question as it follows the text; over a shared text its task and examples come first."""
        spell, say = self.bench.speller, self.bench.say
        about = f"{ask.about.format(where=say.above)}\n" if shared else ""
        example = self._solved(ask.task, "shared") if shared else []
        asked = spell.once(f"{about}{ask.question}" if self.frame.chat else f"{about}{ask.question}\n")
        pieces = [*example, asked, self.frame.after, *([spell.once(ask.lead)] if ask.lead else [])]
        need = len(spell.once(ask.said).ids)
        room = max(ask.room, need + 8)
        return Question(ask, self.number, joined(pieces), room if self.length >= FULL_ROOM else min(room, need + 16))

    def _solved(self, task: str, where: str) -> list[Piece]:
        """The solved examples that stand before a question; those of vt and cwe only where they leave enough room."""
        count = SHOTS if self.setting.template == "few-shot" else int(task in SOLVED)
        long = self.length >= counts.FROM and where == "published" and self.setting.template != "few-shot"
        pieces: list[Piece] = []
        for at in range(count):
            draw = self._draw(f"example/{where}/{task}/{at}")
            pieces += solved(self.bench, draw, task, long)
        if size(pieces) <= self.length // 2:
            return pieces
        if self.setting.template == "few-shot":
            raise Unfit(2 * size(pieces) - self.length)
        return []

    def _left(self, start: Sequence[Piece], questions: Sequence[Question]) -> int:
        left = self.length - size(start) - max(len(one.tail.ids) + one.room for one in questions)
        if left <= 0:
            raise Unfit(1 - left)
        return left

    def _roomy(self, start: Sequence[Piece], part: Sequence[Planted]) -> bool:
        """Whether what several tasks need leaves enough room for the text around it."""
        try:
            left = self._left(start, [self._question(one.ask, shared=True) for one in part])
        except Unfit:
            return False
        spell = self.bench.speller
        needed = sum(size([spell.once(text) for text in (*one.sentences, *one.documents)]) for one in part)
        return needed <= DENSE * left

    def _exam(self, name: str, pieces: Sequence[Piece], questions: Sequence[Question]) -> Exam:
        head = joined(pieces)
        for one in questions:
            total = len(head.ids) + len(one.tail.ids) + one.room
            assert total <= self.length, f"{name}: {one.ask.task} has {total} tokens, more than {self.length}"
        return Exam(name, self.length, self.number, head, tuple(questions))

    def _none(self, name: str, unfit: Sequence[tuple[str, int]]) -> Exam:
        return Exam(name, self.length, self.number, Piece("", []), (), tuple(unfit))


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces as one."""
    ids: list[int] = []
    for piece in pieces:
        ids += piece.ids
    return Piece("".join(piece.text for piece in pieces), ids)


def solved(bench: Bench, draw: Draw, task: str, long: bool = False) -> list[Piece]:
    """A short sample with its answer."""
    pieces, ask = _small(bench, draw, task, long)
    about = bench.speller(ask.about.format(where=bench.say.below) + "\n")
    end = bench.speller.once(f"{ask.question}\n{ask.lead}{bench.say.blank if ask.lead else ''}{ask.said}\n\n")
    return [about, *pieces, end]


def _small(bench: Bench, draw: Draw, task: str, long: bool) -> tuple[list[Piece], Ask]:
    if task == "cwe":
        pieces, ask = counts.example(bench, draw, task, long)
        return texts.ended(bench, pieces, "\n"), ask
    make, counting = TASKS[task].plant, TASKS[task].counting
    for budget in (100, 200, 400, 800, 1600, 3200):
        try:
            if counting is not None:
                pieces, ask = counting(bench, draw, task, budget, SHORTEST)
                return texts.ended(bench, pieces, "\n"), ask
            assert make is not None
            plant = tracking(bench, draw, task, example=True) if task == "vt" else make(bench, draw, task)
            return _woven(bench, draw, [plant], budget), plant.ask
        except Unfit:
            continue
    raise Unfit(budget)


def _woven(bench: Bench, draw: Draw, planted: Sequence[Planted], budget: int) -> list[Piece]:
    """The text around what is planted, all of one kind."""
    weave = {"noise": texts.noise, "prose": texts.prose, "needles": texts.needles, "documents": texts.documents}
    return weave[TASKS[planted[0].ask.task].text](bench, draw, planted, budget)


def _cut(pieces: Sequence[Piece], parts: int, by: int) -> list[Sequence[Piece]]:
    """Pieces in parts of nearly equal number, each a multiple of `by` pieces."""
    edges = [round(len(pieces) / by * at / parts) * by for at in range(parts + 1)]
    return [pieces[first:last] for first, last in pairwise(edges)]
