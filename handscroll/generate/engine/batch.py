"""Answers a file of requests with the engine and writes a file of answers; a killed run goes on where it stopped.

One JSON object a line. A request is a "prompt", or "messages" for the chat template of the model (with "tools" if
wanted), and, if wanted, the settings of `Sampling`, a "priority", "logprobs" and
a grammar ("json_schema", "regex" or "choices"); an answer is its line's number, what it answers (a hash), text, tokens,
finish and log-probability, in the order of the requests. Where no answer was possible, an "error" says why.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import model_validator

from handscroll.base.errors import ConfigError, DataError, HandscrollError
from handscroll.base.records import RecordWriter, read_records
from handscroll.generate.chat import Speaker
from handscroll.generate.constrain import Constraint
from handscroll.generate.continuation import told
from handscroll.generate.defaults import Defaults
from handscroll.generate.engine.engine import Engine
from handscroll.generate.engine.job import Job
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.fingerprint import fingerprint
from handscroll.models.model import Model
from handscroll.text.tokenizer import Tokenizer

AHEAD = 64  # requests that are handed to the engine before they are answered
SHOWN = 5  # bad lines that a refusal quotes


class Line(Sampling):
    """One line of the file of requests."""

    prompt: str = ""
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    priority: int = 0
    logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    regex: str = ""
    choices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_prompt(self):
        if (self.messages is None) == ("prompt" not in self.model_fields_set):
            raise ValueError("prompt or messages: give one of them")
        if self.tools is not None and self.messages is None:
            raise ValueError("tools belong to messages: give these instead of a prompt")
        return self

    @model_validator(mode="after")
    def _one_grammar(self):
        given = [name for name in ("json_schema", "regex", "choices") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        return self


@dataclass(eq=False)
class Reader:
    """Makes requests of lines; what is compiled for one line serves the others."""

    model: Model
    tokenizer: Tokenizer
    beyond: bool
    grammars: dict[str, Constraint] = field(default_factory=dict)
    speakers: dict[bool, Speaker] = field(default_factory=dict)

    def request(self, line: Line) -> Request:
        """What a line asks for."""
        sampling = Sampling(**line.model_dump(include=set(Sampling.model_fields)))
        name = line.model_dump_json(include={"json_schema", "regex", "choices"})
        constraint = self.grammars.get(name)
        if constraint is None and (constraint := self._constraint(line)) is not None:
            self.grammars[name] = constraint
        if line.messages is None:
            ids, ends = self.tokenizer.encode(line.prompt), None
        else:
            ids, ends = self._rendered(line)
        ends = None if sampling.ignore_eos else ends
        return Request(ids, sampling, logprobs=line.logprobs, constraint=constraint, beyond=self.beyond, ends=ends)

    def _rendered(self, line: Line) -> tuple[list[int], frozenset[int]]:
        tools = line.tools is not None
        if tools not in self.speakers:
            self.speakers[tools] = Speaker(self.tokenizer, tools=tools)
        speaker = self.speakers[tools]
        assert line.messages is not None
        rendered = speaker.render(line.messages, {"tools": list(line.tools)} if line.tools is not None else None)
        return rendered.ids, speaker.ends(self.model)

    def _constraint(self, line: Line) -> Constraint | None:
        if line.json_schema is not None:
            return Constraint.schema(line.json_schema, self.tokenizer)
        if line.regex:
            return Constraint.regex(line.regex, self.tokenizer)
        return Constraint.choices(line.choices, self.tokenizer) if line.choices else None


class Asked(NamedTuple):
    """A line with its number, counted from 1, and its request."""

    number: int
    line: Line
    request: Request


class Named(NamedTuple):
    """A request and the name of its answer (`digest`)."""

    asked: Asked
    digest: str


Answers = Callable[[Sequence[Named]], Iterator[list[dict[str, Any]]]]


def read_requests(
    path: Path, engine: Engine, tokenizer: Tokenizer, beyond: bool = False, defaults: Defaults | None = None
) -> list[Asked]:
    """All lines of a file, checked: each can be answered by the engine.

    `defaults` are the settings under those of each line.

    Raises:
        DataError: the file cannot be read or has no line, or some lines cannot be answered; names them and says why.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"requests {path} cannot be read: {error.strerror}; give a file of JSON lines") from None
    found: list[Asked] = []
    wrong: list[str] = []
    reader = Reader(engine.model, tokenizer, beyond)
    for number, line in enumerate(lines, start=1):
        where = f"line {number}"
        try:
            parsed = Line.parse((defaults or Defaults()).under(_object(line)), where)
            request = reader.request(parsed)
            engine.check(request, number)
            found.append(Asked(number, parsed, request))
        except HandscrollError as error:
            wrong.append(str(error) if where in str(error) else f"{where}: {error}")
    if wrong:
        more = "" if len(wrong) <= SHOWN else f"\nand {len(wrong) - SHOWN} lines more"
        raise DataError(
            f"{path}: {len(wrong)} of {len(lines)} lines cannot be answered, and nothing was run:\n"
            + "\n".join(wrong[:SHOWN])
            + more
        )
    if not found:
        raise DataError(f'{path} has no line; write one JSON object a line, such as {{"prompt": "Once upon a time"}}')
    return found


def answer(
    requests: Sequence[Asked],
    engine: Engine,
    tokenizer: Tokenizer,
    out: Path,
    on_answer: Callable[[int], None] = lambda done: None,
    answers: Answers | None = None,
) -> int:
    """Answer all requests into `out`, durably and in order; returns how many answers were there before.

    `on_answer(done)` is called after every answer that was written. `answers` gives the records from elsewhere
    (`cluster.py`); by default the engine does.

    Raises:
        ConfigError: `out` holds answers to other requests, or of another model. CheckpointError: the disk refused.
    """
    model = identity(engine)
    named = [Named(one, digest(one, model)) for one in requests]
    kept = _kept(out, named)
    done = kept
    with RecordWriter(out) as writer:
        for ready in (answers or partial(answered, engine, tokenizer))(named[kept:]):
            for record in ready:
                writer.append(record)
            writer.sync()
            done += len(ready)
            on_answer(done)
    return kept


def answered(engine: Engine, tokenizer: Tokenizer, named: Sequence[Named]) -> Iterator[list[dict[str, Any]]]:
    """The records of all answers in order, as soon as all before them are there."""
    waiting, open_ = list(named)[::-1], _Open(engine, tokenizer)
    while waiting or open_.answers:
        while waiting and len(open_.answers) < AHEAD:
            open_.add(*waiting.pop())
        if ready := open_.ready():
            yield ready
        else:
            engine.step()


def identity(engine: Engine) -> str:
    """What two engines must share so that one's answers stand for the other's."""
    return f"{fingerprint(engine.model)} {engine.model.dtype} {engine.deterministic}"


def digest(one: Asked, model: str) -> str:
    """The name of a request, under which its answer is found again."""
    return hashlib.sha256(f"{model} {one.line.model_dump_json()}".encode()).hexdigest()[:16]


@dataclass(eq=False)
class _Answer:
    asked: Asked
    digest: str
    job: Job
    tokenizer: Tokenizer

    def record(self) -> dict[str, Any]:
        about: dict[str, Any] = {"line": self.asked.number, "request": self.digest}
        error = self.job.error
        if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError):
            raise error  # of the machine: the line is asked again when the run goes on
        if error is not None:  # of this line alone: the others are answered
            said = str(error) if isinstance(error, HandscrollError) else f"{type(error).__name__}: {error}"
            return about | {"error": said}
        record = {
            **about,
            "text": self.job.text,
            "tokens": len(self.job.answer),
            "finish": self.job.finish,
            "logprob": sum(self.job.logprobs),
        }
        if self.asked.line.logprobs is not None:
            record["logprobs"] = told(self.tokenizer, self.job.answer, self.job.scored)
        return record


@dataclass(eq=False)
class _Open:
    """The answers that are being written, in the order of their lines."""

    engine: Engine
    tokenizer: Tokenizer
    answers: list[_Answer] = field(default_factory=list)

    def add(self, asked: Asked, digest: str) -> None:
        job = self.engine.submit(asked.request, asked.line.priority)
        self.answers.append(_Answer(asked, digest, job, self.tokenizer))

    def ready(self) -> list[dict[str, Any]]:
        """The answers that can be written now: all before the first unfinished one."""
        count = next((n for n, one in enumerate(self.answers) if one.job.finish is None), len(self.answers))
        found, self.answers = self.answers[:count], self.answers[count:]
        return [one.record() for one in found]


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair stands in it, which is not text; repair the line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, got {type(found).__name__}")
    return found


def _kept(out: Path, requests: Sequence[Named]) -> int:
    """How many answers `out` has; a last line that was cut off does not count."""
    if not out.exists():
        return 0
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give a file for the answers")
    records = list(read_records(out))
    for record, (one, digest) in zip(records, requests, strict=False):
        if (record.get("line"), record.get("request")) != (one.number, digest):
            raise ConfigError(
                f"{out} holds an answer to another request, model or mode than line {one.number}; "
                "give another file, or remove this one"
            )
    if len(records) > len(requests):
        raise ConfigError(f"{out} holds {len(records)} answers to {len(requests)} requests; give another file")
    return len(records)
