"""A run of RULER: what it will cost, its samples one by one, each kept as it is done, and what they show."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError
from handscroll.base.lock import RunLock
from handscroll.base.records import RecordWriter, read_object, read_records, requiring
from handscroll.base.runs import make_folder, write_file
from handscroll.base.workload import Workload
from handscroll.cache.table import DEFAULT
from handscroll.evaluate.ruler.answering import Answer, answers
from handscroll.evaluate.ruler.bench import Bench
from handscroll.evaluate.ruler.exams import Exam, Setting, exams_of
from handscroll.evaluate.ruler.frame import Frame, chat, plain
from handscroll.evaluate.ruler.summary import summary
from handscroll.generate.budget import Demand, weights_of
from handscroll.generate.chat import Speaker
from handscroll.lm import LM
from handscroll.models.fingerprint import fingerprint
from handscroll.plan import duration
from handscroll.plan.calibration import Calibration

SAMPLES, ABOUT = "samples.jsonl", "ruler.json"
CHOSEN = ("lengths", "samples")  # settings that choose samples and change none: a run may go on with others
SHOWN = 60  # characters of a setting in a message
KEY = ("task", "length", "number")  # what names a sample
Key = tuple[str, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """What is read and written at one length: texts, questions, tokens, seconds; tasks that do not fit."""

    length: int
    texts: int
    questions: int
    read: int
    written: int
    seconds: float
    unfit: tuple[tuple[str, int], ...]


def framed(lm: LM, setting: Setting) -> tuple[Frame, frozenset[int]]:
    """What the template puts around a text, and the tokens that end an answer.

    Raises:
        ConfigError: the template chat without a chat template.
    """
    if setting.template != "chat":
        return plain(lm.tokenizer), frozenset(lm.model.config.eos)
    speaker = Speaker(lm.tokenizer, where=lm.source)
    return chat(speaker), speaker.ends(lm.model)


def plan(
    lm: LM, bench: Bench, setting: Setting, calibration: Calibration | None = None, out: Path | None = None
) -> list[Cost]:
    """What each length costs, judged by its first sample; answers count with all the room they have. What `out` holds
    costs nothing.

    Raises:
        ConfigError, CheckpointError: as in `measure`.
    """
    frame, _ = framed(lm, setting)
    known = {} if out is None else _known(out, identity(lm, bench, setting), _asked(setting))
    calibration = calibration or Calibration()
    found = []
    for length in setting.lengths:
        made = list(exams_of(bench, setting, frame, length, 0))
        left = [
            exam
            for number in range(setting.samples)
            for exam in made
            if any((one.ask.task, length, number) not in known for one in exam.questions)
        ]
        seconds = {id(exam): _seconds(lm, exam, calibration) for exam in {id(exam): exam for exam in left}.values()}
        rooms = [one.room for exam in left for one in exam.questions]
        unfit = tuple(pair for exam in made for pair in exam.unfit)
        read, took = sum(exam.tokens for exam in left), sum(seconds[id(exam)] for exam in left)
        found.append(Cost(length, len(left), len(rooms), read, sum(rooms), took, unfit))
    return found


def _seconds(lm: LM, exam: Exam, calibration: Calibration) -> float:
    """The seconds of one text and its questions, whose answers are written together."""
    how = weights_of(lm.model)

    def asked(tokens: int, new: int, past: int = 0) -> Workload:
        return Demand(range(tokens), new, past=past).workload(DEFAULT, lm.model).changed(**how)

    head, most = len(exam.head.ids), max(one.room for one in exam.questions)
    found = duration.reading(asked(head, 1), calibration)
    for one in exam.questions:
        found += duration.reading(asked(head + len(one.tail.ids), 1, head), calibration)
    return found + duration.writing(asked(head, most), calibration)


def measure(
    lm: LM, bench: Bench, setting: Setting, out: Path | None = None, label: str = "", progress: Progress | None = None
) -> dict[str, Any]:
    """Run all samples that `out` does not hold yet, and return the record of all of them.

    With `out` every sample is on disk as soon as it is scored; a killed run goes on there and repeats none, and so
    does one of other lengths or more samples. Equal settings, texts and weights give equal records. `progress(done,
    all)` is called after every sample.

    Raises:
        ConfigError: `out` holds a run of other settings, texts or weights, or the model cannot continue a text.
        CheckpointError: a file in `out` is damaged.
        CapacityError: a length exceeds a learned position table, or the memory.
    """
    lm.model.spec.require("RULER", one_text=True, forward=True, head=True)
    if (limit := lm.model.spec.limit) is not None and max(setting.lengths) > limit:
        raise CapacityError(
            f"length {max(setting.lengths)} exceeds the learned position table of {limit} tokens: extend it first"
        )
    about = identity(lm, bench, setting)
    rows: dict[Key, dict[str, Any]] = {}
    total = len(setting.tasks) * len(setting.lengths) * setting.samples
    with ExitStack() as stack:
        keep = _kept(stack, out, about, rows, _asked(setting)) if out is not None else lambda row: None
        for row in _rest(lm, bench, setting, rows):
            keep(row)
            rows[_key(row)] = row
            if progress is not None:
                progress(len(rows), total)
    return summary(lm, setting, about, [rows[key] for key in _asked(setting)], label)


def _asked(setting: Setting) -> list[Key]:
    """The samples that a setting asks for, in the order of its lengths and tasks."""
    return [
        (task, length, number)
        for length in setting.lengths
        for task in setting.tasks
        for number in range(setting.samples)
    ]


def identity(lm: LM, bench: Bench, setting: Setting) -> dict[str, Any]:
    """All that decides the samples and the answers."""
    return {
        "handscroll": version("handscroll"),
        "model": lm.source,
        "weights": fingerprint(lm.model),
        "positions": [one.model_dump(mode="json") for one in lm.model.spec.positions],
        "tokenizer": lm.tokenizer.fingerprint,
        "language": bench.language,
        "texts": bench.record(),
        "setting": setting.model_dump(mode="json"),
    }


def _lasting(about: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """All that decides the samples, without the settings that choose among them.

    Raises:
        CheckpointError: there are no settings.
    """
    if not isinstance(about.get("setting"), Mapping):
        raise CheckpointError(f"{file} has no settings: restore the file, or give another folder")
    return {**about, "setting": {name: value for name, value in about["setting"].items() if name not in CHOSEN}}


def _deciding(about: Mapping[str, Any]) -> dict[str, str]:
    """What decides a sample, by name, as JSON."""
    setting = about["setting"]
    found = {name: value for name, value in about.items() if name != "setting"} | setting
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}


def _rest(lm: LM, bench: Bench, setting: Setting, rows: dict[Key, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of the samples that are not among `rows`."""
    frame, ends = framed(lm, setting)
    for length in setting.lengths:
        for number in range(setting.samples):
            if all((task, length, number) in rows for task in setting.tasks):
                continue
            for exam in exams_of(bench, setting, frame, length, number):
                for task, missing in exam.unfit:
                    if (task, length, number) not in rows:
                        yield {"task": task, "length": length, "number": number, "missing": missing}
                known = {one.ask.task for one in exam.questions if (one.ask.task, length, number) in rows}
                if len(known) == len(exam.questions):
                    continue
                # All of them again, since a batch of other rows could round otherwise; what is known stays.
                yield from (
                    _row(exam, answer) for answer in answers(lm, exam, ends) if answer.question.ask.task not in known
                )


def _row(exam: Exam, answer: Answer) -> dict[str, Any]:
    one = answer.question
    prompt = exam.head.text + one.tail.text
    return {
        "task": one.ask.task,
        "length": exam.length,
        "number": one.number,
        "score": answer.score,
        "answer": answer.text,
        "tokens": answer.tokens,
        "room": one.room,
        "finish": answer.finish,
        "references": list(one.ask.references),
        "text": exam.name,
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        "certificate": answer.certificate.record(),
        "details": dict(one.ask.details),
    }


def _key(row: dict[str, Any]) -> Key:
    task, length, number = (row[name] for name in KEY)
    return task, length, number


def _needed(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row must have for the summary."""
    return (*KEY, "missing") if "missing" in row else (*KEY, "score", "finish", "certificate")


def _kept(
    stack: ExitStack, out: Path, about: dict[str, Any], rows: dict[Key, dict[str, Any]], asked: Sequence[Key]
) -> Callable[[dict[str, Any]], None]:
    """Fill `rows` with those that are asked for and were made in `out` before; return what keeps a new one there."""
    make_folder(out)
    stack.enter_context(RunLock(out))
    rows.update(_known(out, about, asked))
    if not (file := out / ABOUT).exists():
        write_file(file, (json.dumps(_lasting(about, file), indent=2, ensure_ascii=False) + "\n").encode())
    writer = stack.enter_context(RecordWriter(out / SAMPLES))

    def keep(row: dict[str, Any]) -> None:
        writer.append(row)
        writer.sync()

    return keep


def _known(out: Path, about: Mapping[str, Any], asked: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """The rows that are asked for and were made in `out` before."""
    file, samples = out / ABOUT, out / SAMPLES
    if not file.exists():
        return {}
    before, now = (_deciding(_lasting(one, file)) for one in (read_object(file), about))
    if differ := [name for name in now if before.get(name) != now[name]]:
        there = "; ".join(f"{name} {str(before.get(name))[:SHOWN]}, not {now[name][:SHOWN]}" for name in differ)
        raise ConfigError(f"{out} holds a run with other settings ({there}): give another folder, or the same settings")
    made = requiring(read_records(samples), samples, _needed) if samples.exists() else ()
    found = {_key(row): row for row in made}
    return {key: found[key] for key in asked if key in found}
