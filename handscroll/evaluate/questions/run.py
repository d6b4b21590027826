"""Long tasks from files: planned, answered, kept as they are answered, and scored.

A run folder holds `questions.json` (what was asked, of which model) and `answers.jsonl`, one answer a line. A run that
was ended goes on from there and asks nothing twice; the answers of another model or of other questions are refused.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.base.lock import RunLock
from handscroll.base.records import RecordWriter, read_object, read_records, requiring
from handscroll.base.runs import write_file
from handscroll.cache.reading.store import Store
from handscroll.evaluate.certificate import Certificate, require_whole, together
from handscroll.evaluate.questions.asking import Answered, Asker, Asking, Batch, Prompt, answers, batches, chosen
from handscroll.evaluate.questions.forms import Sheet
from handscroll.evaluate.questions.item import Item
from handscroll.evaluate.questions.judge import JUDGES, measures, scored
from handscroll.lm import LM
from handscroll.metrics.scores import measured

QUESTIONS, ANSWERS = "questions.json", "answers.jsonl"
KEPT = ("place", "answer", "finish", "tokens", "seconds")  # of an answer, for the record of a run that goes on
OnDone = Callable[[int, str], None]


@dataclass(frozen=True, eq=False)
class Part:
    """The prompts of one task, and those that are left out because they do not fit."""

    task: str
    sheet: Sheet
    prompts: tuple[Prompt, ...]
    left_out: tuple[Prompt, ...]
    groups: tuple[tuple[Batch, ...], ...]

    @property
    def certificate(self) -> Certificate:
        return together(prompt.certificate for prompt in self.prompts)

    @property
    def cut(self) -> int:
        """How many prompts lack a part of their document."""
        return sum(not prompt.certificate.whole for prompt in self.prompts)

    @property
    def to_read(self) -> int:
        return sum(batch.to_read for group in self.groups for batch in group)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is asked of one model, before anything is."""

    asker: Asker
    parts: tuple[Part, ...]

    @property
    def questions(self) -> int:
        return sum(len(part.prompts) for part in self.parts)

    @property
    def to_read(self) -> int:
        """Tokens that the model reads."""
        return sum(part.to_read for part in self.parts)

    @property
    def alone(self) -> int:
        """Tokens that it would read if every question were asked by itself."""
        return sum(len(prompt.ids) for part in self.parts for prompt in part.prompts)

    @property
    def to_write(self) -> int:
        """The most tokens that it writes."""
        return sum(prompt.most for part in self.parts for prompt in part.prompts)


def plan(lm: LM, sheets: Sequence[Sheet], asking: Asking, store: Store | None = None) -> Plan:
    """Choose, render and count everything that is to be asked; nothing is read by the model.

    `store` keeps what was read of documents; the plan counts it as if it were empty.

    Raises:
        CapacityError: a question does not fit, and neither leaving out nor cutting was asked for.
        ConfigError: fewer questions than examples; a model without chat template where one is asked for.
    """
    asker, parts = Asker(lm, asking, store), []
    for sheet in sheets:
        for task, some in _alike(sheet.items).items():
            items, shots = chosen(some, asking)
            prompts, left = asker.prompts(items, shots)
            groups = tuple(tuple(group) for group in batches(lm, prompts))
            parts.append(Part(task, sheet, tuple(prompts), tuple(left), groups))
    return Plan(asker, tuple(parts))


def _alike(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by what is scored together: one task, one judge, one language."""
    found: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        found.setdefault((item.task, item.judge, item.language), []).append(item)
    names = [task for task, _, _ in found]
    named = [key[0] if names.count(key[0]) == 1 else ", ".join(key) for key in found]
    return dict(zip(named, found.values(), strict=True))


def run(todo: Plan, folder: Path | None = None, on_done: OnDone = lambda done, note: None) -> dict[str, Any]:
    """Ask everything that is not answered yet, and give the record with the scores.

    With `folder` answers are kept there as they are made. `on_done(questions answered, note)` tells how far it is.

    Raises:
        CheckpointError: the folder holds the answers of another model, or to other questions, or is damaged.
        CapacityError: the memory does not suffice.
        DataError: scores of answers to cut documents, which were not asked for.
    """
    known: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        keep: list[RecordWriter] = []
        if folder is not None:
            stack.enter_context(RunLock(folder))
            known = _begun(todo, folder)
            keep.append(stack.enter_context(RecordWriter(folder / ANSWERS)))
        for part in todo.parts:
            for line in _asked(todo.asker, part, known, on_done):
                known[line["place"]] = line
                for file in keep:
                    file.append(line)
                on_done(len(known), "")
    return record(todo, known)


def _asked(asker: Asker, part: Part, known: dict[str, Any], on_done: OnDone) -> Iterator[dict[str, Any]]:
    """The lines of the answers of a part that are not known yet."""
    for group in part.groups:
        left = [batch for batch in group if any(_place(part, prompt) not in known for prompt in batch.prompts)]
        begun = time.monotonic()

        def reading_on(done: int, group: Sequence[Batch] = group) -> None:
            on_done(len(known), f"reading {done:,} of {group[0].shared:,} tokens")

        for some in answers(asker, left, reading_on):
            seconds, begun = time.monotonic() - begun, time.monotonic()
            lines = [_line(part, one, seconds / len(some)) for one in some]
            # A batch is always asked as a whole, so that a run that was ended gives the same answers.
            yield from (line for line in lines if line["place"] not in known)


def _place(part: Part, prompt: Prompt) -> str:
    return f"{part.task}: {prompt.item.place}"


def _line(part: Part, one: Answered, seconds: float) -> dict[str, Any]:
    """An answer as it is kept."""
    item, seen = one.prompt.item, one.prompt.certificate
    return {
        "place": _place(part, one.prompt),
        "question": item.question,
        "wanted": list(item.wanted),
        "answer": one.text,
        "finish": one.finish,
        "tokens": {"offered": seen.offered, "seen": seen.seen, "read": one.read, "written": one.written},
        "sha256": seen.sha256,
        "seconds": round(seconds, 3),
    }


def _begun(todo: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    """The answers that the folder holds already, by place; a new folder is marked with what is asked."""
    lm, asking = todo.asker.lm, todo.asker.asking
    identity = asdict(lm.identity(lm.context))
    digest = hashlib.sha256()
    for part in todo.parts:
        for prompt in part.prompts:
            digest.update(f"{_place(part, prompt)} {prompt.certificate.sha256} {prompt.most}\n".encode())
    about = {
        "model": lm.source,
        "identity": identity,
        "asking": asking.model_dump(),
        "form": todo.asker.form,
        "questions": todo.questions,
        "prompts_sha256": digest.hexdigest(),
    }
    file, lines = folder / QUESTIONS, folder / ANSWERS
    if not file.exists():
        if lines.exists():
            raise CheckpointError(f"{lines} is there, but {file.name} is not: choose a new folder for the answers")
        write_file(file, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
        return {}
    before = read_object(file)
    differ = [name for name in ("identity", "form", "prompts_sha256") if before.get(name) != about[name]]
    if differ:
        what = {"identity": "another model", "form": "another form", "prompts_sha256": "other questions or settings"}
        raise CheckpointError(
            f"{folder} holds answers of {' and '.join(what[name] for name in differ)} (model {before.get('model')}): "
            "choose a new folder, or ask the same again"
        )
    made = requiring(read_records(lines), lines, lambda line: KEPT) if lines.exists() else ()
    return {line["place"]: line for line in made}


def record(todo: Plan, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of a run: scores by task and by length, tokens, certificates, and the plan beside what happened.

    Raises:
        DataError: a document was not read to its end, and this was not asked for.
    """
    lm, asking = todo.asker.lm, todo.asker.asking
    tasks = [_task(part, known, asking) for part in todo.parts]
    spent = [line for part in todo.parts for line in _lines(part, known)]
    return {
        "kind": "tasks",
        "model": lm.source,
        "label": Path(lm.source).name,
        "trained": lm.trained,
        "context": lm.context,
        "form": todo.asker.form,
        "shots": asking.shots,
        "seed": asking.seed,
        "too_long": asking.too_long,
        "tasks": tasks,
        "plan": {"read": todo.to_read, "write_at_most": todo.to_write, "alone": todo.alone},
        "actual": {
            "read": sum(line["tokens"]["read"] for line in spent),
            "written": sum(line["tokens"]["written"] for line in spent),
            "seconds": round(sum(line["seconds"] for line in spent), 1),
        },
        "certificate": together(part.certificate for part in todo.parts).record(),
    }


def _lines(part: Part, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [known[_place(part, prompt)] for prompt in part.prompts]


def _task(part: Part, known: dict[str, dict[str, Any]], asking: Asking) -> dict[str, Any]:
    lines, items = _lines(part, known), [prompt.item for prompt in part.prompts]
    first = (*part.prompts, *part.left_out)[0].item
    if asking.too_long != "middle":
        require_whole(part.certificate, part.task)
    texts = [line["answer"] for line in lines]
    scores = {name: asdict(one) for name, one in measures(items, texts).items()} if items else {}
    return {
        "task": part.task,
        "file": part.sheet.file,
        "form": part.sheet.form,
        "columns": part.sheet.says,
        "asks": first.asks,
        "judge": first.judge,
        "language": first.language,
        "questions": len(items),
        "documents": len({item.document for item in items if item.document}),
        "scores": scores,
        "by_length": _by_length(part, texts),
        "left_out": [{"place": one.item.place, "tokens": one.offered} for one in part.left_out],
        "cut": part.cut,
        "ended_at_limit": sum(line["finish"] == "length" for line in lines),
        "empty": sum(not text.strip() for text in texts),
        "longest": max((prompt.offered for prompt in part.prompts), default=0),
        "certificate": part.certificate.record(),
    }


def _by_length(part: Part, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The first metric by the length of the prompt: a row for each power of two up to which some prompts reach."""
    rows: dict[int, list[int]] = {}
    for number, prompt in enumerate(part.prompts):
        rows.setdefault(1 << (prompt.offered - 1).bit_length(), []).append(number)
    found = []
    for upper, numbers in sorted(rows.items()):
        items, some = [part.prompts[n].item for n in numbers], [texts[n] for n in numbers]
        value = measured(scored(JUDGES[items[0].judge].metrics[0], items, some))
        found.append({"up_to": upper, **asdict(value)})
    return found
